"""Do the four standard works through the package's own functions, so that stages are what is timed.

    generate   64 prompts x 32 + 64 sampled, no stop token        inference.sampling.sample
    sft        one update on 32 x 128 tokens                      stages.language, training.updates
    reward     one update on 16 pairs x 128                       stages.reward
    ppo        rollout of 64 x (32 + 64), scored,                 stages.rollout, stages.ppo
               4 epochs x 4 minibatches
    ragged     generate with stop tokens: lengths geometric, mean a quarter of the maximum; counts
               real tokens

These are the numbers of S512 and S50k; `SIZES` has all. Dropout off, random weights and tokens.

    python -m benchmarks.works --work=ppo --size=S512 --dtype=float32

Then a line `go` is needed for every run (see worker.py).
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.worker import parse_work, process_peak, serve
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.inference.sampling import sample
from rlhf_jax.models import LanguageModel, ScalarModel, TransformerConfig, gpt, init_params
from rlhf_jax.stages import ppo, reward
from rlhf_jax.stages.comparisons import prompts_with_pairs
from rlhf_jax.stages.language import language_loss, trained_tokens
from rlhf_jax.stages.rewards import Reward
from rlhf_jax.stages.rollout import Networks, Parameters, StopTokens, read_samples, sample_texts
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.processes import enable_persistent_cache, retain_memory
from rlhf_jax.training.updates import Objective, init_state, supervised_update

SPEC = PLAIN
PAD = 0
PPO_PHASES = ("generate", "score", "update")


class Size(NamedTuple):
    """Say a model's shape and how it is run, how many examples each work has, and how long."""

    width: int
    num_layers: int
    num_heads: int
    vocab_size: int
    remat: str
    attention: str
    prompts: int
    rows: int
    pairs: int
    prompt: int
    response: int
    length: int  # of rows and pairs


SIZES = {
    "S512": Size(256, 4, 8, 512, "none", "plain", 64, 32, 16, 32, 64, 128),
    "S50k": Size(256, 4, 8, 50257, "none", "plain", 64, 32, 16, 32, 64, 128),
    "M": Size(768, 12, 12, 50257, "none", "plain", 16, 4, 4, 32, 64, 128),
    # For a GPU: GPT-2 and GPT-3's 1.3B at the lengths of real work, vocabulary filled up to a
    # multiple of 128.
    "G124M": Size(768, 12, 12, 50304, "none", "fused", 128, 64, 64, 256, 256, 1024),
    "G1.3B": Size(2048, 24, 16, 50304, "block", "fused", 64, 16, 16, 256, 256, 1024),
}


class Work(NamedTuple):
    """Hold `run`, which does the work once and returns seconds by phase, and its counts."""

    run: Callable[[], dict[str, float]]
    units: float
    unit: str
    flops: float


def shape(size: Size, dtype: str) -> TransformerConfig:
    """Return GPT-2's shape."""
    config = gpt(
        vocab_size=size.vocab_size,
        width=size.width,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        dropout_rate=0.0,
        context_length=max(size.length, size.prompt + size.response),
        compute_dtype=dtype,
        param_dtype="float32",
        remat=size.remat,
    )
    return replace(config, attention=size.attention)


def matmul_params(size: Size) -> tuple[int, int]:
    """Return the parameters that multiply every token, of the trunk and the output projection."""
    return size.num_layers * 12 * size.width**2, size.width * size.vocab_size


def optimizer(num_steps: int) -> Any:
    """Return Adam with clipping, as the stages make it."""
    return make_optimizer(
        OptimizerConfig(
            learning_rate=1e-5,
            schedule="linear",
            warmup_steps=0,
            warmup_init_fraction=0.0,
            final_fraction=0.0,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            adam_style="torch",
            weight_decay=0.0,
            max_grad_norm=1.0,
        ),
        num_steps,
    )


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Return the result once it is there, and the seconds it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args, **kwargs))
    return result, time.perf_counter() - start


def _prompts(size: Size) -> dict[str, jax.Array]:
    tokens = np.random.default_rng(0).integers(2, size.vocab_size, (size.prompts, size.prompt))
    return {
        "prompt_BP": jnp.asarray(tokens, jnp.int32),
        "prompt_mask_BP": jnp.ones(tokens.shape, bool),
    }


