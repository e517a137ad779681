"""Save what a run is, resume it from there, and give its parameters to the next stage.

    WORKDIR/checkpoints/<step>/params    the model's parameters: all that a child stage reads
                              /train     optimizer state, step, extras: what resuming needs besides
                              /meta      JSON: `Meta`, and shape, dtype and CRC-32 of every leaf

Orbax renames a folder when it is complete, so an interrupted save leaves nothing that looks like a
checkpoint. Restoring is strict: every missing, unexpected or mis-shaped leaf is listed, and every
byte is checked against its CRC in host memory; arrays may land on any mesh. A run that hands on
other parameters than it trains (an average, the best so far) saves its own in train.

Left out on purpose: asynchronous saving, random keys (derive them from the seed and the step),
pickle.
"""

import json
import logging
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import __version__
from rlhf_jax.files import json_checksum
from rlhf_jax.models.layout import leaf_names
from rlhf_jax.training.mesh import put
from rlhf_jax.training.processes import barrier, fetch, is_main_process

Params = Any
PathLike = str | Path
Description = dict[str, Any]  # of a leaf in JSON: shape, dtype, crc32
SAME_PARENT = ("stage", "step", "fingerprint")  # what a child's parent may not change
_NUMBER = bool | int | float | np.generic
_log = logging.getLogger(__name__)


class CheckpointKind(StrEnum):
    """Name the module (models/heads.py) that a checkpoint's parameters belong to."""

    LANGUAGE_MODEL = "language_model"
    SCALAR_MODEL = "scalar_model"
    CLASSIFIER = "classifier"

    @classmethod
    def _missing_(cls, value: object) -> "CheckpointKind":
        raise ValueError(f"checkpoint kind = {value!r}: must be one of {', '.join(cls)}")


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Describe a checkpoint.

    `model` is what `models.config.to_dict` returns, `tokenizer` the tokenizer's fingerprint,
    `lineage` maps a parent's role to its `lineage_entry`, and `extra` is the stage's own JSON.
    `save` fills in `step` and `fingerprint`, the checksum of the parameters.

    Raises:
        ValueError: `kind` is none of `CheckpointKind`.
    """

    stage: str
    kind: CheckpointKind
    step: int = 0
    num_steps: int
    model: dict[str, Any]
    tokenizer: str
    lineage: dict[str, dict[str, Any]]
    fingerprint: str = ""
    version: str = __version__
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", CheckpointKind(self.kind))  # JSON holds a string

    @property
    def complete(self) -> bool:
        """Tell whether the run had reached its last step."""
        return self.step == self.num_steps


def lineage_entry(path: PathLike, meta: Meta) -> dict[str, Any]:
    """Return what a child records about a parent that it loaded from `path`.

    Of a model of the hub that is its commit, too.
    """
    entry = {"path": str(path)} | {name: getattr(meta, name) for name in SAME_PARENT}
    revision = {name: meta.extra[name] for name in ("revision",) if name in meta.extra}
    return entry | revision


# --- finding --------------------------------------------------------------------------------------


def checkpoint_folder(workdir: PathLike, step: int) -> Path:
    """Return WORKDIR/checkpoints/<step>."""
    return Path(workdir) / "checkpoints" / str(step)


def all_steps(workdir: PathLike) -> list[int]:
    """List the steps of the complete checkpoints, ascending; log what is passed over."""
    root = Path(workdir) / "checkpoints"
    steps = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if _is_committed(folder):
            steps.append(int(folder.name))
        elif _is_half_written(folder):
            _log.warning("ignoring half-written checkpoint %s (a save was interrupted)", folder)
        elif _has_marker(folder):
            _log.warning("ignoring %s: a checkpoint is named by its step, as 7", folder)
    return sorted(steps)


def latest_step(workdir: PathLike) -> int | None:
    """Return the step of the newest complete checkpoint, or None."""
    return max(all_steps(workdir), default=None)


def _is_committed(folder: Path) -> bool:
    # Orbax renames the folder to the bare step as the last act.
    return _is_step(folder.name) and _has_marker(folder)


def _is_step(name: str) -> bool:
    # Not 007, nor digits of other scripts: those names were given by hand.
    return re.fullmatch(r"0|[1-9][0-9]{0,17}", name) is not None


def _has_marker(folder: Path) -> bool:
    # Orbax writes these names before it renames the folder.
    markers = ("_CHECKPOINT_METADATA", "commit_success.txt")
    return any((folder / name).is_file() for name in markers)


def _is_half_written(folder: Path) -> bool:
    # "40.orbax-checkpoint-tmp…", "40.deleted", or "40" without a marker.
    return folder.is_dir() and _is_step(folder.name.split(".")[0]) and not _is_committed(folder)


def resolve(path: PathLike) -> Path:
    """Return the checkpoint folder that a path means: itself, or the newest of a workdir.

    Raises:
        FileNotFoundError: names the path, the checkpoints nearby, and how to make the missing one.
    """
    path = Path(path)
    if _is_committed(path):
        return path
    step = latest_step(path)
    if step is None:
        raise FileNotFoundError(_not_found_message(path))
    return checkpoint_folder(path, step)


def _not_found_message(path: Path) -> str:
    workdir = path.parent.parent if path.parent.name == "checkpoints" else path
    if steps := all_steps(workdir):
        return f"no checkpoint at {path}; {workdir} has steps {', '.join(map(str, steps))}"
    parent = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    siblings = [
        f"{folder.name} (step {latest_step(folder)})"
        for folder in sorted(parent.iterdir())
        if (folder / "checkpoints").is_dir() and latest_step(folder) is not None
    ]
    nearby = f"{parent} has {', '.join(siblings) or 'no run with a checkpoint'}"
    remedy = "Correct the path, or train the model first:"
    if (config := workdir / "config.json").is_file():
        stage = json.loads(config.read_text())["stage"]
        remedy = f"Stage {stage} was begun there and saved nothing: run its config again,"
    command = f"python -m rlhf_jax.main --config=FILE --workdir={workdir}"
    return f"no checkpoint at {path}; {nearby}. {remedy} {command}"


# --- saving ---------------------------------------------------------------------------------------


def save(
    workdir: PathLike, step: int, params: Params, train: Any, meta: Meta, *, keep: int
) -> Meta:
    """Write checkpoint `step`, leave the `keep` newest, and return the completed `Meta`.

    Raises:
        ValueError: the step exists already, or a leaf cannot be saved.
        FloatingPointError: a parameter is not finite.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep}: must be >= 1, a run resumes from the newest checkpoint")
    folder = checkpoint_folder(workdir, step).absolute()
    if folder.exists() and _is_committed(folder):
        raise ValueError(f"{folder} exists already: delete it, or use another workdir")
    trees = {"params": flatten_named(params), "train": flatten_named(train)}
    for name, leaf in trees["params"].items():
        array = fetch(leaf)
        if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
            raise FloatingPointError(f"parameter {name} is not finite at step {step}: not saved")
    leaves = {"params": tree_checksums(params), "train": tree_checksums(train)}
    meta = replace(meta, step=step, fingerprint=json_checksum(leaves["params"]))
    content = {"meta": asdict(meta), "leaves": leaves}
    if is_main_process() and folder.parent.is_dir():
        for half_written in filter(_is_half_written, list(folder.parent.iterdir())):
            shutil.rmtree(half_written)
    barrier(f"checkpoint {step}")
    _write(folder, trees, content | {"crc32": json_checksum(content)})
    if is_main_process():
        _prune(folder.parent, keep)
    barrier(f"checkpoint {step} written")
    return meta


