"""Name what every random key of a run is for.

A run has one key, made from `config.seed`. Every other key is folded from it, so that no key is
ever carried from step to step or saved:

    step t          key_t = fold_in(key, t)               dropout of the supervised stages
      sampling      fold_in(key_t, Purpose.SAMPLING)      the responses of step t
      update        fold_in(key_t, Purpose.UPDATE)        the order of rows in every epoch, dropout
    once in a run   fold_in(key, RunPurpose.X)            what is drawn before step 0

Numbers of 2³⁰ and more are beyond the steps of any run. Renumbering a purpose changes results.
"""

from enum import IntEnum

import jax


class Purpose(IntEnum):
    """Name what a key is for within one training step."""

    SAMPLING = 0
    UPDATE = 1


class RunPurpose(IntEnum):
    """Name what a key is for that a run uses once; no stage has two of one number."""

    LABEL_TRAIN = 2  # responses that are ranked for training (label)
    LABEL_VALIDATION = 3  # responses that are ranked for validation (label)
    MODEL = 1 << 30  # all parameters of a new model (pretrain)
    HEAD = 1 << 30  # the head of a reward model (reward) or of a classifier (classify)
    VALUE_MODEL = 1 << 30  # the value function, unless it starts as the reward model (ppo)
    ADAPTERS = 1 << 30  # the adapters of a language model (sft, preference, policy_gradient)
    REWARD_ADAPTERS = (1 << 30) + 1  # the adapters of a reward model (reward)
    POLICY_ADAPTERS = (1 << 30) + 1  # the adapters of the policy (ppo)
    VALUE_ADAPTERS = (1 << 30) + 2  # the adapters of the value function (ppo)


class EvaluationPurpose(IntEnum):
    """Name what a key is for within one evaluation, which has no steps."""

    RESPONSES = 0
    FACTS = 1
    TOXICITY = 2
    KL = 3
    BEST_OF = 4


def step_key(seed_key: jax.Array, step: int) -> jax.Array:
    """Return the key of a whole step, for stages that draw for one purpose only."""
    return jax.random.fold_in(seed_key, step)


def purpose_key(seed_key: jax.Array, step: int, purpose: Purpose) -> jax.Array:
    """Return the key of one purpose within a step."""
    return jax.random.fold_in(step_key(seed_key, step), purpose)


def run_key(seed_key: jax.Array, purpose: RunPurpose | EvaluationPurpose) -> jax.Array:
    """Return the key of a purpose that a run, or an evaluation, has once."""
    return jax.random.fold_in(seed_key, purpose)
