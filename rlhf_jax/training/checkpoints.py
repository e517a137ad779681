"""Checkpoints: what a run saves, what it resumes from, and what the next stage starts from.

    WORKDIR/checkpoints/<step>/params    the model's parameters: all that a child stage reads
                              /train     optimizer state, step, extras: what resuming needs besides
                              /meta      JSON: `Meta`, and shape, dtype and CRC-32 of every leaf of both trees

Written by Orbax under a temporary name and renamed when complete, so an interrupted save leaves nothing that
looks like a checkpoint. Restoring is strict: every missing, unexpected or mis-shaped leaf is listed, and
every byte is checked against its CRC. Arrays go through host memory (the check needs all bytes there) and may
land on any mesh.

Of several processes each writes its parts of the arrays; for the CRCs, and when restoring, every host reads every byte.

Left out on purpose: asynchronous saving, random keys (derive them from the seed and the step), pickle.
"""

import json
import logging
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import __version__
from rlhf_jax.training.mesh import put
from rlhf_jax.training.processes import barrier, fetch, is_main_process


# The leaves of a tree as a checkpoint sees them: named, described by shape and dtype, protected by a CRC-32.
#
# A name is the path through the tree, "opt_state/0/mu/trunk/wte", whatever the containers (dict keys, field
# names, positions), so a checkpoint can be read without the classes that made it.
#
# Left out on purpose: leaves that are not numbers, random keys among them.
def flatten_named(tree: Any) -> dict[str, Any]:
    """{"opt_state/0/mu/trunk/wte": leaf, …} in the order of `jax.tree.leaves`.

    Raises ValueError for a leaf that cannot be saved and for two leaves of one name.
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(re.sub(r"[/\\]", "_", str(_key(entry))) for entry in path)
        if name in named or not name:
            raise ValueError(
                f"checkpoint leaf {name!r}: leaves need distinct, non-empty names; put them in a dict"
            )
        if not _saveable(leaf):
            raise ValueError(
                f"checkpoint leaf {name} is {type(leaf).__name__}: only number arrays and numbers are saved"
            )
        named[name] = leaf
    return named


def _key(entry: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def _saveable(leaf: Any) -> bool:
    if isinstance(leaf, bool | int | float | np.generic):
        return True
    is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray)
    return is_array and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def unflatten_named(named: Mapping[str, Any]) -> dict[str, Any]:
    """Named leaves as a tree of dicts, Python numbers as arrays; undoes `flatten_named`."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.asarray(leaf) if isinstance(leaf, bool | int | float | np.generic) else leaf
    return tree


def abstract(leaf: Any) -> dict[str, Any]:
    """Shape and dtype as they are written to JSON."""
    array = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def form(description: Mapping[str, Any]) -> str:
    """`float32[4, 8]`."""
    return f"{description['dtype']}{description['shape']}"


def describe(leaf: Any) -> dict[str, Any]:
    """Shape, dtype and CRC-32 of the bytes."""
    array = np.ascontiguousarray(fetch(leaf))
    return abstract(leaf) | {"crc32": f"{zlib.crc32(array.reshape(-1).view(np.uint8).data):08x}"}


def fingerprint(leaves: Mapping[str, dict[str, Any]]) -> str:
    """One fingerprint of a whole tree: the CRC-32 of its sorted (name, shape, dtype, CRC-32) lines."""
    return json_crc(leaves)


def json_crc(content: Mapping[str, Any]) -> str:
    """CRC-32 of the JSON with sorted keys."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def place_like(array: np.ndarray, example: Any) -> Any:
    """The array in the type and placement of the example."""
    if isinstance(example, bool | int | float):
        return type(example)(array.item())
    if isinstance(example, np.ndarray | np.generic):
        return array
    # A committed array would pin everything it meets to its device, so stay uncommitted where the example
    # was.
    pinned = example.sharding if not isinstance(example, jax.Array) or example.committed else None
    return put(array, pinned, may_alias=False)


Params = Any
PathLike = str | Path
KINDS = ("language_model", "scalar_model", "classifier")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says about itself.

    `model` is `TransformerConfig.to_dict()`, `tokenizer` the tokenizer's fingerprint, `lineage` maps a
    parent's role to `lineage_entry(...)`; `extra` is the stage's own JSON. `best` is {} or {"step", "metric",
    "value"}. `step`, `fingerprint` (of the parameters) and `best` are filled in when saving: build one with
    `new_meta`.
    """

    stage: str
    kind: str
    step: int
    num_steps: int
    model: dict[str, Any]
    tokenizer: str
    lineage: dict[str, dict[str, Any]]
    fingerprint: str
    version: str
    extra: dict[str, Any]
    best: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True iff the run reached its last step."""
        return self.step == self.num_steps


def new_meta(
    *,
    stage: str,
    kind: str,
    num_steps: int,
    model: dict[str, Any],
    tokenizer: str,
    lineage: dict[str, dict[str, Any]],
    extra: dict[str, Any] | None = None,
) -> Meta:
    """The `Meta` of a run about to start. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"checkpoint kind = {kind!r}: must be one of {KINDS}")
    return Meta(
        stage, kind, 0, num_steps, model, tokenizer, lineage, "", __version__, dict(extra or {})
    )


