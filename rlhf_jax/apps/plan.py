"""Does a run fit, and how fast can it be: counted from shapes, without the devices and without a parameter.

    python -m rlhf_jax.apps.plan --config=experiments/scale/ppo_instructgpt.py --mesh=data=8,fsdp=32 --chip=v5p

    state      bytes of every network and of Adam's moments on one device: shapes and shardings, exact
    programs   the very steps that the stage runs, compiled ahead of time for the mesh on virtual devices: what XLA lays out
               beside their arguments (activations, gradients), and what the devices send each other. Compiled with one and
               two layers and continued in a straight line, because a layer costs what the one before it costs. Sampling, a
               program of loops, is counted by hand
    time       no phase is faster than its arithmetic, its reading of memory or its sending at the chip's published rates

A model is that of the checkpoint that config.init names, of the config itself (pretraining), or gpt3:1.3b, gpt3:6b, gpt3:175b
(Brown et al. 2020, table 2.1; vocabulary filled up to a multiple of 128; bfloat16 products, rematerialised blocks).
Exits with 1 when it does not fit, and says what would.

Left out on purpose: reward modelling and classification (they cost what sft costs), adapters, overlap of phases. The compiler
is XLA's for CPU, which holds what it rounds to bfloat16 in float32 as well: memory is then an upper bound.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_flags

from rlhf_jax.apps.chips import CHIPS, USABLE, Chip
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.maths.returns import RunningMoments
from rlhf_jax.models.config import TransformerConfig, from_dict, gpt, num_params
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params
from rlhf_jax.models.layout import BATCH
from rlhf_jax.stages import ppo as ppo_stage
from rlhf_jax.stages import pretrain, sft
from rlhf_jax.stages.configuration import build, require
from rlhf_jax.stages.language import language_loss, weigh_tokens
from rlhf_jax.stages.rollouts import Frozen, Models, RewardRules, Rollout, judge_samples
from rlhf_jax.training import parents
from rlhf_jax.training.compilation import enable_persistent_cache
from rlhf_jax.training.gradients import make_supervised_update
from rlhf_jax.training.mesh import batch_shards, check_model, describe_mesh, jit_step, make_mesh, on_mesh, state_shardings
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.programs import collectives
from rlhf_jax.training.state import apply_gradients, init_state

GPT3 = {"1.3b": (24, 2048, 16), "6b": (32, 4096, 32), "175b": (96, 12288, 96)}  # layers, width, heads
STAGES: dict[str, Any] = {"pretrain": pretrain, "sft": sft, "ppo": ppo_stage}
ITEM = {"float32": 4, "bfloat16": 2}


class Cost(NamedTuple):
    """Of one call of a program on one device: bytes beside its arguments, bytes that arrive from others."""

    temporary: float
    received: float


class Phase(NamedTuple):
    """A part of a step: how often its program runs, what that costs, the useful operations of all devices, bytes read."""

    name: str
    calls: int
    cost: Cost
    flops: float
    read: float = 0.0

    @property
    def received(self) -> float:
        """Bytes that arrive at each device in all calls."""
        return self.calls * self.cost.received

    def seconds(self, chip: Chip, num_devices: int) -> dict[str, float]:
        """The least time of each resource."""
        return {"arithmetic": self.flops / num_devices / chip.flops, "memory": self.read / chip.bandwidth,
                "links": self.received / chip.link}  # fmt: skip


class Plan(NamedTuple):
    """What lies in a device's memory all the time, by name, and the phases of a step."""

    resident: dict[str, float]
    phases: list[Phase]

    @property
    def peak(self) -> float:
        """Bytes: everything resident, and the hungriest phase."""
        return sum(self.resident.values()) + max(phase.cost.temporary for phase in self.phases)


def make_plan(config: Any, shapes: dict[str, TransformerConfig], mesh: Mesh) -> Plan:
    """Count a run of pretrain, sft or ppo; `shapes` has the model of "policy" and, for ppo, "reward".

    Raises ValueError as the stage itself does for arithmetic that does not come out even.
    """
    for shape in shapes.values():
        check_model(shape, mesh)
    if config.stage == "ppo":
        return _ppo(config, shapes, mesh)
    return _supervised(config, shapes["policy"], mesh)


