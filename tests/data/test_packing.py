"""Packed rankings hold the same tokens, and the same scores come out, as unpacked ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.batches import Batches, comparison_batches, demonstration_batches
from rlhf_jax.data.packing import InOrder, PackedComparisons, PackedDemonstrations, first_fit
from rlhf_jax.data.records import Comparison, Demonstration, Message
from rlhf_jax.data.tokenizers import train_words
from rlhf_jax.inference.scoring import last_token_scores, packed_scores
from rlhf_jax.models.config import llama
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params
from rlhf_jax.stages.comparisons import prompts_with_pairs
from rlhf_jax.stages.language import language_loss, trained_tokens

WORDS = ["the", "fox", "owl", "is", "red", "blue", "far", "and", "what", "lives", "in", "a", "lake"]
SHAPE = llama(
    vocab_size=32,
    context_length=32,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    ffw_width=16,
    rope_base=10_000.0,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)


@pytest.fixture(scope="module")
def rankings():
    rng = np.random.default_rng(0)

    def text():
        return " ".join(rng.choice(WORDS, size=rng.integers(1, 9)))

    comparisons = []
    for _ in range(8):
        count = int(rng.integers(2, 5))
        responses = tuple(dict.fromkeys(text() for _ in range(count + 3)))[:count]
        comparisons.append(
            Comparison(
                (Message("user", text()),), responses, tuple(range(1, len(responses) + 1)), {}
            )
        )
    tokenizer = train_words([" ".join(WORDS)])
    return comparison_batches(
        comparisons, tokenizer, context_length=24, max_candidates=4, batch_size=4, seed=0
    )


@pytest.fixture(scope="module")
def demonstrations():
    rng = np.random.default_rng(1)

    def text():
        return " ".join(rng.choice(WORDS, size=rng.integers(1, 9)))

    records = [
        Demonstration((Message("user", text()), Message("assistant", text()))) for _ in range(12)
    ]
    tokenizer = train_words([" ".join(WORDS)])
    return demonstration_batches(records, tokenizer, context_length=24, batch_size=6, seed=0)


def test_packed_demonstrations_have_the_same_loss_and_gradient(demonstrations):
    packed = PackedDemonstrations(
        demonstrations, row_length=32, num_steps=2, others=0, row_multiple=1
    )
    model = LanguageModel(SHAPE)
    params = init_params(model, jax.random.key(0))
    loss = partial(language_loss, model, 0.0)
    for step in range(2):
        short, long = packed.batch(step), demonstrations.batch(step)
        assert len(short["tokens_BT"]) < len(long["tokens_BT"])
        assert trained_tokens(short) == trained_tokens(long) == long["loss_mask_BT"].sum()
        (short_loss, _), grads = jax.value_and_grad(loss, has_aux=True)(
            params, short, trained_tokens(short), None
        )
        (long_loss, _), expected = jax.value_and_grad(loss, has_aux=True)(
            params, long, trained_tokens(long), None
        )
        np.testing.assert_allclose(short_loss, long_loss, rtol=1e-6)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), grads, expected)


@pytest.mark.parametrize(("others", "multiple"), [(0, 1), (3, 8), (2, 4)])
def test_rows_of_demonstrations_fit_the_devices_with_those_beside_them(
    demonstrations, others, multiple
):
    packed = PackedDemonstrations(
        demonstrations, row_length=32, num_steps=2, others=others, row_multiple=multiple
    )
    least = PackedDemonstrations(
        demonstrations, row_length=32, num_steps=2, others=0, row_multiple=1
    ).num_rows
    assert (packed.num_rows + others) % multiple == 0
    assert least <= packed.num_rows < least + multiple
    assert len(packed.batch(1)["tokens_BT"]) == packed.num_rows


def test_a_demonstration_longer_than_a_row_is_refused(demonstrations):
    with pytest.raises(ValueError, match="row_length: 8, but a rendered conversation has"):
        PackedDemonstrations(demonstrations, row_length=8, num_steps=1, others=0, row_multiple=1)


def test_first_fit_by_hand():
    # Longest first: 5 -> row 0, 4 -> row 1, 3 -> row 1 (room 3), 2 -> row 0 (room 2)
    rows, starts, count = first_fit([3, 5, 2, 4], 7)
    assert (rows, starts, count) == ([1, 0, 0, 1], [4, 0, 5, 0], 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_no_token_is_lost_and_none_overlaps(rankings, groups):
    packed = PackedComparisons(
        rankings, row_length=32, num_steps=4, num_groups=groups, row_multiple=2
    )
    for step in range(4):
        batch, padded = packed.batch(step), rankings.batch(step)
        assert batch["tokens_NT"].shape[0] in {
            size * groups for size in range(2, packed.rows_per_group + 2, 2)
        }
        assert (batch["segments_NT"] > 0).sum() == (padded["segments_BCT"] > 0).sum()
        for b, c in np.argwhere(padded["mask_BC"]):
            length = (padded["segments_BCT"][b, c] > 0).sum()
            row = batch["row_BC"][b, c] * groups + b % groups
            end = batch["last_BC"][b, c] + 1
            np.testing.assert_array_equal(
                batch["tokens_NT"][row, end - length : end], padded["tokens_BCT"][b, c, :length]
            )
            assert len(set(batch["segments_NT"][row, end - length : end])) == 1


def test_rows_shrink_by_roots_of_two_where_few_responses_come_together():
    counts = [8, 2, 4, 5, 1, 8]  # responses to the prompts of six batches, each as long as a row
    mask = np.arange(8) < np.array(counts)[:, None]
    segments = np.broadcast_to(mask[:, :, None], (6, 8, 4)).astype(np.int32)
    arrays = {
        "tokens_BCT": segments,
        "segments_BCT": segments,
        "mask_BC": mask,
        "rank_BC": np.ones((6, 8), np.int32),
        "length_BC": 4 * mask,
    }
    batches = InOrder(Batches(arrays, batch_size=1, seed=0), 1)
    for multiple, sizes in (
        (1, {8: 8, 5: 6, 4: 4, 2: 2, 1: 1}),
        (4, {8: 8, 5: 8, 4: 4, 2: 4, 1: 4}),
    ):
        packed = PackedComparisons(
            batches, row_length=4, num_steps=6, num_groups=1, row_multiple=multiple
        )
        assert [len(packed.batch(step)["tokens_NT"]) for step in range(6)] == [
            sizes[count] for count in counts
        ]


def test_scores_equal_those_of_single_rows(rankings):
    model = ScalarModel(SHAPE)
    params = jax.tree.map(lambda x: 3 * x, init_params(model, jax.random.key(0)))
    batch = PackedComparisons(
        rankings, row_length=32, num_steps=1, num_groups=1, row_multiple=1
    ).batch(0)
    padded = rankings.batch(0)
    flat = [jnp.asarray(padded[name].reshape(-1, 24)) for name in ("tokens_BCT", "segments_BCT")]
    alone_BC = jax.jit(lambda *x: last_token_scores(model, params, *x))(*flat).reshape(
        padded["mask_BC"].shape
    )
    packed_BC = jax.jit(partial(packed_scores, model))(params, batch)
    mask_BC = padded["mask_BC"]
    np.testing.assert_allclose(packed_BC[mask_BC], alone_BC[mask_BC], atol=1e-5)


def test_in_order_takes_every_example_once(rankings):
    once = InOrder(rankings, 3)
    masks = [once.batch(step)["mask_BC"] for step in range(once.num_batches)]
    assert once.num_batches == 3
    assert sum(mask.sum() for mask in masks) == rankings.arrays["mask_BC"].sum()
    assert not masks[-1][2].any()
    oversized = InOrder(rankings, rankings.num_examples + 2)  # more than there are
    assert oversized.num_batches == 1
    assert oversized.batch(0)["mask_BC"].sum() == rankings.arrays["mask_BC"].sum()


def test_a_row_too_short_is_refused(rankings):
    with pytest.raises(
        ValueError, match=r"row_length: 4, but a rendered conversation has \d+ tokens"
    ):
        PackedComparisons(rankings, row_length=4, num_steps=1, num_groups=1, row_multiple=1)


def test_prompts_without_a_valid_pair_weigh_nothing():
    rank = jnp.array([[1, 1, 0], [1, 2, 0], [2, 1, 1]])
    mask = jnp.array([[1, 1, 0], [1, 1, 0], [1, 1, 1]], bool)
    assert int(prompts_with_pairs({"rank_BC": rank, "mask_BC": mask})) == 2