def _write(folder: Path, trees: Mapping[str, dict[str, Any]], content: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp  # Half a second to import: only those who save or load pay.

    items = {item: ocp.args.PyTreeSave(unflatten_named(tree)) for item, tree in trees.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.Composite(meta=ocp.args.JsonSave(content), **items))
    if not _is_committed(folder):
        raise OSError(f"{folder}: saving left no complete checkpoint; is the disk full?")


def _prune(root: Path, keep: int) -> None:
    for step in all_steps(root.parent)[:-keep]:
        # Renamed first: a deletion that is interrupted must not leave a folder that looks complete.
        shutil.rmtree((root / str(step)).rename(root / f"{step}.deleted"))


# --- restoring ------------------------------------------------------------------------------------


def read_meta(path: PathLike) -> Meta:
    """Return the `Meta` of a checkpoint folder, or of a workdir's newest checkpoint."""
    folder = resolve(path)
    return _meta_from(_read_meta_file(folder), folder)


def restore(
    workdir: PathLike, step: int, params_like: Params, train_like: Any
) -> tuple[Params, Any, Meta]:
    """Load everything of one checkpoint in the structure, types and shardings of two example trees.

    The examples hold arrays or `jax.ShapeDtypeStruct`s with shardings; Python numbers come back as
    such.

    Raises:
        FileNotFoundError: there is no such step.
        ValueError: lists every leaf that does not fit, or names what is damaged.
    """
    folder = checkpoint_folder(workdir, step)
    if not _is_committed(folder):
        raise FileNotFoundError(_not_found_message(folder))
    content = _read_meta_file(folder)
    trees = []
    for item, like in (("params", params_like), ("train", train_like)):
        examples = flatten_named(like)
        _check_same_leaves(folder, item, content["leaves"][item], examples)
        named = _read_item(folder, item, content["leaves"][item])
        leaves = [place_like(named[name], example) for name, example in examples.items()]
        trees.append(jax.tree.unflatten(jax.tree.structure(like), leaves))
    return trees[0], trees[1], _meta_from(content, folder)


def load_params(path: PathLike) -> tuple[Params, Meta]:
    """Load the parameters and `Meta` of another run, uncommitted on the default device.

    Raises:
        FileNotFoundError: as `resolve`.
        ValueError: names what is damaged.
    """
    folder = resolve(path)
    content = _read_meta_file(folder)
    meta = _meta_from(content, folder)
    if not meta.complete:
        _log.warning("%s is of an unfinished run: step %d of %d", folder, meta.step, meta.num_steps)
    params = unflatten_named(_read_item(folder, "params", content["leaves"]["params"]))
    return jax.device_put(params, may_alias=False), meta


def _read_item(folder: Path, item: str, leaves: Mapping[str, Description]) -> dict[str, np.ndarray]:
    """Read all leaves of one item as NumPy arrays and check each against its CRC."""
    try:
        named = _read_arrays(folder, item, list(leaves))
    except Exception as error:  # Orbax and tensorstore raise many types for a damaged file.
        raise _damaged(folder, item, error) from error
    for name, saved in leaves.items():
        read = checksum(named[name])
        if read != saved:
            raise _damaged(folder, f"{item}/{name}", ValueError(f"saved {saved}, read {read}"))
    return named


def _read_arrays(folder: Path, item: str, names: list[str]) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    like = unflatten_named(dict.fromkeys(names, 0))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(like, restore_args=as_numpy, partial_restore=True)
        tree = checkpointer.restore(folder.absolute() / item, args=args)
    return flatten_named(tree)


def _damaged(folder: Path, where: str, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [""])[0][:300]
    earlier = [step for step in all_steps(folder.parent.parent) if step < int(folder.name)]
    remedy = "and start the run again (there is no earlier step)"
    if earlier:
        remedy = f"to fall back to step {earlier[-1]}"
    return ValueError(
        f"checkpoint {folder} is damaged at {where}: {type(error).__name__}: {reason}. "
        f"Delete {folder} {remedy}"
    )


def _read_meta_file(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "meta" / "metadata").read_text())
        crc = content.pop("crc32")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(folder, "meta", error) from error
    if crc != json_checksum(content):
        raise _damaged(folder, "meta", ValueError("its CRC-32 is not the one saved with it"))
    return content


