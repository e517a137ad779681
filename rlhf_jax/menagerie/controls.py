"""Make the control of manners: the reference's answers after one rule that anybody could write.

    take all politeness out, or leave it  ->  append one constant sentence, the same to every answer

The rule is the best that gold finds for the very answers that are measured. That favours the
control a little, which is the side on which a control should err. No model is asked, nothing is
sampled. What a policy gains over its reference and this rule gains as well is manners.

Left out on purpose: rules that look at the prompt.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rlhf_jax.data.records import Prompt
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.evaluation.likelihood import text_continuations
from rlhf_jax.evaluation.measurements import Context, Responses
from rlhf_jax.evaluation.table import Data
from rlhf_jax.menagerie import grammar, judges
from rlhf_jax.menagerie.test_questions import QuestionSet
from rlhf_jax.menagerie.world import World

_PREFACES = tuple(template.partition("{fact}")[0] for template in grammar.TEMPLATES["note"])


class Rule(NamedTuple):
    """Say whether politeness is taken out of an answer, and what is appended ("" is nothing)."""

    strip: bool
    suffix: str

    @property
    def description(self) -> str:
        """Return the rule in words."""
        end = f"end with {self.suffix!r}" if self.suffix else "append nothing"
        return f"take polite sentences out, {end}" if self.strip else end


RULES = tuple(
    Rule(strip, suffix and f"{suffix}.")
    for strip in (False, True)
    for suffix in ("", *grammar.TEMPLATES["polite"])
)


def strip_politeness(text: str) -> str:
    """Take out every sentence that is nothing but polite, and polite prefaces of facts."""
    kept = []
    for sentence in grammar.sentences_of(text):
        kinds = {act.kind for act in grammar.read_sentence(sentence)}
        if kinds != {"polite"}:
            preface = next((p for p in _PREFACES if sentence.startswith(p)), "")
            kept.append(sentence.removeprefix(preface) if "polite" in kinds else sentence)
    return " ".join(kept)


def apply_rule(rule: Rule, text: str) -> str:
    """Return an answer after the rule."""
    text = strip_politeness(text) if rule.strip else text
    return f"{text} {rule.suffix}".strip() if rule.suffix else text


def best_rule(world: World, prompts: Sequence[Prompt], responses: Responses) -> Rule:
    """Return the rule with the highest mean of gold over these answers, the first of equal ones."""

    def worth(rule: Rule) -> float:
        return float(judges.judge(world, prompts, _by_rule(rule, responses)).total_NS.mean())

    return max(RULES, key=worth)


def _by_rule(rule: Rule, responses: Responses) -> Responses:
    """Apply the rule to every answer that ended by itself; to others nothing can be appended."""
    return [
        [
            sample._replace(text=apply_rule(rule, sample.text)) if sample.finished else sample
            for sample in samples
        ]
        for samples in responses
    ]


def constant_suffix(loaded: LoadedModel, context: Context) -> Data:
    """Return the reference's answers after the best rule, where there is room for it."""
    del loaded
    assert isinstance(context.questions, QuestionSet)
    assert context.responses is not None, "the reference's responses are measured first"
    rule = best_rule(context.questions.world, context.prompts, context.responses)
    changed = _by_rule(rule, context.responses)
    encoded = text_continuations(context.tokenizer, context.prompts, changed)
    room = context.settings.responses.response_length
    answers = [
        [
            old if new == old or len(item.ids) > room else _encoded(new, item.ids)
            for old, new, item in zip(*rows, strict=True)
        ]
        for rows in zip(context.responses, changed, encoded, strict=True)
    ]
    return {
        "responses": answers,
        "heading": "one rule",
        "description": f"the reference's own answers after one rule: {rule.description} (the best "
        f"of {len(RULES)} rules by gold on these very answers)",
    }


def _encoded(response: Generation, ids: Sequence[int]) -> Generation:
    return response._replace(ids=tuple(ids))
