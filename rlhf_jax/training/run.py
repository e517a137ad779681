"""Do what every training stage does around its algorithm: folder, parents, devices, loop.

    1  own checkpoint in the workdir?  resume exactly
    2  else the parents named in config.init
    3  else scratch

The model's shape and the tokenizer come from the parent's checkpoint, never from the child's
config. A workdir belongs to one config: another one in it is an error that lists what differs.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax import __version__
from rlhf_jax.config import differences
from rlhf_jax.data.sources import remembered
from rlhf_jax.data.tokenizers import Tokenizer, load_tokenizer
from rlhf_jax.files import aside, read_json, remove, write_json
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.models.config import TransformerConfig, from_dict, to_dict
from rlhf_jax.models.layout import BATCH
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.training import checkpoints, processes
from rlhf_jax.training import mesh as meshes
from rlhf_jax.training.checkpoints import CheckpointKind, Meta, lineage_entry
from rlhf_jax.training.loop import Hook, LoopConfig, run_loop
from rlhf_jax.training.metrics import MetricsWriter
from rlhf_jax.training.pretrained import (
    Bases,
    check_tokenizer,
    describe_link,
    load_model,
    pin,
    read_tokenizer,
)
from rlhf_jax.training.trackers import FOLDER as TRACKING
from rlhf_jax.training.trackers import open_writer
from rlhf_jax.training.updates import TrainState

Params = Any
CORPUS = "corpus"  # folder of tokenised documents
DATA = "data.json"  # what was read: number and CRC-32 of the records
LABELS = "label.json"  # what the label stage writes last
_NUM_SHOWN = 4  # rows of a batch in samples.jsonl
# Groups of a config that decide where and how often, not what is computed, and so may change when a
# run continues; and the fields of theirs that may not.
_ELASTIC: dict[str, tuple[str, ...]] = {"mesh": ("compute_dtype",), "checkpoint": ()}


@dataclass(frozen=True)
class MeshConfig:
    """Say over how many devices a run is spread (training/mesh.py), and how models run on them.

    The last four fields are those of `TransformerConfig`, "as_trained" its own.
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
        """Return the model as these devices run it.

        Raises:
            ValueError: as `TransformerConfig`.
        """
        names = ("compute_dtype", "remat", "scan_layers", "attention")
        settings = {name: getattr(self, name) for name in names}
        changes = {name: value for name, value in settings.items() if value != "as_trained"}
        if "scan_layers" in changes:
            changes["scan_layers"] = self.scan_layers == "yes"
        return replace(model, **changes)


@dataclass(frozen=True)
class CheckpointConfig:
    """Say how often a run writes."""

    log_every: int
    save_every: int
    keep: int
    sample_every: int  # 0 = never


@dataclass(frozen=True)
class MonitorConfig:
    """Say how often a judge measures the policy while it trains, and on which prompts."""

    judge: str
    prompts: str
    num_prompts: int
    every: int  # 0 = never
    prompt_length: int
    response_length: int
    batch_size: int


@dataclass(frozen=True)
class Parent:
    """Hold what a run loaded from a checkpoint of an earlier stage."""

    path: str
    params: Params
    model: TransformerConfig
    meta: Meta


