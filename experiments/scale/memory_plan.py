"""Count what a run demands of every device from shapes, without devices and without a parameter.

    state      bytes of every network and of Adam's moments on one device: exact
    programs   the very steps that the stage runs, compiled ahead of time for the mesh: what XLA
               lays out beside the state (activations, gradients, cache), and what devices send
    depth      a deep model is compiled with two and with three layers (passes without gradients:
               one and two) and continued in a straight line, because a layer costs what the one
               before it costs
    flops      2 per weight and token and pass, and attention over half of the row

Rows are taken as full and responses as long as they may be; `fill` says which part of them is real,
where rows are packed.

Left out on purpose: reward modelling and classification (they cost what sft costs), adapters
(refused), what a monitor samples. The compiler is XLA's for CPU, which holds what it rounds to
bfloat16 in float32 as well: an upper bound for such models.
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.scale.hlo_stats import bytes_on_a_device, measure
from rlhf_jax.config import require
from rlhf_jax.inference.packing import Texts, row_bucket
from rlhf_jax.inference.sampling import rows_at_once
from rlhf_jax.models import apply, cast_for_compute, init_cache
from rlhf_jax.models.config import TransformerConfig, num_params
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params
from rlhf_jax.models.layout import BATCH
from rlhf_jax.stages import ppo as ppo_stage
from rlhf_jax.stages.language import check_batches, language_loss, trained_tokens
from rlhf_jax.stages.rewards import checkpoint_paths
from rlhf_jax.stages.rollout import Networks, Parameters, StopTokens, read_samples, sample_texts
from rlhf_jax.training.mesh import batch_shards, check_model, jit_step, state_shardings
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.updates import Objective, TrainState, init_state, supervised_update

Shapes = dict[str, TransformerConfig]
ITEM = {"float32": 4, "bfloat16": 2}
FORWARD, TRAINED = 1, 2  # layers of the shallower of two programs


class Phase(NamedTuple):
    """Describe a part of a step: memory and traffic of each device, operations of all together."""

    name: str
    memory: dict[str, float]  # bytes beside the state, by name
    received: float  # bytes from other devices
    flops: float  # useful ones
    again: float = 0.0  # flops that backward passes do again
    read: float = 0.0  # bytes from memory


class Plan(NamedTuple):
    """Hold what lies in a device's memory all the time, by name, and the phases of a step."""

    resident: dict[str, float]
    phases: list[Phase]

    @property
    def peak(self) -> float:
        """Bytes: everything resident, and the hungriest phase."""
        return sum(self.resident.values()) + max(
            sum(phase.memory.values()) for phase in self.phases
        )


def make_plan(config: Any, shapes: Shapes, mesh: Mesh, *, fill: float = 1.0) -> Plan:
    """Plan a run of pretrain, sft or ppo; `shapes` has "policy" and, for ppo, its reward models.

    `fill` is the mean length of an example as a part of the longest.

    Raises:
        ValueError: the arithmetic does not come out even, as in the stage itself, or there are
            adapters.
    """
    for shape in shapes.values():
        check_model(shape, mesh)
    check(config, batch_shards(mesh))
    require(
        config.stage == "pretrain" or config.lora.rank == 0,
        "lora.rank > 0: adapters are not planned; plan with rank 0, which bounds them",
    )
    return (_Ppo if config.stage == "ppo" else _Supervised)(config, shapes, mesh, fill).plan()


def check(config: Any, shards: int) -> None:
    """Refuse, as the stage would, a batch that micro-batches and `shards` do not divide."""
    stage = getattr(config, config.stage)
    if config.stage == "ppo":
        ppo_stage.check(config, shards)
    else:
        check_batches(config.stage, stage.batch_size, stage.num_micro_batches, shards)


# --- abstract arrays and compiled programs --------------------------------------------------------


