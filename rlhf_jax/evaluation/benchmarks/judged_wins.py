"""Which of two checkpoints a reward model prefers, on prompts that neither has seen.

    every checkpoint answers every prompt S times; the judge scores each answer
    win rate        (wins + ½ ties) / comparisons of sample s with sample s; intervals resample prompts
    length control  the rate as it would be for answers of equal length, in characters (`evaluation.win_rate`)

A score does not depend on which answer is shown first, so there are no positions to exchange. The judge reads text with its
own tokenizer: checkpoints and judge may have different ones. A reward model that a policy was trained on prefers it for
that alone; take another one as judge, or read the number as how far training got.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import judges, win_rate
from rlhf_jax.evaluation.benchmarks.asking import by_group, of_kept
from rlhf_jax.evaluation.benchmarks.rows import Data, Measured, kept_questions, left_out
from rlhf_jax.evaluation.estimates import Bootstrap, clustered_mean
from rlhf_jax.evaluation.generate import generate
from rlhf_jax.evaluation.likelihood import Continuation, scores
from rlhf_jax.evaluation.measure import Candidate
from rlhf_jax.evaluation.table import Row
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.models.heads import Params, ScalarModel

GROUP = "Preferred by a reward model"


def measure(
    one: Candidate, tokenizer: Tokenizer, prompts: Sequence[Prompt], *, spec: SamplingSpec, response_length: int,
    samples_per_prompt: int, batch_size: int, seed: int,
) -> Data:  # fmt: skip
    """Answers to the prompts that leave room for `response_length` tokens."""
    room = one.model.config.context_length - response_length
    rendered = render_batch(tokenizer, [prompt.messages for prompt in prompts], generation_prompt=True)

    def answer(fitting: list[Prompt]) -> list[list[tuple[str, bool]]]:
        drawn = generate(
            *one, tokenizer, fitting, jax.random.key(seed), spec=spec, prompt_length=room, response_length=response_length,
            batch_size=batch_size, num_samples=samples_per_prompt,
        )  # fmt: skip
        return [[(answer.text, answer.finished) for answer in few] for few in drawn]

    found = of_kept([len(one.ids) <= room for one in rendered], prompts, answer)
    return {"kept": kept_questions(found), "answers": [few for few in found if few is not None]}


def score(
    judge: tuple[ScalarModel, Params], tokenizer: Tokenizer, prompts: Sequence[Prompt], answers: Data, *, batch_size: int
) -> Data:
    """The judge's score of every answer (N, S); prompts whose answers do not all fit the judge's context are left out."""
    asked = [prompts[place].messages for place in answers["kept"]]
    rendered = render_batch(tokenizer, asked, generation_prompt=True)
    encoded = iter(tokenizer.encode_batch([text for few in answers["answers"] for text, _ in few], special=False))
    groups = [
        [Continuation(prompt.ids, _ended(next(encoded), finished, tokenizer.turn_end_id)) for _, finished in few]
        for prompt, few in zip(rendered, answers["answers"], strict=True)
    ]
    found = by_group(scores, judge, groups, batch_size=batch_size)
    kept = [place for place, one in zip(answers["kept"], found, strict=True) if one is not None]
    lengths = [[len(text) for text, _ in few] for few, one in zip(answers["answers"], found, strict=True) if one is not None]
    return {"kept": kept, "scores": [one for one in found if one is not None], "lengths": lengths}


def _ended(ids: list[int], finished: bool, end_id: int) -> list[int]:
    """With the token that ends a turn where the policy ended its answer, or said nothing that can be read."""
    return [*ids, end_id] if finished or not ids else ids


def rows(prompts: Sequence[Prompt], measured: Measured, reference: str, bootstrap: Bootstrap) -> list[Row]:
    """Win rates against the reference on the prompts that both answered, and the scores themselves."""
    rate, controlled = {}, {}
    for name in measured:
        shared = sorted(set(measured[name]["kept"]) & set(measured[reference]["kept"]))
        if name == reference or not shared:
            continue
        ours, theirs = _on(shared, measured[name]), _on(shared, measured[reference])
        # Equal to six decimals is a tie, as for the judge of the embedded world.
        preference_NS1 = judges.gold_preferences(ours["scores"], theirs["scores"])[..., None]
        rate[name] = win_rate.win_rate(preference_NS1, bootstrap)
        controlled[name] = win_rate.length_controlled(preference_NS1, ours["lengths"] - theirs["lengths"])
    score_of = {name: np.array(data["scores"], np.float64) for name, data in measured.items() if data["kept"]}
    mean = {
        name: clustered_mean(score_NS.ravel(), np.repeat(np.arange(len(score_NS)), score_NS.shape[1]), bootstrap)
        for name, score_NS in score_of.items()
    }
    return [
        Row(GROUP, f"preferred to {reference} by the judge", "", "higher", "reward model; ties are half a win", rate,
            "win_rate_model", reference),
        Row(GROUP, f"preferred to {reference} by the judge, length-controlled", "", "higher",
            "as it would be for answers of equal length (Dubois et al. 2024)", controlled),
        Row(GROUP, "score by the judge", "", "none", "mean over answers", mean),
        *left_out(GROUP, measured, len(prompts), "prompts"),
    ]  # fmt: skip


def _on(places: Sequence[int], data: Data) -> Mapping[str, np.ndarray]:
    """Scores and lengths of these prompts' answers."""
    chosen = np.isin(data["kept"], places)
    return {key: np.array(data[key], np.float64)[chosen] for key in ("scores", "lengths")}
