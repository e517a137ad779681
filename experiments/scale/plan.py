"""Plan whether a run fits and how fast it can be, without the devices and without a parameter.

    python -m experiments.scale.plan --config=experiments/scale/ppo_instructgpt.py \
        --mesh=data=8,fsdp=4,tensor=2 --chip=v5p

Prints what lies in the memory of one device (`memory_plan` counts it), what each phase of a step
adds to that, and the least time of a step: no phase is faster than its arithmetic, its reading of
memory or what it receives at the chip's published rates. The model FLOPs utilisation that follows
is a bound, not a forecast. Exits with 1 when the run does not fit, and says what would: changes of
the config are planned anew before they are named, more devices are reckoned.

A model is that of the checkpoint that config.init names, of the config itself (pretraining), or
gpt3:1.3b, gpt3:6b, gpt3:175b (Brown et al. 2020, table 2.1; vocabulary filled up to a multiple of
128, bfloat16 products, rematerialised blocks in one loop).

Left out on purpose: overlap of phases, latencies, and links between nodes, which are slower than
those inside.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import config_flags

from experiments.scale.memory_plan import Phase, Plan, Shapes, check, make_plan
from rlhf_jax.config import build, require
from rlhf_jax.models.config import TransformerConfig, from_dict, gpt, num_params
from rlhf_jax.stages import ppo, pretrain, sft
from rlhf_jax.stages.rewards import checkpoint_paths
from rlhf_jax.training import pretrained
from rlhf_jax.training.mesh import batch_shards, describe_mesh, make_mesh
from rlhf_jax.training.processes import enable_persistent_cache

STAGES: dict[str, Any] = {"pretrain": pretrain, "sft": sft, "ppo": ppo}
# Layers, width, heads.
GPT3 = {"1.3b": (24, 2048, 16), "6b": (32, 4096, 32), "175b": (96, 12288, 96)}
GIGA = 1e9


class Chip(NamedTuple):
    """Hold what a maker publishes: bytes, bytes/s, bfloat16 operations/s, bytes/s of all links."""

    memory: float
    bandwidth: float
    flops: float
    link: float


# Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, Jouppi et al. 2023 for the links of v4;
# NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM, dense rates. Links are all of a
# chip's together in one direction, half of both. Those of GPUs are NVLink, inside one node of
# eight; between nodes a link is usually an eighth of that, so a mesh that crosses nodes is slower
# than its bound. So is a TPU whose mesh axis does not use all axes of its torus.
CHIPS = {
    "a100": Chip(80e9, 2.039e12, 312e12, 300e9),
    "h100": Chip(80e9, 3.35e12, 989e12, 450e9),
    "h200": Chip(141e9, 4.8e12, 989e12, 450e9),
    "v4": Chip(32e9, 1.2e12, 275e12, 300e9),
    "v5e": Chip(16e9, 0.819e12, 197e12, 200e9),
    "v5p": Chip(95e9, 2.765e12, 459e12, 600e9),
    "v6e": Chip(32e9, 1.638e12, 918e12, 400e9),
}
# The rest belongs to the runtime, compiled programs and fragmentation.
USABLE = 0.92


# --- the report -----------------------------------------------------------------------------------


def seconds(phase: Phase, chip: Chip, num_devices: int) -> dict[str, float]:
    """Return the least time that each resource allows a phase."""
    arithmetic = (phase.flops + phase.again) / num_devices / chip.flops
    return {
        "arithmetic": arithmetic,
        "memory": phase.read / chip.bandwidth,
        "links": phase.received / chip.link,
    }


def report(plan: Plan, chip: Chip, num_devices: int) -> list[str]:
    """Return lines of memory, traffic, operations and time."""
    sizes = dict(plan.resident)
    for phase in plan.phases:
        sizes |= {f"{phase.name}: {name}": size for name, size in phase.memory.items()}
    sizes[f"peak, in {hungriest(plan).name}"] = plan.peak
    lines = [f"memory per device, GB (of {chip.memory / GIGA:.0f})"]
    lines += [f"  {name:36s} {size / GIGA:10.3f}" for name, size in sizes.items()]
    lines += [
        "a step, at least       seconds by            PFLOP in all   GB received by each device"
    ]
    least = [seconds(phase, chip, num_devices) for phase in plan.phases]
    for phase, times in zip(plan.phases, least, strict=True):
        slowest = max(times, key=lambda name: times[name])
        counted = f"{phase.flops / 1e15:15.3f} {phase.received / GIGA:15.3f}"
        lines.append(f"  {phase.name:16s} {times[slowest]:11.3f} {slowest:11s} {counted}")
    total = sum(max(times.values()) for times in least)
    useful = sum(phase.flops for phase in plan.phases)
    received = sum(phase.received for phase in plan.phases)
    lines.append(
        f"  {'in all':16s} {total:11.3f} {'':11s} {useful / 1e15:15.3f} {received / GIGA:15.3f}"
    )
    share = 100 * useful / (total * num_devices * chip.flops)
    return [*lines, f"model FLOPs utilisation at most {share:.1f} %"]


def hungriest(plan: Plan) -> Phase:
    """Return the phase that decides the peak."""
    return max(plan.phases, key=lambda phase: sum(phase.memory.values()))


# --- what would fit -------------------------------------------------------------------------------


class Change(NamedTuple):
    """Hold another config, or models of another shape, and the words for it."""

    text: str
    config: Any
    shapes: Shapes


def changes(config: Any, shapes: Shapes, phase: str, cut: float) -> Iterator[Change]:
    """Yield what may bring a phase down to 1/cut of its memory, the mildest first.

    Of an update: blocks rematerialised, more micro-batches, both; these change no result. Of
    sampling and judging: a smaller batch.
    """
    stage = getattr(config, config.stage)
    powers = [2**k for k in range(1, 8) if 2**k >= cut][:2]
    again = {name: replace(shape, remat="block") for name, shape in shapes.items()}
    remat = "" if again == shapes else f"remat=block in the model{'s' if len(shapes) > 1 else ''}"
    if phase == "update" and remat:
        yield Change(remat, config, again)
    if phase == "update":
        field, values = "num_micro_batches", [stage.num_micro_batches * power for power in powers]
    else:
        field, size = "batch_size", stage.batch_size
        values = [size // power for power in powers if size % power == 0]
    for value in values:
        changed = replace(config, **{config.stage: replace(stage, **{field: value})})
        yield Change(f"{config.stage}.{field}={value}", changed, shapes)
        if phase == "update" and remat:
            yield Change(f"{config.stage}.{field}={value} and {remat}", changed, again)


def room_for(config: Any, shapes: Shapes, mesh: Mesh, times: int) -> str:
    """Return the axis of the mesh that admits so many times the devices; "" if none does."""
    try:
        check(config, batch_shards(mesh) * times)
    except ValueError:
        tensor = mesh.shape["tensor"] * times
        sizes = [(x.num_heads, x.ffw_width, x.vocab_size) for x in shapes.values()]
        return "" if any(size % tensor for row in sizes for size in row) else "tensor"
    return "fsdp"


def remedy(plan: Plan, chip: Chip, config: Any, shapes: Shapes, mesh: Mesh, *, fill: float) -> str:
    """Say why a plan does not fit and what would, with one change of the config; "" if it fits."""
    room, resident, phase = USABLE * chip.memory, sum(plan.resident.values()), hungriest(plan)
    if plan.peak <= room:
        return ""
    advice = []
    if resident < room:
        cut = sum(phase.memory.values()) / (room - resident)
        for change in changes(config, shapes, phase.name, cut):
            try:
                changed = make_plan(change.config, change.shapes, mesh, fill=fill)
            except ValueError:  # the stage would refuse it
                continue
            if changed.peak <= room:
                advice.append(f"{change.text} ({changed.peak / GIGA:.3f} GB per device)")
                break
    times = next(2**k for k in range(1, 64) if plan.peak / 2**k <= room)
    if axis := room_for(config, shapes, mesh, times):
        advice.append(f"{times} x the devices along {axis}, if all of it divides")
    advice += [
        f"--chip={name}" for name, other in CHIPS.items() if plan.peak <= USABLE * other.memory
    ]
    remedies = "; or ".join(advice) or "nothing that was tried; use a smaller model"
    return (
        f"does not fit: {plan.peak / GIGA:.3f} GB per device in {phase.name}, {room / GIGA:.3f} GB "
        f"usable of {chip.memory / GIGA:.3f}. Would fit: {remedies}"
    )


# --- command line ---------------------------------------------------------------------------------


def shape_of(name: str) -> TransformerConfig:
    """Return a model by name (gpt3:6b) or of a checkpoint, whose parameters are not read.

    Raises:
        ValueError: the name is unknown, or relative to a workdir.
        FileNotFoundError: there is no checkpoint.
    """
    known = ", ".join(f"gpt3:{size}" for size in GPT3)
    require(
        not name.startswith(".."),
        f"config.init: {name} is relative to a workdir, which a plan does not have; give the "
        f"path of a checkpoint, or one of {known}",
    )
    if not name.startswith("gpt3:"):
        return from_dict(pretrained.read_meta(name).model)
    size = name.removeprefix("gpt3:")
    require(size in GPT3, f"config.init: {name} is not one of {known}")
    layers, width, heads = GPT3[size]
    shape = gpt(
        vocab_size=50_304,
        context_length=2048,
        width=width,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        compute_dtype="bfloat16",
        param_dtype="float32",
        remat="block",
    )
    return replace(shape, scan_layers=True)


def parse_mesh(text: str) -> dict[str, int]:
    """Return `data=8,fsdp=32` as numbers; an axis that is not named is 1."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    for part in text.split(","):
        name, _, number = part.partition("=")
        require(
            name in sizes and number.isdecimal() and int(number) > 0,
            f"--mesh={text}: expected data=N,fsdp=N,tensor=N, got {part!r}",
        )
        sizes[name] = int(number)
    return sizes


