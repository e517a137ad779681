"""Strict configs: what does not fit is an error before anything runs, with name and remedy."""

from dataclasses import dataclass
from typing import Literal

import pytest

from rlhf_jax.config import build, differences, require_divides


@dataclass(frozen=True)
class Inner:
    rate: float
    mode: Literal["a", "b"]


@dataclass(frozen=True)
class Outer:
    size: int
    inner: Inner
    names: tuple[str, ...]
    paths: dict[str, str]
    flag: bool


GOOD = {
    "size": 3,
    "inner": {"rate": 1, "mode": "a"},
    "names": ["x"],
    "paths": {"p": "q"},
    "flag": True,
}


def change(**inner_or_outer):
    return {**GOOD, **inner_or_outer}


def test_builds_nested_dataclasses_and_widens_whole_numbers():
    assert build(Outer, GOOD) == Outer(3, Inner(1.0, "a"), ("x",), {"p": "q"}, True)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (change(sise=1), r"config\.sise: no such field; did you mean 'size'"),
        (
            change(inner={"rate": 1.0, "mode": "a", "rat": 2.0}),
            r"config\.inner\.rat: .*did you mean 'rate'",
        ),
        ({k: v for k, v in GOOD.items() if k != "size"}, r"config: missing size"),
        (change(size=2.5), r"config\.size: expected int, got float 2\.5"),
        (change(size=True), r"config\.size: expected int, got bool True"),
        (change(flag=1), r"config\.flag: expected bool, got int 1"),
        (
            change(inner={"rate": 1.0, "mode": "c"}),
            r"config\.inner\.mode: 'c' is not one of 'a', 'b'",
        ),
        (change(inner=3), r"config\.inner: expected a group of fields, got 3"),
        (change(names="x"), r"config\.names: expected a list, got 'x'"),
    ],
)
def test_refuses_what_does_not_fit(tree, message):
    with pytest.raises(ValueError, match=message):
        build(Outer, tree)


def test_divisibility_names_both_numbers_and_the_remedy():
    with pytest.raises(ValueError, match="batch by devices: 10 is not divisible by 4; use fewer"):
        require_divides(4, 10, "batch by devices", "use fewer")
    require_divides(5, 10, "batch", "")


def test_differences_name_the_fields():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 5, "e": 3}}
    assert differences(old, new) == ["b.c: 2 -> 5", "b.d: 3 -> '(absent)'", "b.e: '(absent)' -> 3"]


@dataclass(frozen=True)
class Counted:
    seed: int
    keep: int
    batch_size: int | None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "config.x.seed=-1: must be 0 or more; set --config.x.seed=0 or more"),
        ({"keep": 0}, "config.x.keep=0: must be positive; set --config.x.keep=1 or more"),
        ({"batch_size": 0}, "config.x.batch_size=0: must be positive; set"),
    ],
)
def test_a_number_below_the_least_is_refused_by_name(change, message):
    good = {"seed": 0, "keep": 1, "batch_size": None}
    assert build(Counted, good, "config.x") == Counted(0, 1, None)
    with pytest.raises(ValueError, match=message):
        build(Counted, {**good, **change}, "config.x")
