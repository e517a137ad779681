"""Batches in turn: nothing lost or reordered, results on the host one behind, progress reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.evaluation import batching
from rlhf_jax.evaluation.batching import batch_rows, run_batches


def test_all_batches_have_one_shape():
    np.testing.assert_array_equal(batch_rows(5, 2), [[0, 1], [2, 3], [4, 4]])
    np.testing.assert_array_equal(batch_rows(1, 3), [[0, 0, 0]])


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_come_in_order_as_arrays_of_the_host(count):
    found = run_batches(
        lambda k: {"square": jnp.asarray(k * k), "kept": k}, range(count), "squares"
    )
    assert [int(one["square"]) for one in found] == [k * k for k in range(count)]
    assert all(isinstance(one["square"], np.ndarray) for one in found)


def test_no_more_than_two_results_are_on_the_device(monkeypatch):
    events = []
    monkeypatch.setattr(
        batching, "fetch", lambda leaf: events.append(("fetch", int(leaf))) or np.asarray(leaf)
    )
    run_batches(lambda k: (events.append(("compute", k)), jnp.asarray(k))[1], range(3), "numbers")
    assert events == [
        ("compute", 0),
        ("compute", 1),
        ("fetch", 0),
        ("compute", 2),
        ("fetch", 1),
        ("fetch", 2),
    ]


def test_who_waits_is_told_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(batching, "PATIENCE", -1.0)
    run_batches(jax.jit(lambda x: x), [np.zeros(2)] * 3, "responses")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("   responses: 1 of 3 batches, 0:00 left")
    monkeypatch.setattr(batching, "PATIENCE", 1000.0)
    run_batches(jax.jit(lambda x: x), [np.zeros(2)] * 3, "responses")
    assert capsys.readouterr().err == ""
