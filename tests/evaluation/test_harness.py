"""What lm-evaluation-harness asks, in token ids: against our likelihoods, step by step, by hand."""

import jax
import numpy as np
import pytest
from evaluation_support import config, language_model, successor, words

from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.harness import (
    WritingSettings,
    cut_at_stops,
    read_settings,
    score_continuations,
    write_until,
)
from rlhf_jax.evaluation.likelihood import Continuation, continuation_logps
from rlhf_jax.inference.decoding import GREEDY, SamplingSpec
from rlhf_jax.models import LanguageModel, apply, init_params

ITEMS = [
    Continuation((5, 6), (7, 8, 9)),
    Continuation((5,), (6,)),
    Continuation(tuple(range(5, 15)) * 3, (6, 7)),
    Continuation((9, 8, 7), (5,) * 20),
]


def judge(items, context_length=64, batch_size=3):
    model = LoadedModel(*language_model())
    return score_continuations(model, items, context_length=context_length, batch_size=batch_size)


def test_log_probabilities_are_those_of_our_own_likelihood_code():
    judged = judge(ITEMS)
    logp_N = continuation_logps(*language_model(), ITEMS, batch_size=2)
    np.testing.assert_allclose([item.logp for item in judged], logp_N, atol=1e-4)
    one_at_a_time = judge(ITEMS, batch_size=1)
    np.testing.assert_allclose(
        [item.logp for item in judged], [item.logp for item in one_at_a_time], atol=1e-4
    )


def test_greedy_is_what_greedy_decoding_writes():
    model = LoadedModel(successor(32), {})
    judged = score_continuations(
        model,
        [
            Continuation((5,), (6, 7, 8)),
            Continuation((5,), (6, 7, 9)),
            Continuation((5, 9), (6,)),
            Continuation((31,), (0,)),
        ],
        context_length=64,
        batch_size=4,
    )
    assert [item.is_greedy for item in judged] == [True, False, False, True]
    assert [item.logp for item in judged] == [0.0, -1000.0, -1000.0, 0.0]


def test_too_long_texts_lose_their_beginning_and_the_last_token_is_never_read():
    """A context of 8 tokens predicts a ninth, as in the harness' own models."""
    long = Continuation(tuple(range(5, 15)), (6, 7, 5))
    cut = Continuation(long.context[-6:], long.ids)  # 9 tokens together
    ((logp, _),) = judge([long], context_length=8)
    assert logp == pytest.approx(judge([cut], context_length=64)[0].logp, abs=1e-4)
    assert logp != pytest.approx(judge([long], context_length=64)[0].logp, abs=1e-3)


def test_positions_are_not_read_beyond_the_context():
    """Learned positions end at the context; a row of one token more must not need another."""
    model = LanguageModel(config(words().vocab_size, context_length=16))
    loaded = LoadedModel(model, init_params(model, jax.random.key(0)))
    tokens = [5 + n % 9 for n in range(17)]
    ((logp, _),) = score_continuations(
        loaded, [Continuation(tokens[:1], tokens[1:])], context_length=16, batch_size=1
    )
    tokens_1T = np.array([tokens[:16]])
    logits_1TV = apply(model, loaded.params, tokens_1T, np.ones_like(tokens_1T))[0]
    logp_TV = np.asarray(jax.nn.log_softmax(np.asarray(logits_1TV)))
    logp_TV = logp_TV.reshape(16, -1)
    expected = sum(logp_TV[t, tokens[t + 1]] for t in range(16))
    assert logp == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_judged_is_an_error_that_names_the_request():
    with pytest.raises(ValueError, match=r"request 1 has 0 \+ 1 tokens"):
        judge([ITEMS[0], Continuation((), (5,))])
    with pytest.raises(ValueError, match=r"request 0 has 1 \+ 9 tokens, the model's context is 8"):
        judge([Continuation((5,), (6,) * 9)], context_length=8)


# --- writing --------------------------------------------------------------------------------------


def write(contexts, until=(), length=6, context_length=64, batch_size=2):
    """The successor model writes the words of WORDS in their order, ids 5, 6, ..."""
    return write_until(
        LoadedModel(successor(words().vocab_size), {}),
        words(),
        contexts,
        WritingSettings(GREEDY, length, until),
        jax.random.key(0),
        context_length=context_length,
        batch_size=batch_size,
    )


def test_writing_ends_at_the_first_stop_string():
    tokenizer = words()
    text = tokenizer.decode(range(6, 12))
    assert write([[5], [7, 5], [5] * 20]) == [text] * 3
    word = tokenizer.decode([9])
    assert write([[5]], until=("nowhere", word)) == [tokenizer.decode(range(6, 9))]


def test_long_contexts_lose_their_beginning_and_leave_room():
    """Of 30 tokens those are read that leave room for 6 in a context of 16."""
    assert write([[20] * 25 + [5] * 5], context_length=16) == [words().decode(range(6, 12))]
    with pytest.raises(ValueError, match="max_gen_toks=16: the model's context is 16 tokens; set"):
        write([[5]], length=16, context_length=16)


def test_a_stop_string_that_is_a_special_token_ends_the_text_there():
    tokenizer = words()
    ids = [6, 2, 7, 1, 8]  # word, <|user|>, word, <|eos|>, word
    assert cut_at_stops(tokenizer, ids, ()) == tokenizer.decode([6, 7])
    assert cut_at_stops(tokenizer, ids, ("<|user|>",)) == tokenizer.decode([6])


def test_the_settings_of_the_harness():
    assert read_settings({}, 256) == WritingSettings(GREEDY, 256, ())
    assert read_settings({"until": "\n", "max_gen_toks": 8, "do_sample": False}, 256) == (
        WritingSettings(GREEDY, 8, ("\n",))
    )
    drawn = read_settings(
        {
            "until": ["a", ""],
            "max_new_tokens": 4,
            "do_sample": True,
            "temperature": 0.5,
            "top_k": 3,
        },
        256,
    )
    spec = SamplingSpec(0.5, 3, 1.0, nucleus="holtzman")
    assert drawn == WritingSettings(spec, 4, ("a",))
    assert read_settings({"do_sample": False, "temperature": 0.7}, 1).sampling == GREEDY
    assert read_settings({"do_sample": True}, 1).sampling.temperature == 1.0
    assert read_settings({"num_beams": 1}, 1).sampling == GREEDY
    with pytest.raises(ValueError, match="gen_kwargs: num_beams, typical_p unknown here; known"):
        read_settings({"num_beams": 4, "typical_p": 0.5}, 1)
