"""Do the standard works as a Tunix user does them.

    sft   Tunix's PeftTrainer, one step at a time
    ppo   its PPOLearner in a thread, stopped after every iteration by the iterator over its prompts

Runs in an environment of its own, see benchmarks/compare.py. Rows, lengths, epochs, minibatches and
the number of networks and updates are those of benchmarks/works.py. What differs:

    model      Qwen2 (Llama 3 fails in PPO, on `segment_ids`): RMSNorm, rotary positions, SwiGLU,
               embedding and output untied; nearly as many multiplications a token, but 3.4M
               parameters at S512 and 29M at S50k, where ours are 3.3M and 16M
    logits     of the prompt's tokens too, wherever policy or reference are run over whole rows
    old policy its log-probabilities come from another pass after sampling, ours from the sampler
    score      truncated to an integer: Tunix adds it to an array like the tokens
    update     the norm of the gradient once for clipping and once to report; every epoch has the
               same minibatches in one order
    prompts    go through text, without a BOS, which would take the place of a 32nd word
    rollout    all 64 prompts at once, then 4 x 4 updates of 16 rows, which no configuration of
               Tunix says: `mini_batch_size=16` rolls 16 prompts out and trains on them four times,
               and the next 16; `train_micro_batch_size=16` adds four gradients up to one update.
               See `_learner`; both took as long to within the noise of a shared machine.

`--dtype=bfloat16` is the model's `dtype`: operands and results in bfloat16, parameters in float32.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.rl.common import build_positions_from_mask, make_causal_attn_mask
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.rl.utils import create_critic_model
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

from benchmarks.worker import parse_work, serve

P, R, T = 32, 64, 128
FOREVER = 10**9
# width, layers, heads, vocabulary, prompts, rows
SIZES = {"S512": (256, 4, 8, 512, 64, 32), "S50k": (256, 4, 8, 50257, 64, 32)}


class Words:
    """Encode numbers; end and padding lie outside the vocabulary: nothing stops or is masked."""

    def __init__(self, vocab: int) -> None:
        """Set the number of words."""
        self._vocab = vocab

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        """Return 0, by which Tunix knows that there is none."""
        return 0

    def eos_id(self) -> int:
        """Return an id that is never sampled."""
        return self._vocab

    def pad_id(self) -> int:
        """Return another id that is never sampled."""
        return self._vocab + 1


def model(size: str, dtype: str) -> Qwen2:
    """Return a Qwen2 with as many weights in a layer as GPT-2's."""
    width, layers, heads, vocab = SIZES[size][:4]
    config = ModelConfig(
        num_layers=layers,
        vocab_size=vocab,
        embed_dim=width,
        hidden_dim=width // 3 * 8,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        rope_theta=10_000,
        norm_eps=1e-6,
        dtype=jnp.dtype(dtype),
    )
    return Qwen2(config, rngs=nnx.Rngs(0))


def tokens(size: str, rows: int, length: int) -> np.ndarray:
    """Return random tokens."""
    return np.random.default_rng(0).integers(2, SIZES[size][3], (rows, length), np.int32)


def optimizer() -> optax.GradientTransformation:
    """Return Adam with clipping."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-5, b1=0.9, b2=0.95))


def sft(size: str, dtype: str) -> Callable[[], dict[str, float]]:
    """Make the work of one update of the language model."""
    batch = tokens(size, SIZES[size][5], T)
    mask = jnp.ones(batch.shape, bool)
    inputs = {
        "input_tokens": jnp.asarray(batch),
        "input_mask": mask,
        "positions": build_positions_from_mask(mask),
        "attention_mask": make_causal_attn_mask(mask),
    }
    trainer = PeftTrainer(
        model(size, dtype), optimizer(), TrainingConfig(eval_every_n_steps=FOREVER)
    )
    trainer.is_managed_externally = True  # `train` goes on where it stopped

    def run() -> dict[str, float]:
        start = time.perf_counter()
        trainer.train([inputs])
        jax.block_until_ready(nnx.state(trainer.model))
        return {"seconds": time.perf_counter() - start}

    return run


def ppo(size: str, dtype: str) -> Callable[[], dict[str, float]]:
    """Run Tunix's learner in a thread that waits for every batch of prompts until told to go on."""
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    learner = _learner(size, dtype)
    trained = [learner.rl_cluster.actor_trainer.model, learner.rl_cluster.critic_trainer.model]
    prompts = [" ".join(map(str, row)) for row in tokens(size, SIZES[size][4], P)]

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            go.acquire()
            yield {"prompts": prompts}
            jax.block_until_ready([nnx.state(network) for network in trained])
            done.release()

    thread = threading.Thread(target=learner.train, args=(batches(),), daemon=True)
    thread.start()

    def run() -> dict[str, float]:
        start = time.perf_counter()
        go.release()
        while not done.acquire(timeout=1):
            if not thread.is_alive():
                raise RuntimeError("the learner ended, see above")
        return {"seconds": time.perf_counter() - start}

    return run


def _learner(size: str, dtype: str) -> PPOLearner:
    prompts = SIZES[size][4]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    training = RLTrainingConfig(
        actor_optimizer=optimizer(),
        critic_optimizer=optimizer(),
        eval_every_n_steps=FOREVER,
        max_steps=FOREVER,
        rollout_micro_batch_size=prompts,
        compute_logps_micro_batch_size=prompts,
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=R,
        max_prompt_length=P,
        kv_cache_size=P + R,
        temperature=1.0,
        top_p=1.0,
    )
    actor = model(size, dtype)
    cluster = RLCluster(
        actor=actor,
        critic=create_critic_model(actor),
        reference=nnx.clone(actor),
        reward=create_critic_model(actor, seed=1),
        tokenizer=Words(SIZES[size][3]),
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys(Role, mesh), training_config=training, rollout_config=rollout
        ),
    )
    # Set only now, the learner cuts its batch in four, and the trainers, with copies made before,
    # update after every part.
    training.train_micro_batch_size, training.gradient_accumulation_steps = prompts // 4, 4
    return PPOLearner(cluster, PPOConfig(num_iterations=4, beta=0.05, kl_method="kl"))


WORKS = {"sft": sft, "ppo": ppo}


def main() -> None:
    """Build one work and serve it."""
    args = parse_work(__doc__, WORKS, SIZES)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    serve(WORKS[args.work](args.size, args.dtype))
    os._exit(0)  # else Python waits for a thread of the learner's, which waits for prompts


if __name__ == "__main__":
    main()
