"""`--describe` says of every field its value, where that came from, and its comment."""

from dataclasses import dataclass

from tests_support import load_experiment

from rlhf_jax import main
from rlhf_jax.describe import Field, describe_config, format_fields, read_comments


@dataclass(frozen=True)
class Base:
    """Hold what both have."""

    size: int  # rows


@dataclass(frozen=True)
class Inner:
    """Say how fast."""

    # Of a step;
    # with a # in it.
    rate: float
    mode: str = "a # b"


@dataclass(frozen=True)
class Outer(Base):
    """Hold everything."""

    inner: Inner
    absent: Inner | None  # for later
    named: dict[str, Inner]
    paths: dict[str, str]  # name -> folder


TREE = {
    "size": 3,
    "inner": {"rate": 0.5, "mode": "x"},
    "absent": None,
    "named": {"n": {"rate": 1.0, "mode": "y"}},
    "paths": {"p": "q"},
}


def test_values_origins_and_comments_of_the_source():
    fields = list(describe_config(Outer, TREE, {"config.inner.rate", "config.paths"}))
    assert fields == [
        Field("config", None, "", "Hold everything."),
        Field("config.size", "3", "file", "rows"),
        Field("config.absent", "None", "file", "for later"),
        Field("config.paths.p", "'q'", "flag", "name -> folder"),
        Field("config.inner", None, "", "Say how fast."),
        Field("config.inner.rate", "0.5", "flag", "Of a step; with a # in it."),
        Field("config.inner.mode", "'x'", "file", ""),
        Field("config.named.n", None, "", "Say how fast."),
        Field("config.named.n.rate", "1.0", "file", "Of a step; with a # in it."),
        Field("config.named.n.mode", "'y'", "file", ""),
    ]
    lines = format_fields(iter(fields[:2])).splitlines()
    assert [line.split() for line in lines] == [
        ["config:", "Hold", "everything."],
        ["config.size", "=", "3", "(file)", "#", "rows"],
    ]


def test_a_comment_belongs_to_the_field_below_it_or_before_it():
    source = (
        'class A:\n    a: int  # one\n    # two\n    b: str = "#"\n\n    # lost\n\n    c: int\n'
    )
    assert read_comments(source) == {"a": "one", "b": "two"}


def test_a_pipeline_is_described_stage_by_stage():
    config = load_experiment("experiments/menagerie/pipeline.py", "tiny")
    text = main.describe(config, {"config.stages.ppo.ppo.kl_coef"})
    (line,) = [line for line in text.splitlines() if "stages.ppo.ppo.kl_coef =" in line]
    assert "(flag)" in line
    assert "reward per nat of distance to the reference" in line
    for name in config.order:
        assert f"config.stages.{name}.stage = " in text