def rows_of(mesh: Mesh, dtype: Any, *shape: int, axis: int = 0) -> Any:
    """Return an abstract array whose rows, along `axis`, are split over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def with_layers(program: Callable[..., np.ndarray], *layers: int, shallow: int) -> np.ndarray:
    """Continue to these numbers of layers what a program measures with `shallow` and one more."""
    base = [min(shallow, number) for number in layers]
    measured = total = program(*base)
    for place, number in enumerate(layers):
        if number > shallow:
            slope = program(*base[:place], shallow + 1, *base[place + 1 :]) - measured
            total = total + (number - shallow) * np.maximum(slope, 0)
    return total


def forward_flops(shape: TransformerConfig, tokens: float, length: int) -> float:
    """Return 2 per weight and token, and attention over half of a row.

    A tied or separate output projection counts once.
    """
    embeddings = 0 if shape.tie_embeddings else shape.vocab_size * shape.width
    weights = num_params(shape) - embeddings
    attention = shape.num_layers * shape.num_heads * shape.head_width * length
    return tokens * (2 * weights + 2 * attention)


def _again(shape: TransformerConfig, forward: float) -> float:
    return forward if shape.remat == "block" else 0.0


def _abstract_params(module: Any) -> Any:
    return jax.eval_shape(lambda: init_params(module, jax.random.key(0)))


class _Run:
    """Hold a run's sizes on a mesh; its trees are abstract arrays where the run would put them."""

    def __init__(self, config: Any, shapes: Shapes, mesh: Mesh, fill: float) -> None:
        self.config, self.mesh, self.fill = config, mesh, fill
        self.policy, self.shapes = shapes["policy"], shapes
        self.key = jax.eval_shape(lambda: jax.random.key(0))

    def on(self, tree: Any, fsdp_min_size: int = 0) -> Any:
        min_size = fsdp_min_size or self.config.mesh.fsdp_min_size
        shardings = state_shardings(tree, self.mesh, min_size)
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
        )

    def params(self, module: Any) -> Any:
        return self.on(_abstract_params(module))

    def step(self, update: Any, state: TrainState) -> Any:
        return jit_step(update, jax.tree.map(lambda leaf: leaf.sharding, state), self.mesh)


# --- stages ---------------------------------------------------------------------------------------


class _Supervised(_Run):
    """Pretraining and fine-tuning: one program, the update."""

    def plan(self) -> Plan:
        config, shards = self.config, batch_shards(self.mesh)
        stage: Any = getattr(config, config.stage)
        if config.stage == "pretrain":
            length, dropout = self.policy.context_length, self.policy.dropout_rate
            z_loss_coef, rows = stage.z_loss_coef, stage.batch_size
        else:
            length, dropout, z_loss_coef = stage.row_length, stage.dropout_rate, 0.0
            rows = math.ceil(stage.batch_size * self.fill * stage.max_length / length)
            rows += stage.document_rows
        unit = stage.num_micro_batches * shards
        rows = math.ceil(rows / unit) * unit
        dtypes = {"tokens_BT": jnp.int32, "segments_BT": jnp.int32, "loss_mask_BT": bool}
        batch = {name: rows_of(self.mesh, dtype, rows, length) for name, dtype in dtypes.items()}
        optimizer = make_optimizer(config.optimizer, 10**6)
        keeps_best = config.stage == "sft" and stage.select != "last"

        def state_of(layers: int) -> TrainState:
            params = _abstract_params(LanguageModel(replace(self.policy, num_layers=layers)))
            extras = {"best": params} if keeps_best else {}
            return self.on(jax.eval_shape(lambda p: init_state(p, optimizer, extras), params))

        def program(layers: int) -> np.ndarray:
            shape = replace(self.policy, num_layers=layers, dropout_rate=dropout)
            loss = partial(language_loss, LanguageModel(shape), z_loss_coef)
            objective = Objective(loss, trained_tokens, stage.num_micro_batches)
            update = partial(supervised_update, objective, optimizer)
            state = state_of(layers)
            return measure(self.mesh, self.step(update, state), (state,), (batch, self.key, {}))

        state = state_of(self.policy.num_layers)
        resident = {
            "policy": bytes_on_a_device(state.params),
            "Adam": bytes_on_a_device(state.opt_state),
            "best so far": bytes_on_a_device(state.extras),
        }
        held, received = with_layers(program, self.policy.num_layers, shallow=TRAINED)
        forward = forward_flops(self.policy, rows * length, length)
        memory, again = {"activations, gradients": held}, _again(self.policy, forward)
        update = Phase("update", memory, received, 3 * forward, again)
        return Plan({name: size for name, size in resident.items() if size}, [update])


