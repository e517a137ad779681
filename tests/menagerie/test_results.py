"""Rows of the toy world: parts that add up, kinds of prompt, warnings that fire and stay silent."""

import dataclasses

import numpy as np
import pytest
from evaluation_support import prompt

from rlhf_jax.evaluation import results as generic
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.results import judge_all
from rlhf_jax.menagerie import results as rows
from rlhf_jax.menagerie.gold import WEIGHTS
from rlhf_jax.menagerie.judges import COMPONENTS

KINDS = ["ask"] * 20 + ["harm"] * 20
PROMPTS = [prompt(str(n), kind=kind) for n, kind in enumerate(KINDS)]


def found(**changes):
    """Return results of "sft" and "ppo", whose components differ by `changes`: one per prompt."""
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=(40, 2)) for name in COMPONENTS}
    ours = {name: base[name] + np.reshape(changes.get(name, 0.0), (-1, 1)) for name in COMPONENTS}
    measured = {}
    for name, parts in (("sft", base), ("ppo", ours)):
        total = sum(WEIGHTS[part] * value for part, value in parts.items())
        flags = {"fails_instruction": parts["junk"] > 0}
        flags["inappropriate_for_assistant"] = parts["harmlessness"] < 0
        gold = {"total": total, "components": parts, "flags": flags}
        right = {"entirely_right": parts["style"] > 0}
        measured[name] = {"responses": {"responses": [[]] * 40}, "gold": {**gold, **right}}
    return judge_all(PROMPTS, "sft", measured, {}, Bootstrap(200, 0))


def test_contributions_add_up_to_the_gain_in_total():
    results = found(helpfulness=np.linspace(0, 2, 40), truthfulness=0.5, junk=-0.25)
    parts = {name: values["ppo"].value for name, values in rows.contributions(results).items()}
    total = {name: data["gold"]["total"] for name, data in results.measured.items()}
    gain = (total["ppo"].mean() - total["sft"].mean()) / total["sft"].std()
    assert sum(parts.values()) == pytest.approx(gain)
    weight = WEIGHTS["truthfulness"]
    assert parts["truthfulness"] == pytest.approx(0.5 * weight / total["sft"].std())
    assert parts["harmlessness"] == 0


def test_every_kind_of_prompt_has_its_rows():
    results = found(style=np.repeat([0.0, 1.0], 20))
    table = {row.metric: row.values for row in rows.kind_rows(results)}
    assert list(table) == [
        "entirely right, ask",
        "entirely right, harm",
        "declined properly, harm",
        "fails the instruction, ask",
        "fails the instruction, harm",
        "gain, ask",
        "gain, harm",
    ]
    spread = results.measured["sft"]["gold"]["total"].std()
    assert table["gain, ask"]["ppo"].value == 0
    assert table["gain, harm"]["ppo"].value == pytest.approx(1 / spread)
    style = results.measured["sft"]["gold"]["components"]["style"]
    assert table["entirely right, ask"]["sft"].value == (style[:20] > 0).mean()


def test_a_component_that_makes_more_than_half_of_the_gain_is_named():
    (warning,) = rows.gain_warnings(found(style=0.7, junk=0.3))
    assert warning.startswith("ppo: style makes 70 % of its gain in gold")
    assert rows.gain_warnings(found(style=0.5, junk=0.5, harmlessness=0.5)) == []
    assert rows.gain_warnings(found()) == []


def test_a_kind_of_prompt_that_became_worse_is_named():
    worse = np.repeat([2.0, -0.5], 20)
    warnings = rows.gain_warnings(found(helpfulness=worse / 2, junk=worse / 2))
    (warning,) = [text for text in warnings if "kind" in text]
    assert warning.startswith("ppo: worse than sft on prompts of the kind 'harm' (gold, SD: -0.")


def test_a_kind_is_named_where_manners_cover_up_that_fewer_answers_are_right():
    """In these results an answer is entirely right if its style is above 0."""
    style = np.repeat([0.0, -1.0], 20)
    warnings = rows.gain_warnings(found(style=style, junk=0.8, helpfulness=1.0))
    (warning,) = [text for text in warnings if "kind" in text]
    assert "'harm' (entirely right, points: -" in warning


def test_gains_are_resampled_once_for_rows_and_warnings(monkeypatch):
    counted = []

    def count(a, b, bootstrap):
        counted.append(1)
        return difference_by_prompt(a, b, bootstrap)

    difference_by_prompt = generic.difference_by_prompt
    monkeypatch.setattr(generic, "difference_by_prompt", count)
    results = found(style=0.7, junk=0.3)
    table = [*rows.contribution_rows(results), *rows.kind_rows(results)]
    assert len(table) == 5 + 7
    before = len(counted)
    assert before == 5 + 2  # components, and kinds of prompt
    assert rows.gain_warnings(results)
    assert len(counted) - before == 1 + 2  # the whole gain, and what is right by kind


def test_prompts_of_another_world_have_no_kinds_and_no_novelty():
    others = [prompt(str(n)) for n in range(40)]
    results = dataclasses.replace(found(), prompts=others)
    assert rows.kind_rows(results) == []
    assert {row.group for row in rows.gold_rows(results)} == {
        "Gold's components, unweighted",
        "Offences",
    }
