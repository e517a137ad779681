"""Say what a run would do, as far as that is known without doing any of it.

    arithmetic   what the stage itself checks before anything compiles
    parameters   of the policy: by the config, a checkpoint that is there, or an earlier stage
    memory       weights, and gradients with Adam's moments of what is trained, float32 or as the
                 model stores them; activations and the sampler's cache come on top, which
                 `rlhf-jax plan` compiles and measures

Nothing is written and no data are read; what cannot be known yet is said.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.config import require
from rlhf_jax.models.config import num_params
from rlhf_jax.stages import label, policy_gradient, ppo, preference, sft
from rlhf_jax.stages.language import check_batches
from rlhf_jax.training.mesh import batch_shards, describe_mesh, make_mesh
from rlhf_jax.training.pretrained import count_params
from rlhf_jax.training.run import locate

# What each stage checks of its config and the number of devices that share a batch.
CHECKS: dict[str, Callable[[Any, int], None]] = {
    "sft": sft.check,
    "ppo": ppo.check,
    "label": lambda config, _: label.check(config.label),
    "policy_gradient": lambda config, n: policy_gradient.check(config.policy_gradient, n),
    "preference": lambda config, n: preference.check(config.preference, n),
    "pretrain": lambda config, n: _check_batches(config, n),
    "reward": lambda config, n: _check_batches(config, n),
    "classify": lambda config, n: _check_batches(config, n),
}
# Fields that say how long a stage is, in the order in which they are shown.
LENGTHS = (
    *("num_steps", "num_epochs", "total_episodes", "num_prompts"),
    *("batch_size", "num_micro_batches", "num_mini_batches", "num_ppo_epochs"),
    *("row_length", "response_length", "samples_per_prompt"),
)
BYTES = 4  # a weight; its gradient and both of Adam's moments are of the same size


def describe_run(stages: Mapping[str, Any], workdir: Path) -> Iterator[str]:
    """Yield what every stage would do; `stages` has built configs by folder ("" for one stage).

    Raises:
        ValueError: the arithmetic of a stage does not come out even, or a mesh does not fit.
        FileNotFoundError: a parent is neither there nor made by an earlier stage.
    """
    known: dict[Path, int | None] = {}
    for name, config in stages.items():
        folder = workdir / name
        yield f"== {config.stage}: {folder}"
        yield from _describe_stage(config, folder, known)
    yield "nothing was done: leave out --dry_run to run it"


def _describe_stage(config: Any, folder: Path, known: dict[Path, int | None]) -> Iterator[str]:
    devices = "one process"
    shards = 1
    if hasattr(config, "mesh"):
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        shards, devices = batch_shards(mesh), f"devices {describe_mesh(mesh)}"
    if config.stage in CHECKS:
        CHECKS[config.stage](config, shards)
    groups = vars(config)
    settings = vars(groups[config.stage]) if config.stage in groups else {}
    lengths = [f"{n} {settings[n]}" for n in LENGTHS if settings.get(n) is not None]
    if "total_episodes" in settings:
        lengths.insert(0, f"{settings['total_episodes'] // settings['batch_size']} updates")
    yield f"   {', '.join([*lengths, f'seed {config.seed}', devices])}"
    if config.stage in ("evaluate", "benchmark"):
        for name, path in config.checkpoints.items():
            yield f"   {name:9s} <- {path}{_size(_count(folder, path, known))}"
        return
    if config.stage == "pretrain":
        count: int | None = num_params(config.mesh.run_as(config.model))
        yield f"   policy    <- scratch{_size(count)}"
    else:
        count = _count(folder, config.init.policy, known)
        yield f"   policy    <- {config.init.policy}{_size(count)}"
    if config.stage != "label":
        known[folder] = count
    if count is not None and hasattr(config, "optimizer"):
        yield f"   {_memory(config, count)}"


def _check_batches(config: Any, num_devices: int) -> None:
    settings = vars(config)[config.stage]
    check_batches(config.stage, settings.batch_size, settings.num_micro_batches, num_devices)


def _count(folder: Path, path: str, known: Mapping[Path, int | None]) -> int | None:
    """Return a parent's number of parameters; None if the hub has it and this machine does not."""
    place = locate(folder, path)
    if place in known:
        return known[place]
    if path.startswith("hub:"):
        return None  # counting it would fetch it
    require(
        path.startswith("hf:") or place.is_dir(),
        f"{path}: there is no {place}, and no stage before this one makes it; run that first",
    )
    return count_params(place)


def _size(count: int | None) -> str:
    return "" if count is None else f", {count:,} parameters"


def _memory(config: Any, count: int) -> str:
    """Return a line on the weights of all networks and on what training the policy adds."""
    rank = config.lora.rank if hasattr(config, "lora") else 0
    networks = 1
    if config.stage in ("ppo", "policy_gradient", "preference"):
        networks += 1  # the reference
    if config.stage == "ppo":
        networks += 1  # the value network
    trained = (2 if config.stage == "ppo" else 1) if not rank else 0
    held = BYTES * count * (networks + 3 * trained) / 1e9
    notes = f"{networks} networks like the policy" if networks > 1 else "one network"
    adapters = f", adapters of rank {rank} beside" if rank else ", gradients and Adam's moments"
    return (
        f"memory    {held:.3g} GB for {notes} in float32{adapters}; "
        "activations, reward models and the sampler's cache come on top (rlhf-jax plan)"
    )