class _Ppo(_Run):
    """PPO: four networks, three phases that are never in memory together."""

    def __init__(self, config: Any, shapes: Shapes, mesh: Mesh, fill: float) -> None:
        super().__init__(config, shapes, mesh, fill)
        shards = batch_shards(mesh)
        self.ppo = config.ppo
        self.rewards = {name: shapes[name] for name in checkpoint_paths(config.rewards)}
        from_reward = config.init.value == "reward"
        self.value = next(iter(self.rewards.values())) if from_reward else self.policy
        self.prompt, self.response = config.data.prompt_length, config.ppo.response_length
        require(
            self.prompt + self.response <= self.policy.context_length,
            f"data.prompt_length + ppo.response_length = {self.prompt + self.response} exceeds the "
            f"policy's context of {self.policy.context_length}; shorten one of them",
        )
        self.optimizer = ppo_stage.make_optimizers(config)
        micro = self.ppo.batch_size // (self.ppo.num_mini_batches * self.ppo.num_micro_batches)
        self.collect_rows, self.update_rows = (
            row_bucket(math.ceil(fill * size), size, shards)
            for size in (self.ppo.batch_size, micro)
        )

    @property
    def sampled_at_once(self) -> int:
        """Rows of the sampler's cache, on all devices."""
        return rows_at_once(self.ppo.batch_size, self.ppo.sampling_rows, batch_shards(self.mesh))

    def networks(self, policy_layers: int, value_layers: int) -> Networks:
        rewards = {
            name: ScalarModel(replace(shape, num_layers=min(value_layers, shape.num_layers)))
            for name, shape in self.rewards.items()
        }
        return Networks(
            policy=LanguageModel(replace(self.policy, num_layers=policy_layers)),
            rewards=rewards,
            value=ScalarModel(replace(self.value, num_layers=value_layers)),
        )

    def texts(self, num_rows: int) -> Texts:
        row = partial(rows_of, self.mesh)
        size, prompt, response = self.ppo.batch_size, self.prompt, self.response
        return Texts(
            prompt_BP=row(jnp.int32, size, prompt),
            prompt_mask_BP=row(bool, size, prompt),
            response_BR=row(jnp.int32, size, response),
            mask_BR=row(bool, size, response),
            num_rows=num_rows,
        )

    def rollout(self, num_rows: int) -> ppo_stage.Rollout:
        number_BR = rows_of(self.mesh, jnp.float32, self.ppo.batch_size, self.response)
        return ppo_stage.Rollout(
            texts=self.texts(num_rows),
            logp_BR=number_BR,
            value_BR=number_BR,
            advantage_BR=number_BR,
            return_BR=number_BR,
            score_B=rows_of(self.mesh, jnp.float32, self.ppo.batch_size),
            stopped_B=rows_of(self.mesh, bool, self.ppo.batch_size),
        )

    def state(self, networks: Networks) -> TrainState:
        params = {
            "policy": _abstract_params(networks.policy),
            "value": _abstract_params(networks.value),
        }
        return self.on(
            jax.eval_shape(
                lambda p: ppo_stage.initial_state(self.config, p, self.optimizer), params
            )
        )

    def draw(self, policy_layers: int) -> np.ndarray:
        policy, texts = self.networks(policy_layers, 1).policy, self.texts(0)
        call = partial(sample_texts, policy, self.ppo, StopTokens((0,), 0))
        prompts = {"prompt_BP": texts.prompt_BP, "prompt_mask_BP": texts.prompt_mask_BP}
        return measure(self.mesh, jax.jit(call), (self.params(policy),), (prompts, self.key))

    def token(self, policy_layers: int) -> np.ndarray:
        """Draw one more token for every row, with parameters that are gathered over fsdp."""
        model, rows = self.networks(policy_layers, 1).policy, self.sampled_at_once
        cache = jax.eval_shape(lambda: init_cache(model.config, rows, self.prompt + self.response))
        heads = "tensor" if cache.keys[0].shape[1] % self.mesh.shape["tensor"] == 0 else None
        split = NamedSharding(self.mesh, PartitionSpec(BATCH, heads))
        keys = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) for x in cache.keys)
        cache = cache._replace(
            keys=keys,
            values=keys,
            segments_BS=rows_of(self.mesh, jnp.int32, *cache.segments_BS.shape),
        )

        def step(params: Any, token_B1: jax.Array, cache: Any) -> Any:
            hidden_B1D, cache = apply(
                model, params, token_B1, jnp.ones_like(token_B1), cache=cache, method="hidden"
            )
            return apply(model, params, hidden_B1D[:, 0], method="unembed"), cache

        return measure(
            self.mesh,
            jax.jit(step, donate_argnums=2),
            (self.gathered(model),),
            (rows_of(self.mesh, jnp.int32, rows, 1), cache),
        )

    def gathered(self, model: LanguageModel) -> Any:
        """Return the policy's parameters as the sampler reads them."""
        params = jax.eval_shape(
            partial(cast_for_compute, config=model.config), _abstract_params(model)
        )
        return self.on(params, fsdp_min_size=sys.maxsize)

    def read(self, policy_layers: int, value_layers: int) -> np.ndarray:
        networks = self.networks(policy_layers, value_layers)
        policy = self.params(networks.policy)
        rewards = {name: self.params(model) for name, model in networks.rewards.items()}
        params = Parameters(policy, policy, rewards, self.params(networks.value))
        call = jax.jit(partial(read_samples, networks, self.ppo.spec))
        return measure(self.mesh, call, (params,), (self.texts(self.collect_rows),))

    def update(self, policy_layers: int, value_layers: int) -> np.ndarray:
        ppo, networks = self.ppo, self.networks(policy_layers, value_layers)
        update = partial(ppo_stage.update, ppo, networks, self.optimizer)
        blocks = (
            ppo.num_ppo_epochs * ppo.num_mini_batches,
            ppo.ptx_batch_size,
            self.policy.context_length,
        )
        block = rows_of(self.mesh, jnp.int32, *blocks, axis=1)
        documents = {"tokens_BT": block, "segments_BT": block} if ppo.ptx_coef else {}
        state = self.state(networks)
        data = ppo_stage.UpdateData(self.rollout(self.update_rows), documents, {})
        return measure(self.mesh, self.step(update, state), (state,), (data, self.key))

    def plan(self) -> Plan:
        policy, value, ppo = self.policy, self.value, self.ppo
        rewards = list(self.rewards.values())
        depths = (policy.num_layers, value.num_layers)
        state = self.state(self.networks(*depths))
        reading = [self.params(ScalarModel(shape)) for shape in rewards]
        sizes = {name: bytes_on_a_device(tree) for name, tree in state.params.items()}
        resident = {
            **sizes,
            "reference": sizes["policy"],
            "reward": bytes_on_a_device(reading),
            "Adam of both": bytes_on_a_device(state.opt_state),
            "average of policy": bytes_on_a_device(state.extras.get("ema", {})),
        }
        length, epochs = self.prompt + self.response, ppo.num_ppo_epochs
        read = self.fill * ppo.batch_size * length
        forward = {shape: forward_flops(shape, read, length) for shape in (policy, value, *rewards)}
        num_blocks = ppo.ptx_batch_size * ppo.num_mini_batches * epochs if ppo.ptx_coef else 0
        context = policy.context_length
        mixed = forward_flops(policy, num_blocks * context, context)
        trained = {policy: epochs * forward[policy] + mixed}
        trained[value] = trained.get(value, 0.0) + epochs * forward[value]
        judged, judge_received = with_layers(self.read, *depths, shallow=FORWARD)
        updated, update_received = with_layers(self.update, *depths, shallow=TRAINED)
        judging = sum(forward[shape] for shape in (policy, value, *rewards))
        again = sum(_again(shape, flops) for shape, flops in trained.items())
        memory, flops = {"activations, gradients": updated}, 3 * sum(trained.values())
        phases = [
            self._rollout_phase(forward[policy]),
            Phase("judge", {"activations": judged}, judge_received, judging),
            Phase("update", memory, update_received, flops, again),
        ]
        return Plan({name: size for name, size in resident.items() if size}, phases)

    def _rollout_phase(self, flops: float) -> Phase:
        """Take what the sampler holds, reading prompts or then token by token, whichever is more.

        Of few layers, as compiled, prompts may need more where of all the cache does. It is sent
        what its program is and, for every token, what one is; every token reads the weights, and
        the cache so far.
        """
        shape, tensor, steps = self.policy, self.mesh.shape["tensor"], self.fill * self.response
        held, received_once = with_layers(self.draw, shape.num_layers, shallow=FORWARD)
        stepping, received = with_layers(self.token, shape.num_layers, shallow=FORWARD)
        held = max(held, stepping + bytes_on_a_device(self.gathered(LanguageModel(shape))))
        shared = tensor if shape.num_kv_heads % tensor == 0 else 1
        rows = self.sampled_at_once / batch_shards(self.mesh)
        per_slot = rows * 2 * shape.num_layers * shape.num_kv_heads * shape.head_width * 4 / shared
        cache = per_slot * (self.prompt + self.response)
        weights = num_params(shape) * ITEM[shape.compute_dtype] / tensor
        read = self.response * (weights + per_slot * (self.prompt + steps / 2))
        memory = {"cache": cache, "activations, weights": held - cache}
        return Phase("rollout", memory, received_once + self.response * received, flops, read=read)