def _meta_from(content: Mapping[str, Any], folder: Path) -> Meta:
    saved = content["meta"]
    step = saved.get("step")
    if str(step) != folder.name:
        raise ValueError(f"checkpoint {folder} is of step {step}: rename it to {step}")
    differing = sorted(set(saved) ^ {f.name for f in fields(Meta)})
    if differing:
        raise ValueError(
            f"{folder} was written by another version of rlhf_jax than this one ({__version__}), "
            f"with other fields in its meta ({', '.join(differing)}): load it with that version"
        )
    return Meta(**saved)


def _check_same_leaves(
    folder: Path, item: str, saved: Mapping[str, Description], like: Mapping[str, Any]
) -> None:
    lines = []
    for name in sorted(set(saved) | set(like)):
        have = _format_leaf(saved[name]) if name in saved else None
        want = _format_leaf(_shape_dtype(like[name])) if name in like else None
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
            + "\nRestore with the config that wrote it (config.json), or start in a new workdir."
        )


# --- the leaves of a tree -------------------------------------------------------------------------
#
# A leaf's name is its path through the tree, whatever the containers: no class is saved.


def flatten_named(tree: Any) -> dict[str, Any]:
    """Return {"opt_state/0/mu/trunk/wte": leaf, …} in the order of `jax.tree.leaves`.

    Raises:
        ValueError: two leaves have one name, or a leaf is neither a number nor an array of numbers.
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(re.sub(r"[/\\]", "_", key) for key in leaf_names(path))
        if name in named or not name:
            problem = "leaves need distinct, non-empty names; use a dict"
            raise ValueError(f"checkpoint leaf {name!r}: {problem}")
        is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray)
        is_key = is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if is_key or not (is_array or isinstance(leaf, _NUMBER)):
            problem = f"{type(leaf).__name__}: only number arrays and numbers are saved"
            raise ValueError(f"checkpoint leaf {name} is {problem}")
        named[name] = leaf
    return named


def unflatten_named(named: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `flatten_named`: return a tree of dicts, Python numbers as arrays."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.asarray(leaf) if isinstance(leaf, _NUMBER) else leaf
    return tree


def _shape_dtype(leaf: Any) -> Description:
    """Return shape and dtype as they are written to JSON."""
    array = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _format_leaf(description: Description) -> str:
    return f"{description['dtype']}{description['shape']}"  # as float32[4, 8]


def checksum(leaf: Any) -> Description:
    """Return shape, dtype and the CRC-32 of the bytes."""
    array = np.ascontiguousarray(fetch(leaf))
    crc = zlib.crc32(array.reshape(-1).view(np.uint8).data)
    return _shape_dtype(leaf) | {"crc32": f"{crc:08x}"}


def tree_checksums(tree: Any) -> dict[str, Description]:
    """Return the `checksum` of every leaf by its name."""
    return {name: checksum(leaf) for name, leaf in flatten_named(tree).items()}


def place_like(array: np.ndarray, example: Any) -> Any:
    """Return the array in the type and placement of the example."""
    if isinstance(example, bool | int | float):
        return type(example)(array.item())
    if isinstance(example, np.ndarray | np.generic):
        return array
    # A committed array pins everything it meets to its device: only where the example was.
    pinned = example.sharding if not isinstance(example, jax.Array) or example.committed else None
    return put(array, pinned, may_alias=False)
