"""What every training stage does around its algorithm: its folder, its parents, its devices, its loop.

    1  own checkpoint in the workdir?  resume exactly      2  else the parents named in config.init      3  else scratch

The model's shape and the tokenizer come from the parent's checkpoint, never from the child's config. A workdir belongs to one
config: running another one in it is an error that lists the differing fields.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from rlhf_jax import __version__
from rlhf_jax.config import differences
from rlhf_jax.data.tokenizers import Tokenizer, load_tokenizer
from rlhf_jax.models.config import TransformerConfig, from_dict, to_dict
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.training import checkpoints, processes
from rlhf_jax.training import mesh as meshes
from rlhf_jax.training.checkpoints import Meta, lineage_entry, new_meta
from rlhf_jax.training.loop import Hook, run_loop
from rlhf_jax.training.metrics import MetricsWriter
from rlhf_jax.training.pretrained import (
    Bases,
    check_tokenizer,
    describe_link,
    load_model,
    read_tokenizer,
)
from rlhf_jax.training.updates import TrainState, from_checkpoint

Params = Any
CORPUS = "corpus"  # folder of tokenised documents
# Groups that may change between a run and its continuation, because they decide where and how often, not what is computed; but
# for these fields of theirs, with what they are in a folder from before there was such a field.
_ELASTIC: dict[str, dict[str, Any]] = {"mesh": {"compute_dtype": "as_trained"}, "checkpoint": {}}


@dataclass(frozen=True)
class MeshConfig:
    """Devices: examples are split over data x fsdp, large parameters over fsdp, heads and features over tensor.

    And how models run on them, see `TransformerConfig`; "as_trained" is as the model's description says.
    """

    data: int  # -1 takes the devices that the others leave
    fsdp: int
    tensor: int
    fsdp_min_size: int  # leaves smaller than this are copied to every device
    compute_dtype: Literal["as_trained", "float32", "bfloat16"]
    remat: Literal["as_trained", "none", "dots", "block"]
    scan_layers: Literal["as_trained", "yes", "no"]
    attention: Literal["as_trained", "plain", "fused"]

    def run_as(self, model: TransformerConfig) -> TransformerConfig:
        """The model as these devices run it. Raises ValueError as it does."""
        names = ("compute_dtype", "remat", "scan_layers", "attention")
        changes = {
            name: getattr(self, name) for name in names if getattr(self, name) != "as_trained"
        }
        if "scan_layers" in changes:
            changes["scan_layers"] = self.scan_layers == "yes"
        return replace(model, **changes)


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the run writes."""

    log_every: int
    save_every: int
    keep: int
    sample_every: int  # 0 = never


@dataclass(frozen=True)
class Parent:
    """A checkpoint of an earlier stage."""

    path: str
    params: Params
    model: TransformerConfig
    meta: Meta