def lineage_entry(path: PathLike, meta: Meta) -> dict[str, Any]:
    """What a child records about a parent that it loaded from `path`."""
    return {
        "path": str(path),
        "stage": meta.stage,
        "step": meta.step,
        "fingerprint": meta.fingerprint,
    }


# --- finding ------------------------------------------------------------------------------------------------


def checkpoint_folder(workdir: PathLike, step: int) -> Path:
    """WORKDIR/checkpoints/<step>."""
    return Path(workdir) / "checkpoints" / str(step)


def all_steps(workdir: PathLike) -> list[int]:
    """Steps of the complete checkpoints, ascending; half-written ones are left out with a note in the log."""
    root = Path(workdir) / "checkpoints"
    steps = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if _is_committed(folder):
            steps.append(int(folder.name))
        elif _is_half_written(folder):
            _log.warning("ignoring half-written checkpoint %s (a save was interrupted)", folder)
    return sorted(steps)


def latest_step(workdir: PathLike) -> int | None:
    """The newest complete checkpoint's step, or None."""
    steps = all_steps(workdir)
    return steps[-1] if steps else None


def _is_committed(folder: Path) -> bool:
    # Orbax renames the folder to the bare step as the last act, and writes these names on the way.
    markers = ("_CHECKPOINT_METADATA", "commit_success.txt")
    return folder.name.isdecimal() and any((folder / name).is_file() for name in markers)


def _is_half_written(folder: Path) -> bool:
    # "40.orbax-checkpoint-tmp…", "40.deleted", or "40" without a marker; other names are not ours.
    return folder.is_dir() and folder.name.split(".")[0].isdecimal() and not _is_committed(folder)


def resolve(path: PathLike) -> Path:
    """The checkpoint folder that a path means.

    WORKDIR is its newest; WORKDIR/checkpoints/<step> itself; WORKDIR/checkpoints/best the one a `Best` kept.
    Raises FileNotFoundError naming the path, what there is nearby, and the command that makes it.
    """
    path = Path(path)
    if _is_committed(path):
        return path
    if path.name == "best" and path.parent.name == "checkpoints":
        return _best_folder(path.parent.parent)
    step = latest_step(path)
    if step is None:
        raise FileNotFoundError(_not_found_message(path))
    return checkpoint_folder(path, step)


def _best_folder(workdir: Path) -> Path:
    newest = resolve(workdir)
    best = _read_meta_file(newest)["meta"]["best"]
    if not best:
        raise FileNotFoundError(
            f"{workdir}: this run did not track a best step; name {workdir} or {newest} instead"
        )
    return resolve(checkpoint_folder(workdir, best["step"]))


def _not_found_message(path: Path) -> str:
    workdir = path.parent.parent if path.parent.name == "checkpoints" else path
    mine, siblings = all_steps(workdir), []
    if mine:
        nearby = f"{workdir} has steps {', '.join(map(str, mine))}"
    else:
        parent = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
        siblings = [
            f"{p.name} (step {latest_step(p)})"
            for p in sorted(parent.iterdir())
            if _has_checkpoint(p)
        ]
        nearby = f"{parent} has {', '.join(siblings) if siblings else 'no run with a checkpoint'}"
    stage = _stage_of(workdir)
    command = (
        f"python -m rlhf_jax.main --config=experiments/menagerie/{stage}.py --workdir={workdir}"
    )
    return f"no checkpoint at {path}; {nearby}. To make it: {command}"


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() and latest_step(folder) is not None