# --- abstract arrays and compiled programs ------------------------------------------------------------------


def _on(mesh: Mesh, tree: Any, min_size: int) -> Any:
    """Abstract arrays with the shardings of parameters or states."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree, state_shardings(tree, mesh, min_size),
    )  # fmt: skip


def _rows(mesh: Mesh, dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(BATCH)))


def bytes_on_a_device(tree: Any) -> float:
    """Of abstract arrays with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _measure(mesh: Mesh, function: Any, *arguments: Any) -> np.ndarray:
    """(temporary, received) of a jitted function. A ring passes an all-reduce round twice, anything else once."""
    print(".", end="", file=sys.stderr, flush=True)
    with on_mesh(mesh):
        compiled = function.lower(*arguments).compile()
    received = sum((2 if one.kind == "all-reduce" else 1) * one.num_bytes for one in collectives(compiled))
    return np.array([compiled.memory_analysis().temp_size_in_bytes, received], float)


def _continue(measure: Callable[..., np.ndarray], *layers: int, forward: bool = False) -> Cost:
    """A program's cost at these numbers of layers, from those at one, and at two in one place at a time.

    A forward pass keeps nothing of a layer for later: what the hungriest of these programs holds is enough for all layers.
    """
    one = [1] * len(layers)
    base = measure(*one)
    found = [base] + [measure(*one[:place], 2, *one[place + 1 :]) for place, number in enumerate(layers) if number > 1]
    deeper = [number - 1 for number in layers if number > 1]
    total = base + sum((more * np.maximum(two - base, 0) for more, two in zip(deeper, found[1:], strict=True)), np.zeros(2))
    return Cost(max(temporary for temporary, _ in found) if forward else total[0], total[1])


def _deep(shape: TransformerConfig, layers: int) -> TransformerConfig:
    return replace(shape, num_layers=layers)


def _forward_flops(shape: TransformerConfig, tokens: float, length: int) -> float:
    """2 per weight and token, and attention over half of the row."""
    weights = num_params(shape) - shape.vocab_size * shape.width * (0 if shape.tie_embeddings else 1)
    return tokens * (2 * weights + 2 * shape.num_layers * shape.num_heads * shape.head_width * length)


def _abstract_params(module: Any) -> Any:
    return jax.eval_shape(lambda: init_params(module, jax.random.key(0)))


# --- stages -------------------------------------------------------------------------------------------------


def _supervised(config: Any, shape: TransformerConfig, mesh: Mesh) -> Plan:
    stage = config.pretrain if config.stage == "pretrain" else config.sft
    length = shape.context_length if config.stage == "pretrain" else stage.row_length
    rows = stage.batch_size
    if config.stage == "sft":
        rows = math.ceil(rows * stage.max_length / length) + stage.document_rows  # what padding to max_length would need
    unit = stage.num_micro_batches * batch_shards(mesh)
    rows = math.ceil(rows / unit) * unit
    optimizer = make_optimizer(config.optimizer, 10**6)

    def state_of(layers: int) -> Any:
        params = _abstract_params(LanguageModel(_deep(shape, layers)))
        return _on(mesh, jax.eval_shape(lambda p: init_state(p, optimizer), params), config.mesh.fsdp_min_size)

    def measure(layers: int) -> np.ndarray:
        state, micro = state_of(layers), rows // stage.num_micro_batches
        batch = {name: _rows(mesh, jnp.int32, micro, length) for name in ("tokens_BT", "segments_BT", "loss_mask_BT")}
        loss = language_loss(LanguageModel(_deep(shape, layers)), z_loss_coef=0.0, dropout=False)
        update = make_supervised_update(loss, weigh_tokens, optimizer, num_micro_batches=1)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        return _measure(mesh, jit_step(update, shardings, mesh), state, batch, jax.random.key(0))

    state = state_of(shape.num_layers)
    resident = {"policy": bytes_on_a_device(state.params), "Adam of policy": bytes_on_a_device(state.opt_state)}
    if stage.num_micro_batches > 1:
        resident["gradient sums"] = resident["policy"]
    flops = 3 * _forward_flops(shape, rows * length, length)
    return Plan(resident, [Phase("update", stage.num_micro_batches, _continue(measure, shape.num_layers), flops)])


