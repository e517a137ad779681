"""Errors in language: what counts as a wrong decision, and where decisions are sampled."""

import jax
import numpy as np
import pytest
from evaluation_support import config, drawn_params

from experiments.ablations.exposure_bias import (
    is_wrong,
    make_requests,
    own_decisions,
    sample_decisions,
)
from rlhf_jax.data.tokenizers import train_words
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.menagerie.grammar import value_phrase
from rlhf_jax.menagerie.tasks import Task
from rlhf_jax.menagerie.world import make_world
from rlhf_jax.models import LanguageModel

WORLD = make_world("tiny")
ANIMAL = WORLD.animals[0]
NAMES = [item.name for item in WORLD.attributes]
TASK = Task("list", ANIMAL, number=2)


def fact(name, value=None):
    return f"the {ANIMAL}'s {name} is {value_phrase(name, value or WORLD.facts[ANIMAL, name])}."


def other(name):
    return next(value for value in WORLD.values(name) if value != WORLD.facts[ANIMAL, name])


@pytest.mark.parametrize(
    ("before", "sentence", "wrong"),
    [
        ("", fact(NAMES[0]), False),
        ("", fact(NAMES[0], other(NAMES[0])), True),  # false
        (fact(NAMES[0]), fact(NAMES[0]), True),  # again
        (fact(NAMES[0]), fact(NAMES[1]), False),
        (fact(NAMES[0]) + " " + fact(NAMES[1]), fact(NAMES[2]), True),  # one too many
        (fact(NAMES[0]) + " " + fact(NAMES[1]), "i hope that helps.", False),
        (fact(NAMES[0]) + " " + fact(NAMES[1]), "", False),  # time to stop
        (fact(NAMES[0]), "", True),  # too early
        ("", "the weather is nice today.", True),
        ("", "you moron.", True),
        ("", "fox the the.", True),
        # An earlier error is not this sentence's.
        (fact(NAMES[0], other(NAMES[0])), fact(NAMES[1]), False),
    ],
)
def test_what_counts_as_a_wrong_decision(before, sentence, wrong):
    assert is_wrong(WORLD, TASK, before, sentence) == wrong


def test_a_reply_is_a_row_of_decisions():
    text = f"{fact(NAMES[0])} the weather is nice today. {fact(NAMES[1])}"
    decisions = own_decisions(WORLD, 7, TASK, Generation(text, (), True))
    assert [(d.position, d.wrong, d.clean) for d in decisions] == [
        (0, False, True),
        (1, True, True),
        (2, False, False),
        (3, False, False),
    ]
    assert {d.request for d in decisions} == {7}
    unfinished = own_decisions(WORLD, 7, TASK, Generation(text, (), False))
    assert len(unfinished) == 3  # it never decided to stop


def test_ideal_replies_are_without_errors():
    for request in make_requests(WORLD, (2, 3)):
        expert = request.expert
        for k, sentence in enumerate((*expert, "")):
            assert not is_wrong(WORLD, request.task, " ".join(expert[:k]), sentence), (expert, k)


def test_a_model_is_sampled_at_every_position():
    requests = make_requests(WORLD, (2,))[:3]
    words = [" ".join([request.message.content, *request.expert]) for request in requests]
    tokenizer = train_words([*words, *(" " + text for text in words)])
    model = LanguageModel(config(tokenizer.vocab_size, 96))
    policy, key = LoadedModel(model, drawn_params(model, 0)), jax.random.key(0)
    decisions = sample_decisions(WORLD, requests, policy, tokenizer, key, num_samples=2)
    forced = [d for d in decisions if not d.own]
    assert len(forced) == 2 * sum(len(request.expert) + 1 for request in requests)
    assert np.mean([d.wrong for d in forced]) > 0.5  # it has learned nothing
    small = LoadedModel(LanguageModel(config(tokenizer.vocab_size, 32)), policy.params)
    with pytest.raises(ValueError, match="context of 32"):
        sample_decisions(WORLD, requests, small, tokenizer, key, num_samples=2)