def _stage_of(workdir: Path) -> str:
    config = workdir / "config.json"
    return json.loads(config.read_text())["stage"] if config.is_file() else workdir.name


# --- saving -------------------------------------------------------------------------------------------------


def save(
    workdir: PathLike, step: int, params: Params, train: Any, meta: Meta, *, keep: int
) -> Meta:
    """Write checkpoint `step` and return its `Meta` (with step and fingerprint filled in).

    Afterwards the `keep` newest checkpoints and the best one (`meta.best`) remain. Blocks until the files are
    in place. Raises ValueError when the step exists already, FloatingPointError when a parameter is not
    finite.
    """
    if keep < 1:
        raise ValueError(
            f"keep = {keep}: must be >= 1, the newest checkpoint is what a run resumes from"
        )
    folder = checkpoint_folder(workdir, step).absolute()
    if folder.exists() and _is_committed(folder):
        raise ValueError(f"{folder} exists already: delete it, or use another workdir")
    trees = {"params": flatten_named(params), "train": flatten_named(train)}
    leaves = {
        item: {name: describe(leaf) for name, leaf in tree.items()} for item, tree in trees.items()
    }
    _check_finite(trees["params"], step)
    meta = replace(meta, step=step, fingerprint=fingerprint(leaves["params"]))
    content = {"meta": asdict(meta), "leaves": leaves}
    if is_main_process():
        _remove_half_written(folder.parent)
    barrier(f"checkpoint {step}")
    _write(folder, trees, content | {"crc32": json_crc(content)})
    if is_main_process():
        _prune(folder.parent, keep, meta)
    barrier(f"checkpoint {step} written")
    return meta