def _ppo(config: Any, shapes: dict[str, TransformerConfig], mesh: Mesh) -> Plan:
    ppo_stage.check(config, batch_shards(mesh))
    policy, reward = shapes["policy"], shapes["reward"]
    ppo = config.ppo
    value = reward if config.init.value == "reward" else policy
    prompt, response = config.data.prompt_length, ppo.response_length
    require(prompt + response <= policy.context_length, f"data.prompt_length + ppo.response_length = {prompt + response} "
            f"exceeds the policy's context of {policy.context_length}; shorten one of them")  # fmt: skip
    spec = SamplingSpec(temperature=ppo.temperature, top_k=0, top_p=1.0, nucleus="holtzman")
    optimizer = make_optimizer(config.optimizer, 10**6)
    on = partial(_on, mesh, min_size=config.mesh.fsdp_min_size)

    def models_of(policy_layers: int, value_layers: int) -> Models:
        judge = ScalarModel(_deep(reward, min(value_layers, reward.num_layers)))
        return Models(LanguageModel(_deep(policy, policy_layers)), ScalarModel(_deep(value, value_layers)), judge)

    def trained(models: Models) -> Any:
        return {"policy": _abstract_params(models.policy), "value": _abstract_params(models.value)}

    def rollout_of(rows: int) -> Rollout:
        wide = {"prompt_BP": (jnp.int32, prompt), "prompt_mask_BP": (bool, prompt), "response_BR": (jnp.int32, response),
                "mask_BR": (bool, response), **dict.fromkeys(Rollout._fields[4:8], (jnp.float32, response))}  # fmt: skip
        flat = {"score_B": _rows(mesh, jnp.float32, rows), "stopped_B": _rows(mesh, bool, rows)}
        return Rollout(**{name: _rows(mesh, dtype, rows, size) for name, (dtype, size) in wide.items()}, **flat)

    micro = ppo.batch_size // ppo.num_mini_batches // ppo.num_micro_batches
    one = replace(ppo, num_micro_batches=1)

    def update(policy_layers: int, value_layers: int) -> np.ndarray:
        models = models_of(policy_layers, value_layers)
        state = on(jax.eval_shape(lambda p: init_state(p, optimizer), trained(models)))
        gradients = ppo_stage.make_gradients(models, one, spec)
        block = {name: _rows(mesh, jnp.int32, max(ppo.ptx_batch_size // ppo.num_micro_batches, 1), policy.context_length)
                 for name in ("tokens_BT", "segments_BT")} if ppo.ptx_coef else {}  # fmt: skip

        def step(state: Any, minibatch: Rollout, block: Any) -> Any:
            grads, metrics = gradients(state.params, minibatch, block)
            return apply_gradients(state, grads, optimizer), metrics

        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        return _measure(mesh, jit_step(step, shardings, mesh), state, rollout_of(micro), block)

    def judge(policy_layers: int, value_layers: int) -> np.ndarray:
        models, rows = models_of(policy_layers, value_layers), rollout_of(ppo.batch_size)
        rules = RewardRules(kl_estimator=ppo.kl_estimator, missing_eos_penalty=0.0, missing_eos_mode="none", score_clip=0.0,
                            score_normalisation="none", whiten_rewards=False, whiten_advantages="batch", gamma=1.0,
                            lam=0.95)  # fmt: skip
        number: Any = jax.ShapeDtypeStruct((), jnp.float32)
        frozen = Frozen(on(_abstract_params(models.policy)), on(_abstract_params(models.reward)))
        samples = Samples(rows.response_BR, rows.logp_BR, _rows(mesh, jnp.int32, ppo.batch_size), rows.stopped_B)
        prompts = {"prompt_BP": rows.prompt_BP, "prompt_mask_BP": rows.prompt_mask_BP}
        call = partial(judge_samples, models, spec=spec, rules=rules)
        return _measure(mesh, jax.jit(call), on(_abstract_params(models.value)), frozen, prompts, samples, number,
                        RunningMoments(number, number, number))  # fmt: skip

    whole = models_of(policy.num_layers, value.num_layers)
    sizes = {name: bytes_on_a_device(on(tree)) for name, tree in trained(whole).items()}
    moments = bytes_on_a_device(on(jax.eval_shape(optimizer.init, trained(whole))))
    resident = {**sizes, "Adam of both": moments, "reference": sizes["policy"],
                "reward": bytes_on_a_device(on(_abstract_params(ScalarModel(reward))))}  # fmt: skip
    if ppo.ema_decay:
        resident["average of policy"] = sizes["policy"]
    if ppo.num_micro_batches > 1:
        resident["gradient sums"] = sizes["policy"] + sizes["value"]

    length, tokens = prompt + response, float(ppo.batch_size * (prompt + response))
    forward = {shape: _forward_flops(shape, tokens, length) for shape in (policy, value, reward)}
    epochs = ppo.num_ppo_epochs
    ptx_tokens = ppo.ptx_batch_size * ppo.num_mini_batches * epochs * policy.context_length if ppo.ptx_coef else 0
    updates = epochs * ppo.num_mini_batches * ppo.num_micro_batches
    layers = (policy.num_layers, value.num_layers)
    return Plan(resident, [
        _rollout(policy, ppo, prompt, forward[policy], mesh),
        Phase("judge", 1, _continue(judge, *layers, forward=True), forward[policy] + forward[value] + forward[reward]),
        Phase("update", updates, _continue(update, *layers),
              3 * epochs * (forward[policy] + forward[value])
              + 3 * _forward_flops(policy, ptx_tokens, policy.context_length)),
    ])  # fmt: skip


def _rollout(shape: TransformerConfig, ppo: Any, prompt: int, flops: float, mesh: Mesh) -> Phase:
    """Sampling, counted by hand: its loops are not in a program's account.

    It holds the weights rounded once, the cache, beside it a part of the cache that is being grown or halved, and logits. Every
    token reads the weights and the cache filled so far, and over fsdp gathers the weights anew.
    """
    fsdp, tensor, response = mesh.shape["fsdp"], mesh.shape["tensor"], ppo.response_length
    weights = num_params(shape) * ITEM[shape.compute_dtype] / tensor
    rows = ppo.batch_size / batch_shards(mesh)
    per_slot = rows * 2 * shape.num_layers * shape.num_kv_heads * shape.head_width * 4 / tensor
    held = per_slot * (prompt + response + max(prompt, (prompt + response) / 2))
    held += (weights / fsdp if shape.compute_dtype != "float32" else 0) + 3 * 4 * rows * shape.vocab_size / tensor
    summed = 2 * 2 * shape.num_layers * rows * shape.width * 4 * (tensor - 1) / tensor
    received = response * (weights * (fsdp - 1) / fsdp + summed)
    read = response * (weights + per_slot * (prompt + response / 2))
    return Phase("rollout", 1, Cost(held, received), flops, read)


# --- the report ---------------------------------------------------------------------------------------------


def report(plan: Plan, chip: Chip, mesh: Mesh) -> list[str]:
    """Lines of memory and time, and what would make it fit if it does not."""
    giga = 1e9
    lines = [f"memory per device, GB of {chip.memory / giga:.0f}"]
    lines += [f"  {name:18s} {size / giga:10.3f}" for name, size in plan.resident.items()]
    for phase in plan.phases:
        lines.append(f"  {'in ' + phase.name:18s} {phase.cost.temporary / giga:10.3f}  activations, gradients, cache")
    lines += [f"  {'peak':18s} {plan.peak / giga:10.3f}", "a step, at least"]
    total = 0.0
    for phase in plan.phases:
        seconds = phase.seconds(chip, mesh.size)
        slowest = max(seconds, key=lambda name: seconds[name])
        total += seconds[slowest]
        lines.append(f"  {phase.name:8s} {seconds[slowest]:10.3f} s by {slowest:10s} {phase.flops / 1e15:12.2f} PFLOP, "
                     f"{phase.received / giga:10.2f} GB received by each device, {phase.calls} calls")  # fmt: skip
    mfu = sum(phase.flops for phase in plan.phases) / (total * mesh.size * chip.flops)
    return [*lines, f"  {'in all':8s} {total:10.3f} s; model FLOPs utilisation at most {100 * mfu:.0f} %"]


def remedy(plan: Plan, chip: Chip) -> str:
    """What would make a plan fit; "" if it does."""
    room = USABLE * chip.memory
    if plan.peak <= room:
        return ""
    resident = sum(plan.resident.values())
    hungriest = max(plan.phases, key=lambda phase: phase.cost.temporary)
    temporary = hungriest.cost.temporary
    advice = [f"{2**k} x the devices, along fsdp" for k in range(1, 12) if (resident + temporary) / 2**k <= room][:1]
    if resident < room:
        cut = math.ceil(temporary / (room - resident))
        field = "num_micro_batches" if hungriest.name == "update" else "batch_size"
        advice.append(f"{hungriest.name} on {cut} x fewer rows at once ({field})")
    advice += [f"chip {name}" for name, other in CHIPS.items() if plan.peak <= USABLE * other.memory]
    return (
        f"does not fit: {plan.peak / 1e9:.1f} GB per device, {room / 1e9:.1f} GB usable of {chip.memory / 1e9:.0f}. "
        f"Would fit, about: {'; '.join(advice) or 'no single change; more devices and fewer rows at once'}"
    )


# --- command line -------------------------------------------------------------------------------------------


def shape_of(name: str) -> TransformerConfig:
    """A model by name (gpt3:6b) or of a checkpoint, whose parameters are not read."""
    if not name.startswith("gpt3:"):
        return from_dict(parents.read_meta(name).model)
    size = name.removeprefix("gpt3:")
    require(size in GPT3, f"{name}: known are {', '.join(f'gpt3:{known}' for known in GPT3)}")
    layers, width, heads = GPT3[size]
    return gpt(vocab_size=50_304, context_length=2048, width=width, num_layers=layers, num_heads=heads, dropout_rate=0.0,
               compute_dtype="bfloat16", param_dtype="float32", remat="block")  # fmt: skip


def parse_mesh(text: str) -> dict[str, int]:
    """`data=8,fsdp=32` as numbers; an axis that is not named is 1."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    for part in text.split(","):
        name, _, number = part.partition("=")
        require(name in sizes and number.isdecimal(), f"--mesh={text}: expected data=N,fsdp=N,tensor=N, got {part!r}")
        sizes[name] = int(number)
    return sizes


_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file with get_config().", lock_config=True)
_MESH = flags.DEFINE_string("mesh", "data=1", "Devices, as data=8,fsdp=32,tensor=1.")
_CHIP = flags.DEFINE_enum("chip", "h200", list(CHIPS), "Whose rates and memory to count with.")


def _main(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    try:
        sizes = parse_mesh(_MESH.value)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", math.prod(sizes.values()))
        enable_persistent_cache()
        raw = _CONFIG.value
        require(raw["stage"] in STAGES, f"config.stage: {raw['stage']} is not planned; {', '.join(STAGES)} are")
        config, mesh, chip = build(STAGES[raw["stage"]].Config, raw), make_mesh(**sizes), CHIPS[_CHIP.value]
        shapes = {"policy": config.model} if config.stage == "pretrain" else {"policy": shape_of(config.init.policy)}
        if config.stage == "ppo":
            shapes["reward"] = shape_of(config.init.reward)
        parameters = ", ".join(f"{name} {num_params(shape) / 1e9:.3g} B parameters" for name, shape in shapes.items())
        print(f"== {config.stage} on {mesh.size} x {_CHIP.value}, {describe_mesh(mesh)}; {parameters}", flush=True)
        plan = make_plan(config, shapes, mesh)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(report(plan, chip, mesh)))
    if advice := remedy(plan, chip):
        sys.exit(advice)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(_main)