@dataclass
class Run:
    """One run of one stage in one folder."""

    stage: str
    workdir: Path
    mesh: jax.sharding.Mesh
    mesh_config: MeshConfig
    checkpoint: CheckpointConfig
    writer: MetricsWriter
    parents: dict[str, Parent] = field(default_factory=dict)
    _tokenizer: Tokenizer | None = None
    _bases: Bases = field(default_factory=dict)

    @classmethod
    def open(cls, config: Any, workdir: str) -> "Run":
        """Claim the workdir for this config, or check that it belongs to it."""
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        with processes.main_process_first(f"claim {folder}"):
            claim(folder, config)
        mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        return cls(
            config.stage, folder, mesh, config.mesh, config.checkpoint, MetricsWriter(folder)
        )

    # --- parents and tokenizer -------------------------------------------------------------------

    def parent(self, role: str, path: str, *, kind: str) -> Parent:
        """Load a parent's parameters; its tokenizer becomes ours if we have none yet. `path` is as in `training.parents`.

        Raises FileNotFoundError when there is no checkpoint, ValueError when it is of another kind or has changed since this
        run began.
        """
        folder = locate(self.workdir, path)
        params, meta = load_model(folder, bases=self._bases, place=self._place_leaf)
        if meta.kind != kind:
            raise ValueError(
                f"config.init.{role}: {path} is a {meta.kind} (stage {meta.stage}), expected a {kind}"
            )
        self._check_same_parent(role, path, meta)
        found = Parent(str(path), params, self.mesh_config.run_as(from_dict(meta.model)), meta)
        meshes.check_model(found.model, self.mesh)
        self.parents[role] = found
        if self._tokenizer is None:
            tokenizer = self.adopt_tokenizer(lambda: read_tokenizer(folder))
            check_tokenizer(tokenizer, self.workdir / "tokenizer", meta)
        return found

    def _place_leaf(self, path: str, array: np.ndarray) -> jax.Array:
        names = tuple(path.split("/"))
        sharding = meshes.leaf_sharding(
            names, array.shape, self.mesh, self.mesh_config.fsdp_min_size
        )
        return meshes.put(array, sharding, may_alias=False)

    def _check_same_parent(self, role: str, path: str, meta: Meta) -> None:
        step = checkpoints.latest_step(self.workdir)
        if step is None:
            return
        before = checkpoints.read_meta(
            checkpoints.checkpoint_folder(self.workdir, step)
        ).lineage.get(role)
        if before is not None and before["fingerprint"] != meta.fingerprint:
            raise ValueError(
                f"{self.workdir} was begun from {role} {before['path']} at step {before['step']} "
                f"({before['fingerprint']}), but {path} now holds step {meta.step} ({meta.fingerprint}); "
                "use a new workdir, or restore that parent"
            )

    def same_tokenizer(self, *roles: str) -> None:
        """Refuse parents that were trained with different tokenizers."""
        first, *others = (self.parents[role] for role in roles)
        for other in others:
            if other.meta.tokenizer != first.meta.tokenizer:
                raise ValueError(
                    f"{first.path} and {other.path} have different tokenizers ({first.meta.tokenizer[:12]} and "
                    f"{other.meta.tokenizer[:12]}); train one from the other's ancestor"
                )

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this run."""
        assert self._tokenizer is not None, "adopt_tokenizer or parent comes first"
        return self._tokenizer

    def adopt_tokenizer(self, make: Callable[[], Tokenizer]) -> Tokenizer:
        """This run's tokenizer: the one in the workdir, else a new one that is saved there."""
        folder = self.workdir / "tokenizer"
        with processes.main_process_first(f"tokenizer {folder}"):
            if folder.exists():
                self._tokenizer = load_tokenizer(folder)
            else:
                self._tokenizer = make()
                self._tokenizer.save(folder)
        return self._tokenizer

    # --- devices -----------------------------------------------------------------------------------

    @property
    def batch_shards(self) -> int:
        """Into how many parts every batch is split."""
        return meshes.batch_shards(self.mesh)

    def place(self, tree: Params) -> Params:
        """Put parameters on the mesh, large leaves sharded."""
        return meshes.place(tree, self.shardings(tree))

    def place_state(self, state: TrainState) -> TrainState:
        """Put a train state on the mesh; always a copy, so that it may be donated."""
        return meshes.place(state, self.shardings(state))

    def place_frozen(self, tree: Params) -> Params:
        """Put what no step trains on the mesh, without copies."""
        return meshes.place_frozen(tree, self.shardings(tree))

    def lora_link(self, role: str, config: LoraConfig) -> dict[str, Any]:
        """What the checkpoint says of its base, which it takes from a parent: nothing without adapters."""
        if not config.rank:
            return {}
        parent = self.parents[role]
        return describe_link(self.workdir, locate(self.workdir, parent.path), parent.meta, config)

    def shardings(self, tree: Any) -> Any:
        """Where each leaf lives."""
        return meshes.state_shardings(tree, self.mesh, self.mesh_config.fsdp_min_size)

    def shard(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Put a batch on the mesh, examples split over `batch_shards`."""
        return meshes.shard_batch(batch, self.mesh)

    def shard_stack(self, stack: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Put batches stacked along a leading axis (the minibatches of a scan) on the mesh."""
        return meshes.shard_stack(stack, self.mesh)

    def compile_update(self, update: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
        """Jit a pure (state, batch, key) -> (state, metrics) over the mesh, donating the old state."""
        return meshes.jit_step(update, self.shardings(state), self.mesh)

    # --- what the user sees ---------------------------------------------------------------------------

    def announce(self, config: Any, networks: Mapping[str, Params], arithmetic: str) -> None:
        """Print, before anything compiles, what this run will do."""
        if not processes.is_main_process():
            return
        print(f"== {self.stage}: {self.workdir}")
        for role, found in self.parents.items():
            print(
                f"   {role:9s} <- {found.path} (stage {found.meta.stage}, step {found.meta.step})"
            )
        for name, params in networks.items():
            sizes = {
                id(leaf): leaf.size for leaf in jax.tree.leaves(params)
            }  # what two networks share counts once
            if sizes:  # an empty base is not worth a line
                print(f"   {name:9s} {sum(sizes.values()):,} parameters")
        print(
            f"   {arithmetic}; seed {config.seed}; devices {meshes.describe_mesh(self.mesh)}",
            flush=True,
        )

    def show_samples(
        self, step: int, batch: Mapping[str, Any], samples: Any, score_B: jax.Array, count: int = 4
    ) -> None:
        """Write a few prompts with their sampled responses to samples.jsonl, every `sample_every` steps."""
        if not self.checkpoint.sample_every or step % self.checkpoint.sample_every:
            return
        tokens_BR, length_B, stopped_B = (
            processes.fetch(x)[:count] for x in samples[0:1] + samples[2:4]
        )
        score_N = processes.fetch(score_B)
        rows: list[dict[str, Any]] = []
        for row in range(count):
            prompt = batch["prompt_BP"][row][batch["prompt_mask_BP"][row].astype(bool)]
            rows.append(
                {
                    "prompt": self.tokenizer.decode(prompt.tolist()),
                    "response": self.tokenizer.decode(tokens_BR[row, : length_B[row]].tolist()),
                    "score": float(score_N[row]),
                    "finished": bool(stopped_B[row]),
                }
            )
        self.writer.samples(step + 1, rows)

    # --- the loop -------------------------------------------------------------------------------------

    def train(
        self,
        state: TrainState,
        step_fn: Callable[[TrainState, int], tuple[TrainState, dict[str, Any]]],
        *,
        num_steps: int,
        kind: str,
        model: TransformerConfig,
        headline: tuple[str, ...],
        export: Callable[[TrainState], Params] | None = None,
        hooks: Sequence[Hook] = (),
        extra: dict[str, Any] | None = None,
    ) -> TrainState:
        """Run the loop from wherever this workdir stands; `export` picks the parameters that the next stage will load."""
        lineage = {
            role: lineage_entry(found.path, found.meta) for role, found in self.parents.items()
        }
        meta = new_meta(
            stage=self.stage,
            kind=kind,
            num_steps=num_steps,
            model=to_dict(model),
            tokenizer=self.tokenizer.fingerprint(),
            lineage=lineage,
            extra=extra,
        )
        to_checkpoint, restore = _checkpoint_form(export)
        with meshes.on_mesh(self.mesh):
            return run_loop(
                workdir=self.workdir,
                state=state,
                step_fn=step_fn,
                num_steps=num_steps,
                writer=self.writer,
                log_every=self.checkpoint.log_every,
                save_every=self.checkpoint.save_every,
                keep=self.checkpoint.keep,
                to_checkpoint=to_checkpoint,
                from_checkpoint=restore,
                meta=meta,
                hooks=hooks,
                headline=headline,
            )


def _checkpoint_form(export: Callable[[TrainState], Params] | None) -> tuple[Any, Any]:
    # With an export (a weight average, the best parameters so far) the trained parameters go with the rest of the state.
    def to_checkpoint(state: TrainState) -> tuple[Params, dict[str, Any]]:
        train = {"step": state.step, "opt_state": state.opt_state, "extras": state.extras}
        if export is None:
            return state.params, train
        return export(state), {**train, "params": state.params}

    def restore(params: Params, train: dict[str, Any]) -> TrainState:
        if export is None:
            return from_checkpoint(params, train)
        return TrainState(train["step"], train["params"], train["opt_state"], train["extras"])

    return to_checkpoint, restore


def locate(workdir: Path, path: str) -> Path:
    """The folder that a config means: relative to the workdir if it starts with .., which need not exist yet."""
    return Path(os.path.normpath(workdir / path)) if path.startswith("..") else Path(path)


def claim(folder: Path, config: Any) -> None:
    """Write config.json, or check that the one there is this config's.

    Raises:
      ValueError: the folder was begun with another config; lists the fields that differ.
    """
    new = {
        "stage": config.stage,
        "config": json.loads(json.dumps(asdict(config))),
        "version": __version__,
    }
    path = folder / "config.json"
    if path.exists():
        old = json.loads(path.read_text())
        changed = differences(_fixed(old["config"]), _fixed(new["config"]))
        if (
            changed and checkpoints.latest_step(folder) is None
        ):  # it was refused or died early: nothing to protect
            for made in ("tokenizer", CORPUS):
                shutil.rmtree(folder / made, ignore_errors=True)
        elif changed:
            raise ValueError(
                f"{folder} was begun with another config:\n  "
                + "\n  ".join(changed)
                + "\nuse a new --workdir, delete this one, or set these fields back"
            )
    if processes.is_main_process():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(new, indent=2) + "\n")
        temporary.replace(path)


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    def fixed(group: str, part: Any) -> Any:
        if group in _ELASTIC:
            return {name: part.get(name, absent) for name, absent in _ELASTIC[group].items()}
        return part

    return {group: fixed(group, part) for group, part in config.items()}


def is_complete(workdir: str | Path) -> bool:
    """Whether a run in this folder has reached its end: its last checkpoint is its last step, or evaluation.json exists."""
    if (Path(workdir) / "evaluation.json").exists():
        return True
    step = checkpoints.latest_step(workdir)
    return (
        step is not None
        and checkpoints.read_meta(checkpoints.checkpoint_folder(workdir, step)).complete
    )
