"""Best-of-n as a policy: draw n responses to every prompt and say the one that the reward model scores highest.

    π_n(y | x):  y_1..y_n ~ π(.|x);  y = argmax_i r(x, y_i)            KL(π_n ‖ π) = log n - (n-1)/n (`best_of_n_kl`)

What differs from PPO: nothing is trained; every answer costs n. To measure it for many n at once from one pool of samples,
without drawing anew, use `best_of_n` of experiments/ablations/fits.py on the scores of `measure.score_responses`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.generate import Generation, generate
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.menagerie.measurements import LoadedModel, score_responses
from rlhf_jax.models.heads import Params, ScalarModel


class Best(NamedTuple):
    """What best-of-n says to a prompt, and the score for which it was chosen."""

    response: Generation
    score: float


def best_of_n(
    policy: LoadedModel,
    reward: tuple[ScalarModel, Params],
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    key: jax.Array,
    *,
    n: int,
    spec: SamplingSpec,
    prompt_length: int,
    response_length: int,
    batch_size: int,
) -> list[Best]:
    """The best of n responses to every prompt; a finished one beats all that are not.

    Raises ValueError if n is less than 1.
    """
    if n < 1:
        raise ValueError(f"best_of_n: n = {n}, expected 1 or more")
    drawn = generate(
        policy.model,
        policy.params,
        tokenizer,
        prompts,
        key,
        spec=spec,
        prompt_length=prompt_length,
        response_length=response_length,
        batch_size=batch_size,
        num_samples=n,
    )
    score_NS = score_responses(reward, tokenizer, prompts, drawn, batch_size=batch_size)
    finished_NS = np.array([[one.finished for one in few] for few in drawn])
    best_N = np.where(
        finished_NS | ~finished_NS.any(axis=1, keepdims=True), score_NS, -np.inf
    ).argmax(axis=1)
    return [
        Best(few[best], float(score_S[best]))
        for few, score_S, best in zip(drawn, score_NS, best_N, strict=True)
    ]
