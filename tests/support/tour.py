"""The tiny pipeline, run once per session, with a note of every config field that the run read."""

import dataclasses
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests_support import load_experiment

from rlhf_jax import main
from rlhf_jax.stages import evaluate
from rlhf_jax.training import run


class Tour(NamedTuple):
    workdir: Path
    plans: dict[str, dict[str, Any]]
    fields_read: dict[str, set[str]]
    seconds: float


def tiny_plans(data_dir: Path) -> dict[str, dict[str, Any]]:
    """The tiny pipeline, classification and one experiment of every further stage, with their data
    in `data_dir`."""
    config = load_experiment("experiments/menagerie/pipeline.py", "tiny")
    plans = main.plan_pipeline(config)
    for name in ("classify", "grpo", "dpo"):
        plans[name] = load_experiment(f"experiments/menagerie/{name}.py", "tiny").to_dict()
    for plan in plans.values():
        plan["data"]["data_dir"] = str(data_dir)
    return plans


def run_tour(workdir: Path) -> Tour:
    plans = tiny_plans(workdir / "data")
    recorder = Recorder()
    began = time.monotonic()
    with recorder.recording():
        main.run_pipeline(plans, str(workdir))
    return Tour(workdir, plans, recorder.fields_read, time.monotonic() - began)


class Recorder:
    """Notes which fields of which config dataclasses are read; checking and copying a config is not
    reading it."""

    def __init__(self) -> None:
        self.fields_read: dict[str, set[str]] = {}
        self._paused = 0

    @contextmanager
    def pause(self) -> Iterator[None]:
        self._paused += 1
        yield
        self._paused -= 1

    @contextmanager
    def recording(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for cls in config_classes():
                self._watch(patch, cls)
            for module in (run, evaluate):
                patch.setattr(module, "claim", self._unwatched(workspace_claim))
            patch.setattr(run, "_describe", self._unwatched(describe_config))
            yield

    def _watch(self, patch: pytest.MonkeyPatch, cls: type) -> None:
        names = {field.name for field in dataclasses.fields(cls)}
        seen = self.fields_read.setdefault(f"{cls.__module__}.{cls.__name__}", set())

        def read(instance: Any, name: str) -> Any:
            if name in names and not self._paused:
                seen.add(name)
            return object.__getattribute__(instance, name)

        patch.setattr(cls, "__getattribute__", read)
        if hasattr(cls, "__post_init__"):
            patch.setattr(cls, "__post_init__", self._unwatched(cls.__post_init__))

    def _unwatched(self, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.pause():
                return function(*args, **kwargs)

        return wrapped


workspace_claim = run.claim
describe_config = run._describe


def config_classes() -> list[type]:
    """Every dataclass that a stage's Config consists of."""
    classes: dict[str, type] = {}

    def visit(cls: type) -> None:
        classes[f"{cls.__module__}.{cls.__name__}"] = cls
        for field in dataclasses.fields(cls):
            for part in (field.type, *typing.get_args(field.type)):  # X, or X | None
                if dataclasses.is_dataclass(part):
                    visit(part)

    for module in main.STAGES.values():
        visit(module.Config)
    return list(classes.values())