@dataclass
class Run:
    """Hold what one run of one stage in one folder shares."""

    stage: str
    workdir: Path
    mesh: jax.sharding.Mesh
    mesh_config: MeshConfig
    checkpoint: CheckpointConfig | None  # of a stage that trains
    writer: MetricsWriter
    parents: dict[str, Parent] = field(default_factory=dict)
    _tokenizer: Tokenizer | None = None
    _bases: Bases = field(default_factory=dict)

    @classmethod
    def open(cls, config: Any, workdir: str) -> "Run":
        """Claim the workdir for this config, or check that it belongs to it."""
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        processes.require_same("config", _describe(config))
        with processes.main_process_first(f"claim {folder}"):
            claim(folder, config)
        if not (folder / "config.json").exists():
            raise ValueError(
                f"{folder} lacks the config.json that process 0 wrote: a run of several processes "
                "needs one folder that all of them see"
            )
        mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        writer = open_writer(folder)
        trains = any(group.name == "checkpoint" for group in fields(config))
        checkpoint = config.checkpoint if trains else None
        return cls(config.stage, folder, mesh, config.mesh, checkpoint, writer)

    # --- parents and tokenizer -------------------------------------------------------------------

    def parent(
        self, role: str, path: str, *, kind: CheckpointKind, field: str | None = None
    ) -> Parent:
        """Load a parent; its tokenizer becomes this run's if it has none yet.

        `path` is as in training/pretrained.py, `field` the one of the config that has it, where
        that is not config.init.ROLE.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: it is of another kind, or has changed since this run began.
        """
        folder = locate(self.workdir, path)
        before = self._recorded_parent(role)
        if revision := before.get("revision"):
            folder = pin(folder, revision)
        params, meta = load_model(folder, bases=self._bases, place=self._place_leaf)
        if meta.kind != kind:
            actual = f"{meta.kind} (stage {meta.stage})"
            field = field or f"config.init.{role}"
            raise ValueError(f"{field}: {path} is a {actual}, expected a {kind}")
        self._check_same_parent(role, path, meta, before)
        model = self.mesh_config.run_as(from_dict(meta.model))
        meshes.check_model(model, self.mesh)
        parent = Parent(str(path), params, model, meta)
        self.parents[role] = parent
        if self._tokenizer is None:
            tokenizer = self.adopt_tokenizer(lambda: read_tokenizer(folder))
            check_tokenizer(tokenizer, self.workdir / "tokenizer", meta)
        return parent

    def _place_leaf(self, path: str, array: np.ndarray) -> jax.Array:
        least = self.mesh_config.fsdp_min_size
        sharding = meshes.leaf_sharding(tuple(path.split("/")), array.shape, self.mesh, least)
        return meshes.put(array, sharding, may_alias=False)

    def _recorded_parent(self, role: str) -> dict[str, Any]:
        """Return what this run recorded of a parent when it began, or nothing."""
        begun = checkpoints.latest_step(self.workdir) is not None
        return checkpoints.read_meta(self.workdir).lineage.get(role, {}) if begun else {}

    def _check_same_parent(
        self, role: str, path: str, meta: Meta, before: Mapping[str, Any]
    ) -> None:
        revisions = before.get("revision"), meta.extra.get("revision")
        if before and revisions[0] != revisions[1]:
            raise ValueError(
                f"{self.workdir} was begun from {role} {before['path']} at revision "
                f"{revisions[0]}, but {path} is now of revision {revisions[1]}; use a new workdir"
            )
        if before and before["fingerprint"] != meta.fingerprint:
            raise ValueError(
                f"{self.workdir} was begun from {role} {before['path']} at step {before['step']} "
                f"({before['fingerprint']}), but {path} now holds step {meta.step} "
                f"({meta.fingerprint}); use a new workdir, or restore that parent"
            )

    def same_tokenizer(self, *roles: str) -> None:
        """Refuse parents that were trained with different tokenizers."""
        first, *others = (self.parents[role] for role in roles)
        for other in others:
            if other.meta.tokenizer != first.meta.tokenizer:
                raise ValueError(
                    f"{first.path} and {other.path} have different tokenizers "
                    f"({first.meta.tokenizer[:12]} and {other.meta.tokenizer[:12]}); train one "
                    "from the other's ancestor"
                )

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of this run."""
        assert self._tokenizer is not None, "adopt_tokenizer or parent comes first"
        return self._tokenizer

    def adopt_tokenizer(self, make: Callable[[], Tokenizer]) -> Tokenizer:
        """Load the tokenizer in the workdir, or else make one and save it there."""
        folder = self.workdir / "tokenizer"
        with processes.main_process_first(f"tokenizer {folder}"):
            exists = folder.exists()
            self._tokenizer = load_tokenizer(folder) if exists else make()
            if not exists:
                with aside(folder) as unfinished:
                    self._tokenizer.save(unfinished)
        return self._tokenizer

    def lora_link(self, role: str, config: LoraConfig) -> dict[str, Any]:
        """Return what a checkpoint's meta.extra says of the base that its adapters stand on."""
        if not config.rank:
            return {}
        parent = self.parents[role]
        return describe_link(self.workdir, locate(self.workdir, parent.path), parent.meta, config)

    # --- devices ----------------------------------------------------------------------------------

    @property
    def batch_shards(self) -> int:
        """Return the number of parts that every batch is split into."""
        return meshes.batch_shards(self.mesh)

    def place(self, tree: Any) -> Any:
        """Copy a state or parameters onto the mesh, so that they may be donated."""
        return meshes.place(tree, self.shardings(tree))

    def place_frozen(self, tree: Params) -> Params:
        """Put parameters that no step trains on the mesh, without copies."""
        return meshes.place_frozen(tree, self.shardings(tree))

    def shardings(self, tree: Any) -> Any:
        """Return the sharding of each leaf."""
        return meshes.state_shardings(tree, self.mesh, self.mesh_config.fsdp_min_size)

    def shard(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Put a batch on the mesh, examples split over `batch_shards`."""
        return meshes.shard_batch(batch, self.mesh)

    def shard_stack(self, stack: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Put batches stacked along a leading axis (the minibatches of a scan) on the mesh."""
        sharding = NamedSharding(self.mesh, PartitionSpec(None, BATCH))
        return {name: meshes.put(array, sharding) for name, array in stack.items()}

    def compile_update(self, update: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
        """Jit a pure (state, batch, key) -> (state, metrics), donating the old state."""
        return meshes.jit_step(update, self.shardings(state), self.mesh)

    # --- what the user sees -----------------------------------------------------------------------

    def announce(self, config: Any, networks: Mapping[str, Params], arithmetic: str) -> None:
        """Print, before anything compiles, what this run will do."""
        if not processes.is_main_process():
            return
        print(f"== {self.stage}: {self.workdir}")
        for role, parent in self.parents.items():
            meta = parent.meta
            print(f"   {role:9s} <- {parent.path} (stage {meta.stage}, step {meta.step})")
        for name, params in networks.items():
            # By identity: leaves that two networks share count once.
            sizes = {id(leaf): leaf.size for leaf in jax.tree.leaves(params)}
            if sizes:  # an empty base is not worth a line
                print(f"   {name:9s} {sum(sizes.values()):,} parameters")
        devices = meshes.describe_mesh(self.mesh)
        print(f"   {arithmetic}; seed {config.seed}; devices {devices}", flush=True)

    def show_samples(
        self,
        step: int,
        batch: Mapping[str, Any],
        samples: Samples,
        score_B: jax.Array,
        rewards: Mapping[str, jax.Array],
    ) -> None:
        """Write some prompts, responses and scores, every `sample_every` steps.

        `rewards` are the scores by reward of which `score_B` is the weighted sum.
        """
        assert self.checkpoint is not None
        if not self.checkpoint.sample_every or step % self.checkpoint.sample_every:
            return
        samples = jax.tree.map(processes.fetch, samples)
        scores = processes.fetch(score_B)
        parts = {name: processes.fetch(rewards[name]) for name in sorted(rewards)}
        rows: list[dict[str, Any]] = []
        for b in range(_NUM_SHOWN):
            prompt = batch["prompt_BP"][b][batch["prompt_mask_BP"][b].astype(bool)]
            response = samples.tokens_BR[b, : samples.length_B[b]]
            texts = [self.tokenizer.decode(ids.tolist()) for ids in (prompt, response)]
            row = {"prompt": texts[0], "response": texts[1], "score": float(scores[b])}
            row["rewards"] = {name: float(part[b]) for name, part in parts.items()}
            rows.append({**row, "finished": bool(samples.stopped_B[b])})
        self.writer.samples(step + 1, rows)

    # --- the data ---------------------------------------------------------------------------------

    def check_data(self, *, begun: bool) -> None:
        """Write down what was read so far, or check that it is what this run began with.

        A moved folder reads the same records from another path: these are compared, not the names.

        Raises:
            ValueError: the records have changed since; names the source, and both.
        """
        now, path = remembered(), self.workdir / DATA
        with processes.main_process_first(f"data {path}"):
            # The other processes compare theirs with what process 0 has just written.
            kept = path.exists() and (begun or not processes.is_main_process())
            before = read_json(path, "delete it") if kept else {}
            for name in now.keys() & before.keys():
                old, new = ({**reading, "source": ""} for reading in (before[name], now[name]))
                if old != new:
                    raise ValueError(
                        f"{self.workdir} was begun with {_format_reading(before[name])}, but now "
                        f"there are {_format_reading(now[name])}; restore the data, or use a new "
                        "--workdir"
                    )
            if processes.is_main_process():
                write_json(path, {**before, **now}, indent=1)

    # --- the loop ---------------------------------------------------------------------------------

    def describe(
        self, kind: CheckpointKind, num_steps: int, model: TransformerConfig, **extra: Any
    ) -> Meta:
        """Return the description of the checkpoints that this run is to write."""
        parents = self.parents.items()
        return Meta(
            stage=self.stage,
            kind=kind,
            num_steps=num_steps,
            model=to_dict(model),
            tokenizer=self.tokenizer.fingerprint(),
            lineage={role: lineage_entry(parent.path, parent.meta) for role, parent in parents},
            extra=extra,
        )

    def train(
        self,
        state: TrainState,
        step_fn: Callable[[TrainState, int], tuple[TrainState, dict[str, Any]]],
        meta: Meta,
        *,
        headline: tuple[str, ...],
        export: Callable[[TrainState], Params] | None = None,
        hooks: Sequence[Hook] = (),
    ) -> TrainState:
        """Run the loop from wherever this workdir stands; arguments as in `LoopConfig`."""
        often = self.checkpoint
        assert often is not None
        self.check_data(begun=checkpoints.latest_step(self.workdir) is not None)
        config = LoopConfig(
            often.log_every, often.save_every, often.keep, headline, tuple(hooks), export
        )
        with meshes.on_mesh(self.mesh), self.writer:
            self.writer.describe(self._facts(meta))
            return run_loop(self.workdir, state, step_fn, meta, config, self.writer)

    def _facts(self, meta: Meta) -> dict[str, Any]:
        """Return what trackers are told before the first step: config.json, and what was loaded."""
        facts = {name: getattr(meta, name) for name in ("model", "tokenizer", "lineage")}
        begun = _begun(self.workdir / "config.json")
        return {**begun, "workdir": str(self.workdir), **facts}


def _format_reading(reading: Mapping[str, Any]) -> str:
    names = ("records", "crc32", "source")
    records, crc, source = (reading.get(name, "unknown") for name in names)
    return f"{records} records (CRC-32 {crc}) of {source}"


def locate(workdir: Path, path: str) -> Path:
    """Return the path that a config means: relative to the workdir if it starts with ".."."""
    return Path(os.path.normpath(workdir / path)) if path.startswith("..") else Path(path)


def claim(folder: Path, config: Any) -> None:
    """Write config.json, or check that the one there is this config's.

    Raises:
        ValueError: the folder was begun with another config; lists the fields that differ.
    """
    content = _describe(config)
    path = folder / "config.json"
    if path.exists():
        begun = _begun(path)["config"]
        changed = differences(_fixed(begun), _fixed(content["config"]))
        started = checkpoints.latest_step(folder) is not None or (folder / LABELS).exists()
        if changed and not started:
            # That run was refused or died early: there is nothing to protect.
            for name in ("tokenizer", CORPUS, TRACKING, DATA):
                remove(folder / name)
        elif changed:
            raise ValueError(
                f"{folder} was begun with another config:\n  "
                + "\n  ".join(changed)
                + "\nuse a new --workdir, delete this one, or set these fields back"
            )
    if processes.is_main_process():
        write_json(path, content, indent=2)


def _describe(config: Any) -> dict[str, Any]:
    """Return what config.json says of a run."""
    content = {"stage": config.stage, "config": json.loads(json.dumps(asdict(config)))}
    return content | {"version": __version__}


def _begun(path: Path) -> dict[str, Any]:
    """Return what config.json says of the run that began a folder."""
    remedy = "delete it, and start the run again with the config that it was begun with"
    content = read_json(path, remedy)
    if not isinstance(content.get("config"), dict):
        raise ValueError(f"{path}: damaged (it has no config); {remedy}")
    return content


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config without what may change from one run in a folder to the next."""
    elastic = {
        group: {name: config[group][name] for name in fixed if name in config[group]}
        for group, fixed in _ELASTIC.items()
        if group in config
    }
    return {**config, **elastic}


def _is_whole(path: Path) -> bool:
    try:
        return bool(read_json(path, ""))
    except (ValueError, OSError):
        return False


def is_complete(workdir: str | Path) -> bool:
    """Tell whether a run has reached its end: its last step, or the whole file of its results."""
    if any(_is_whole(Path(workdir) / results) for results in ("evaluation.json", LABELS)):
        return True
    return checkpoints.latest_step(workdir) is not None and checkpoints.read_meta(workdir).complete