def _write(folder: Path, trees: Mapping[str, dict[str, Any]], content: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp  # Half a second to import: only those who save or load pay.

    items = {item: ocp.args.PyTreeSave(unflatten_named(tree)) for item, tree in trees.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.Composite(meta=ocp.args.JsonSave(content), **items))
    if not _is_committed(folder):
        raise OSError(f"{folder}: saving left no complete checkpoint; is the disk full?")


def _remove_half_written(root: Path) -> None:
    for folder in root.iterdir() if root.is_dir() else []:
        if _is_half_written(folder):
            shutil.rmtree(folder)


def _prune(root: Path, keep: int, meta: Meta) -> None:
    kept = set(all_steps(root.parent)[-keep:]) | {meta.step, meta.best.get("step", meta.step)}
    for step in all_steps(root.parent):
        if step not in kept:
            # Renamed first: a deletion that is interrupted must not leave a folder that looks complete.
            doomed = (root / str(step)).rename(root / f"{step}.deleted")
            shutil.rmtree(doomed)


def _check_finite(params: Mapping[str, Any], step: int) -> None:
    for name, leaf in params.items():
        array = fetch(leaf)
        if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
            raise FloatingPointError(f"parameter {name} is not finite at step {step}: not saved")


# --- restoring ----------------------------------------------------------------------------------------------


def read_meta(path: PathLike) -> Meta:
    """The `Meta` of a workdir's newest checkpoint, or of a checkpoint folder."""
    return _meta_from(_read_meta_file(resolve(path)), resolve(path))


def restore(
    workdir: PathLike, step: int, params_like: Params, train_like: Any
) -> tuple[Params, Any, Meta]:
    """Load everything of one checkpoint, in the structure, types and shardings of the two example trees.

    The examples may be arrays or `jax.ShapeDtypeStruct`s (with shardings); Python numbers come back as Python
    numbers. Raises FileNotFoundError without such a step, ValueError listing every leaf that does not fit or
    naming what is damaged.
    """
    folder = checkpoint_folder(workdir, step)
    if not _is_committed(folder):
        raise FileNotFoundError(_not_found_message(folder))
    content = _read_meta_file(folder)
    trees = []
    for item, like in (("params", params_like), ("train", train_like)):
        _check_same_leaves(folder, item, content["leaves"][item], flatten_named(like))
        named = _read_item(folder, item, content["leaves"][item])
        restored = [place_like(named[name], leaf) for name, leaf in flatten_named(like).items()]
        trees.append(jax.tree.unflatten(jax.tree.structure(like), restored))
    return trees[0], trees[1], _meta_from(content, folder)


def load_params(path: PathLike, shardings: Any = None) -> tuple[Params, Meta]:
    """The parameters and `Meta` of another run: what a child stage starts from.

    `path` is as in `resolve`. `shardings` is None (uncommitted, on the default device), a sharding or tree of
    them, or a function from the abstract parameters to one, e.g. `lambda tree: state_shardings(tree, mesh,
    min_size)`. Raises FileNotFoundError as `resolve` does, ValueError naming what is damaged.
    """
    folder = resolve(path)
    content = _read_meta_file(folder)
    meta = _meta_from(content, folder)
    if not meta.complete:
        _log.warning("%s is of an unfinished run: step %d of %d", folder, meta.step, meta.num_steps)
    params = unflatten_named(_read_item(folder, "params", content["leaves"]["params"]))
    if callable(shardings):
        shardings = shardings(
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        )
    return jax.device_put(params, shardings, may_alias=False), meta


def _read_item(
    folder: Path, item: str, leaves: Mapping[str, dict[str, Any]]
) -> dict[str, np.ndarray]:
    """All leaves of one item as NumPy arrays, each checked against its CRC."""
    try:
        named = _read_arrays(folder, item, list(leaves))
    except Exception as error:  # Orbax and tensorstore raise many types for a damaged file.
        raise _damaged(
            folder, item, _first_unreadable(folder, item, list(leaves)), error
        ) from error
    for name, expected in leaves.items():
        found = describe(named[name])
        if found != expected:
            raise _damaged(folder, item, name, ValueError(f"saved {expected}, read {found}"))
    return named


def _read_arrays(folder: Path, item: str, names: list[str]) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    like = unflatten_named(dict.fromkeys(names, 0))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(like, restore_args=as_numpy, partial_restore=True)
        tree = checkpointer.restore(folder.absolute() / item, args=args)
    return flatten_named(tree)


def _first_unreadable(folder: Path, item: str, names: list[str]) -> str:
    """The first leaf that cannot be read by itself (any leaf, where a shared file is at fault)."""
    for name in names:
        try:
            _read_arrays(folder, item, [name])
        except Exception:
            return name
    return "(all leaves together)"


def _damaged(folder: Path, item: str, name: str, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [""])[0][:300]
    where = f"{item}/{name}" if name else item
    return ValueError(
        f"checkpoint {folder} is damaged at {where}: {type(error).__name__}: {reason}. {_fall_back(folder)}"
    )


def _fall_back(folder: Path) -> str:
    earlier = [step for step in all_steps(folder.parent.parent) if step < int(folder.name)]
    then = (
        f"to fall back to step {earlier[-1]}"
        if earlier
        else "and start the run again (there is no earlier step)"
    )
    return f"Delete {folder} {then}"


def _read_meta_file(folder: Path) -> dict[str, Any]:
    file = folder / "meta" / "metadata"
    try:
        content = json.loads(file.read_text())
        crc = content.pop("crc32")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(folder, "meta", "", error) from error
    if crc != json_crc(content):
        raise _damaged(
            folder, "meta", "", ValueError("the CRC-32 of the JSON is not the one saved with it")
        )
    return content


def _meta_from(content: Mapping[str, Any], folder: Path) -> Meta:
    saved = content["meta"]
    differing = sorted(set(saved) ^ {f.name for f in fields(Meta)})
    if differing:
        raise ValueError(
            f"{folder} was written by another version of rlhf_jax than this one ({__version__}), with other "
            f"fields in its meta ({', '.join(differing)}): load it with the version that wrote it"
        )
    return Meta(**saved)


def _check_same_leaves(
    folder: Path, item: str, saved: Mapping[str, dict[str, Any]], like: Mapping[str, Any]
) -> None:
    lines = []
    for name in sorted(set(saved) | set(like)):
        have = form(saved[name]) if name in saved else None
        want = form(abstract(like[name])) if name in like else None
        if want is None:
            lines.append(f"  unexpected {name}: checkpoint {have}, this run has no such leaf")
        elif have is None:
            lines.append(f"  missing    {name}: this run {want}, checkpoint has no such leaf")
        elif have != want:
            lines.append(f"  differs    {name}: checkpoint {have}, this run {want}")
    if lines:
        raise ValueError(
            f"checkpoint {folder}, item {item!r}, does not fit this run ({len(lines)} leaves):\n"
            + "\n".join(lines)
            + "\nRestore with the configuration that wrote it (config.json), or start in a new workdir."
        )
