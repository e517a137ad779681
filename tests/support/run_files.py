"""What the tests of whole runs share: reading a run's files, comparing their bits, and killing a
run at a step."""

import json
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.training import checkpoints, run

PARENTS = {
    "pretrain": (),
    "sft": ("pretrain",),
    "label": ("sft",),
    "reward": ("sft",),
    "ppo": ("sft", "reward"),
    "ppo_ptx": ("sft", "reward"),
    "classify": ("pretrain",),
    "grpo": ("sft", "reward"),
    "dpo": ("sft",),
}


def rows(workdir):
    return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def without_times(row):
    return {name: number for name, number in row.items() if not name.startswith("perf/")}


def params_of(workdir):
    return jax.tree.leaves(checkpoints.load_params(workdir)[0])


def same_bits(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(params_of(a), params_of(b), strict=True)
    )


class Death(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def beside(tour, tmp_path, stage):
    """A folder where `stage` can run again beside its parents."""
    for parent in PARENTS[stage]:
        (tmp_path / parent).symlink_to(tour.workdir / parent)
    if stage in ("reward", "dpo"):  # a label stage is no parent whose parameters are loaded
        (tmp_path / "label").symlink_to(tour.workdir / "label")
    return tmp_path / stage


def die_at(monkeypatch, step):
    honest = run.run_loop

    def run_loop(workdir, state, step_fn, *rest):
        def mortal(state, number):
            if number == step:
                raise Death
            return step_fn(state, number)

        return honest(workdir, state, mortal, *rest)

    monkeypatch.setattr(run, "run_loop", run_loop)
