"""Keys are functions of the seed, the step and a named purpose."""

import jax
import pytest

from rlhf_jax.training.keys import (
    EvaluationPurpose,
    Purpose,
    RunPurpose,
    purpose_key,
    run_key,
    step_key,
)

SEED_KEY = jax.random.key(0)


@pytest.mark.parametrize("purpose", Purpose)
def test_a_purpose_is_folded_into_the_key_of_its_step(purpose: Purpose) -> None:
    expected = jax.random.fold_in(jax.random.fold_in(SEED_KEY, 7), int(purpose))
    assert purpose_key(SEED_KEY, 7, purpose) == expected
    assert step_key(SEED_KEY, 7) == jax.random.fold_in(SEED_KEY, 7)


@pytest.mark.parametrize("purpose", [*RunPurpose, *EvaluationPurpose])
def test_what_is_drawn_once_has_a_key_beside_those_of_steps(purpose: RunPurpose) -> None:
    assert run_key(SEED_KEY, purpose) == jax.random.fold_in(SEED_KEY, int(purpose))


def test_numbers_of_purposes_are_those_that_published_runs_were_made_with() -> None:
    assert [int(purpose) for purpose in Purpose] == [0, 1]
    assert {name: int(purpose) for name, purpose in RunPurpose.__members__.items()} == {
        "LABEL_TRAIN": 2,
        "LABEL_VALIDATION": 3,
        "MODEL": 2**30,
        "HEAD": 2**30,
        "VALUE_MODEL": 2**30,
        "ADAPTERS": 2**30,
        "REWARD_ADAPTERS": 2**30 + 1,
        "POLICY_ADAPTERS": 2**30 + 1,
        "VALUE_ADAPTERS": 2**30 + 2,
    }
    assert [int(purpose) for purpose in EvaluationPurpose] == [0, 1, 2, 3, 4]