def generate(size: Size, dtype: str, *, ragged: bool = False) -> Work:
    """Make the work of sampling from the policy.

    Random weights give nearly uniform tokens, so 4 V / R stop tokens stop after R / 4 of R.
    """
    model = LanguageModel(shape(size, dtype))
    params = init_params(model, jax.random.key(0))
    prompts = _prompts(size)
    stops = tuple(range(size.vocab_size * 4 // size.response)) if ragged else ()
    sample_all = partial(
        sample,
        model,
        params,
        prompts["prompt_BP"],
        prompts["prompt_mask_BP"],
        spec=SPEC,
        response_length=size.response,
        stop_tokens=stops,
        pad_id=PAD,
    )
    keys = iter(range(10**6))

    def run() -> dict[str, float]:
        samples, seconds = timed(sample_all, jax.random.key(next(keys) % 5))
        return {"seconds": seconds, "tokens": int(samples.length_B.sum())}

    trunk, head = matmul_params(size)
    flops = 2 * size.prompts * (trunk * (size.prompt + size.response) + head * size.response)
    return Work(run, size.prompts * size.response, "tokens", flops)


def _supervised(
    objective: Objective, params: Any, batch: dict[str, jax.Array]
) -> Callable[[], dict[str, float]]:
    adam = optimizer(10**6)
    step = jax.jit(partial(supervised_update, objective, adam), donate_argnums=0)
    state = init_state(params, adam)

    def run() -> dict[str, float]:
        nonlocal state
        (state, _), seconds = timed(step, state, batch, jax.random.key(0), {})
        return {"seconds": seconds}

    return run


def sft(size: Size, dtype: str) -> Work:
    """Make the work of one update of the language model."""
    model = LanguageModel(shape(size, dtype))
    ones = jnp.ones((size.rows, size.length), jnp.int32)
    tokens = jnp.asarray(
        np.random.default_rng(0).integers(2, size.vocab_size, ones.shape), jnp.int32
    )
    run = _supervised(
        Objective(partial(language_loss, model, 0.0), trained_tokens),
        init_params(model, jax.random.key(0)),
        {"tokens_BT": tokens, "segments_BT": ones, "loss_mask_BT": ones},
    )
    return Work(run, ones.size, "tokens", 6 * sum(matmul_params(size)) * ones.size)


def rm(size: Size, dtype: str) -> Work:
    """Make the work of one update of the reward model on pairs, one candidate to a row."""
    model = ScalarModel(shape(size, dtype))
    rows = 2 * size.pairs
    batch = {
        "tokens_NT": jnp.asarray(
            np.random.default_rng(0).integers(2, size.vocab_size, (rows, size.length)), jnp.int32
        ),
        "segments_NT": jnp.ones((rows, size.length), jnp.int32),
        "row_BC": jnp.arange(rows).reshape(-1, 2),
        "last_BC": jnp.full((size.pairs, 2), size.length - 1),
        "rank_BC": jnp.tile(jnp.arange(2)[None], (size.pairs, 1)),
        "mask_BC": jnp.ones((size.pairs, 2), bool),
    }
    settings = reward_config(size)
    objective = Objective(partial(reward.reward_loss, settings, model), prompts_with_pairs)
    run = _supervised(objective, init_params(model, jax.random.key(0)), batch)
    return Work(run, size.pairs, "pairs", 6 * matmul_params(size)[0] * rows * size.length)


def reward_config(size: Size) -> reward.Reward:
    """Return pairs, one candidate to a row, without dropout."""
    return reward.Reward(
        num_epochs=1.0,
        batch_size=size.pairs,
        num_micro_batches=1,
        max_length=size.length,
        row_length=size.length,
        max_candidates=2,
        pair_norm="num_valid_pairs",
        eval_every=1,
        loss="bradley_terry",
        batching="prompts",
        normalise="none",
        normalise_before=False,
        dropout_rate=0.0,
        read_out="last_token",
        trained="all",
    )


def ppo_config(size: Size) -> ppo.PPO:
    """Return TRL's PPO defaults on 4 epochs x 4 minibatches."""
    return ppo.PPO(
        total_episodes=size.prompts,
        batch_size=size.prompts,
        num_ppo_epochs=4,
        num_mini_batches=4,
        num_micro_batches=1,
        response_length=size.response,
        sampling_rows=0,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        kl_coef=0.05,
        kl_controller="fixed",
        kl_target=6.0,
        kl_horizon=10_000,
        kl_estimator="k1",
        gamma=1.0,
        lam=0.95,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        entropy_coef=0.0,
        missing_eos_penalty=0.0,
        missing_eos_mode="none",
        whiten_rewards=False,
        whiten_advantages="batch",
        target_kl=0.0,
        ema_decay=0.0,
        ptx_coef=0.0,
        ptx_batch_size=0,
        policy_loss="clip",
        kl_penalty_coef=0.0,
        kl_penalty_target=0.0,
    )


def ppo_iteration(size: Size, dtype: str) -> Work:
    """Measure an iteration of PPO: generate, score, update, with four separate networks."""
    config, settings = shape(size, dtype), ppo_config(size)
    networks = Networks(
        policy=LanguageModel(config),
        rewards={"model": ScalarModel(config)},
        value=ScalarModel(config),
    )
    policy = init_params(networks.policy, jax.random.key(0))
    reward_params = init_params(ScalarModel(config), jax.random.key(1))
    rewards = {"model": Reward("reward:NONE", weight=1.0, clip=0.0, normalisation="none")}
    adam = optimizer(10**6)
    trained = {"policy": policy, "value": reward_params}
    start = ppo.initial_state(cast(Any, _Coefficient(settings, rewards)), trained, adam)
    state = jax.tree.map(jnp.copy, start)
    draw = jax.jit(partial(sample_texts, networks.policy, settings, StopTokens((), PAD)))
    read = jax.jit(partial(read_samples, networks, settings.spec))
    collect = jax.jit(partial(ppo.collect, settings, rewards))
    update = jax.jit(partial(ppo.update, settings, networks, adam), donate_argnums=0)
    prompts = _prompts(size)

    def run() -> dict[str, float]:
        nonlocal state
        key = jax.random.fold_in(jax.random.key(2), int(state.step))
        sampling_key, update_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        (texts, samples), drawing = timed(draw, state.params["policy"], prompts, sampling_key)
        policy_now, value_now = state.params["policy"], state.params["value"]
        params = Parameters(policy_now, policy, {"model": reward_params}, value_now)
        readings, scoring = timed(read, params, texts)
        controllers = state.extras["controllers"]
        collected, collecting = timed(collect, texts, samples, readings, controllers)
        scoring += collecting
        data = ppo.UpdateData(collected.rollout, {}, {})
        (state, _), updating = timed(update, state, data, update_key)
        return {
            "seconds": drawing + scoring + updating,
            "generate": drawing,
            "score": scoring,
            "update": updating,
        }

    return Work(run, size.prompts, "episodes", ppo_flops(size))


class _Coefficient(NamedTuple):
    """Hold as much of a config as the initial state reads."""

    ppo: Any
    rewards: Any


def ppo_flops(size: Size) -> float:
    """Return the operations of sampling, three scoring passes and four epochs of two networks."""
    trunk, head = matmul_params(size)
    scalar = size.prompts * trunk * (size.prompt + size.response)
    once = scalar + size.prompts * head * size.response
    return 2 * once + 2 * (once + 2 * scalar) + 4 * 6 * (once + scalar)


def ceilings(size: Size, dtype: str) -> Work:
    """Make the work that measures the machine itself.

    A product of 2048 x 2048 matrices (GPU: 8192), operands in `dtype`; reading and writing 256 MB
    (4 GB).
    """
    del size
    width, length = (2048, 1 << 26) if jax.default_backend() == "cpu" else (8192, 1 << 30)
    matrix, vector = jnp.ones((width, width), dtype), jnp.ones(length)
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    copy = jax.jit(lambda x: x + 1)

    def run() -> dict[str, float]:
        _, multiplying = timed(product, matrix, matrix)
        _, copying = timed(copy, vector)
        return {"seconds": multiplying, "bandwidth": 2 * vector.nbytes / copying / 1e9}

    return Work(run, 1, "products", 2 * width**3)


def device_peak() -> float:
    """Return the MiB that the device's memory held at most; of a CPU, the process."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**20 if stats else process_peak()


WORKS: dict[str, Callable[[Size, str], Work]] = {
    "generate": generate,
    "ragged": partial(generate, ragged=True),
    "sft": sft,
    "reward": rm,
    "ppo": ppo_iteration,
    "ceilings": ceilings,
}


def main() -> None:
    """Build one work and serve it."""
    args = parse_work(__doc__, WORKS, SIZES)
    retain_memory()
    enable_persistent_cache()
    work = WORKS[args.work](SIZES[args.size], args.dtype)
    serve(work.run, device_peak, units=work.units, unit=work.unit, flops=work.flops)


if __name__ == "__main__":
    main()