def models_of(config: Any) -> Shapes:
    """Return the shapes of "policy" and, for ppo, of reward models by the names of rewards."""
    if config.stage == "pretrain":
        return {"policy": config.mesh.run_as(config.model)}
    names = {"policy": config.init.policy}
    if config.stage == "ppo":
        names |= checkpoint_paths(config.rewards)
    return {role: config.mesh.run_as(shape_of(name)) for role, name in names.items()}


def plan_run(raw: Mapping[str, Any], mesh: Mesh, chip: Chip, *, fill: float) -> Iterator[str]:
    """Yield the report, line by line.

    Raises:
        ValueError: at its end, with the remedy, if the run does not fit.
    """
    stage = raw["stage"]
    require(stage in STAGES, f"config.stage: {stage} is not planned; {', '.join(STAGES)} are")
    require(0 < fill <= 1, f"--fill={fill}: expected a part of the longest example, 0 < fill <= 1")
    config = build(STAGES[stage].Config, raw)
    shapes = models_of(config)
    sizes = ", ".join(
        f"{name} of {num_params(shape) / GIGA:.3g} B parameters" for name, shape in shapes.items()
    )
    yield f"== {config.stage} on {mesh.size} devices, {describe_mesh(mesh)}; {sizes}"
    plan = make_plan(config, shapes, mesh, fill=fill)
    print(file=sys.stderr)  # ends the line of dots, one for every program
    yield from report(plan, chip, mesh.size)
    advice = remedy(plan, chip, config, shapes, mesh, fill=fill)
    require(not advice, advice)


def _plan(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)
    arguments = flags.FLAGS
    try:
        sizes = parse_mesh(arguments.mesh)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", math.prod(sizes.values()))
        enable_persistent_cache()
        mesh, chip = make_mesh(**sizes), CHIPS[arguments.chip]
        for line in plan_run(arguments.config, mesh, chip, fill=arguments.fill):
            print(line, flush=True)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def main(argv: Sequence[str] | None = None) -> None:
    """Plan the run that the command line names."""
    sys.argv = [sys.argv[0], *(sys.argv[1:] if argv is None else argv)]
    config_flags.DEFINE_config_file(
        "config", None, "Experiment file with get_config().", lock_config=True
    )
    flags.DEFINE_string("mesh", "data=1", "Devices, as data=8,fsdp=32,tensor=1.")
    flags.DEFINE_enum("chip", "h200", list(CHIPS), "Whose rates and memory to count with.")
    flags.DEFINE_float("fill", 1.0, "Mean length of an example, as a part of the longest.")
    flags.mark_flags_as_required(["config"])
    app.run(_plan)


if __name__ == "__main__":
    main()
