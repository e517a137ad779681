"""Ablations: grids resume, divergence and failure are shown, and every shipped grid can be built."""

import csv
import importlib
import json
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest

from rlhf_jax import main
from rlhf_jax.apps import reproduce
from rlhf_jax.apps.ablation import Ablation, Criterion, Finding, Measurement, Run, draw_seeds
from rlhf_jax.stages.workspace import claim, locate
from rlhf_jax.training.checkpoints import all_steps, lineage_entry, new_meta, read_meta
from rlhf_jax.training.loop import run_loop
from rlhf_jax.training.state import TrainState, from_checkpoint, to_checkpoint

STEPS = 4


class Toy:
    """A stage of milliseconds: w ← rate · w from 1 or from its parent's; `die_at` stands for a killed process."""

    die_at = None
    steps_done = 0

    @dataclass(frozen=True)
    class Config:
        stage: str
        seed: int
        init: dict[str, str]
        rate: float

    @classmethod
    def run(cls, config: Any, workdir: str) -> None:
        folder = locate(reproduce.Path(workdir), workdir)
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder, config)
        lineage = {role: lineage_entry(path, read_meta(locate(folder, path))) for role, path in config.init.items()}

        def step_fn(state, step):
            if step == cls.die_at:
                raise KeyboardInterrupt
            cls.steps_done += 1
            w = state.params["w"] * config.rate
            return TrainState(state.step + 1, {"w": w}, state.opt_state, state.extras), {"loss": w}

        run_loop(
            workdir=folder, state=TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(())}, {}, {}), step_fn=step_fn,
            num_steps=STEPS, log_every=1, save_every=1, keep=1, to_checkpoint=to_checkpoint, from_checkpoint=from_checkpoint,
            meta=new_meta(stage="toy", kind="language_model", num_steps=STEPS, model={}, tokenizer="", lineage=lineage),
        )  # fmt: skip


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(main.STAGES, "toy", Toy)
    monkeypatch.setattr(Toy, "die_at", None)
    monkeypatch.setattr(Toy, "steps_done", 0)
    yield
    plt.close("all")


def losses(bench, folder):
    lines = (bench.folder(folder) / "metrics.jsonl").read_text().splitlines()
    return [{"step": row["step"], "loss": row["loss"]} for row in map(json.loads, lines)]


def results(workdir):
    return list(csv.DictReader((workdir / "grid/results.csv").read_text().splitlines()))


def last_loss_below(limit):
    def judge(table):
        found = table.where(step=STEPS).column("loss")
        if not found.size:
            raise ValueError("no run was finished")
        return Finding(bool(found.max() < limit), float(found.max()), None, None, "")

    return judge


def figure(table, seeds=None):
    made, axes = plt.subplots()
    for seed in seeds or table.values("seed"):
        draw_seeds(axes, table.where(seed=seed), "step", "loss", colour="C0", label="toy")
    return made


def ablation(seeds=(0, 1), rate=0.5, draw=figure):
    runs, measurements = [], []
    for seed in seeds:
        base, child = f"base/seed{seed}/toy", f"grid/seed{seed}/child"
        runs += [Run(base, {"stage": "toy", "seed": seed, "init": {}, "rate": 0.5}),
                 Run(child, {"stage": "toy", "seed": seed, "init": {"policy": f"../../../{base}"},
                             "rate": rate if seed else 0.5})]  # fmt: skip
        measurements.append(
            Measurement(f"seed{seed}", {"seed": seed}, (child,), {}, lambda b, child=child: losses(b, child))
        )
    criteria = (Criterion("T1", "ends below 0.1", last_loss_below(0.1)), Criterion("T2", "below 0.01", last_loss_below(0.01)))
    return Ablation("a toy", seeds, runs, measurements, criteria, draw)


def test_writes_a_row_per_point_a_verdict_per_criterion_and_a_figure(tmp_path, capsys):
    reproduce.reproduce("grid", ablation(), tmp_path, size="tiny")
    rows = results(tmp_path)
    assert [(row["seed"], row["step"], float(row["loss"]), row["status"]) for row in rows] == [
        (seed, str(step), 0.5**step, "complete") for seed in "01" for step in range(1, STEPS + 1)
    ]
    verdict = json.loads((tmp_path / "grid/verdict.json").read_text())
    kept = [{k: one[k] for k in ("name", "text", "value", "passed", "num_seeds")} for one in verdict["criteria"]]
    assert kept == [
        {"name": "T1", "text": "ends below 0.1", "value": 0.0625, "passed": True, "num_seeds": 2},
        {"name": "T2", "text": "below 0.01", "value": 0.0625, "passed": False, "num_seeds": 2},
    ]
    assert (tmp_path / "grid/figure.png").stat().st_size > 5000
    assert "FAILED  T2" in capsys.readouterr().out


def test_an_interrupted_grid_continues_and_a_complete_one_does_nothing(tmp_path):
    Toy.die_at = 2
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce("grid", ablation(), tmp_path, size="tiny")
    assert all_steps(tmp_path / "base/seed0/toy") == [2]
    Toy.die_at = None
    reproduce.reproduce("grid", ablation(), tmp_path, size="tiny")
    assert Toy.steps_done == 4 * STEPS
    first = (tmp_path / "grid/results.csv").read_text()
    reproduce.reproduce("grid", ablation(seeds=(0, 1)), tmp_path, size="tiny")
    assert Toy.steps_done == 4 * STEPS
    assert (tmp_path / "grid/results.csv").read_text() == first


def test_a_diverged_run_is_shown_and_kept_and_nothing_stands_on_it(tmp_path, capsys):
    diverging = ablation(rate=2.0**60)
    for again in range(2):
        reproduce.reproduce("grid", diverging, tmp_path, size="tiny")
        rows = results(tmp_path)
        assert {row["status"] for row in rows if row["seed"] == "1"} == {"diverged: grid/seed1/child"}
        losses_shown = [row["loss"] and float(row["loss"]) for row in rows if row["seed"] == "1"]
        assert losses_shown == [pytest.approx(2.0**60), pytest.approx(2.0**120), ""], again
        verdict = json.loads((tmp_path / "grid/verdict.json").read_text())
        assert verdict["diverged"] == ["diverged: grid/seed1/child"]
    assert Toy.steps_done == 2 * STEPS + STEPS + 3  # it was not tried again
    assert "diverged: grid/seed1/child" in capsys.readouterr().out.splitlines()[-1]
    child = Run("grid/seed1/grandchild", {"stage": "toy", "seed": 1, "init": {"policy": "../child"}, "rate": 0.5})
    states = {"grid/seed1/child": "diverged: grid/seed1/child"}
    assert reproduce.finish(child, tmp_path, states) == "not run: diverged: grid/seed1/child"


def test_a_claim_that_cannot_be_measured_has_failed(tmp_path):
    one = ablation(seeds=(0,))
    table = reproduce.Table([{"seed": 0, "status": "complete"}])
    assert reproduce.judged(one.criteria[0], table) == {
        "name": "T1", "text": "ends below 0.1", "passed": False, "value": None, "low": None, "high": None,
        "detail": "could not be measured: no run was finished", "num_seeds": 1,
    }  # fmt: skip


def test_a_figure_without_a_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the figure shows nothing of seed 1"):
        reproduce.reproduce("grid", ablation(draw=lambda table: figure(table, [0])), tmp_path, size="tiny")


def test_another_config_or_a_retrained_parent_is_refused(tmp_path):
    reproduce.reproduce("grid", ablation(), tmp_path, size="tiny")
    with pytest.raises(ValueError, match=r"begun with another config:\n +rate: 0\.5 -> 0\.25"):
        reproduce.reproduce("grid", ablation(rate=0.25), tmp_path, size="tiny")
    base = tmp_path / "base/seed1/toy"
    (tmp_path / "old").mkdir()
    base.rename(tmp_path / "old" / "toy")
    Toy.run(Toy.Config("toy", 1, {}, 0.7), str(base))
    (base / "config.json").write_text((tmp_path / "old/toy/config.json").read_text())
    with pytest.raises(ValueError, match=r"was trained from another policy than .*toy holds now"):
        reproduce.reproduce("grid", ablation(), tmp_path, size="tiny")


def test_a_mistake_in_the_last_run_is_said_before_the_first(tmp_path):
    wrong = ablation()
    wrong.runs[-1].config["rat"] = 1.0
    with pytest.raises(ValueError, match=r"grid/seed1/child: config\.rat: no such field; did you mean 'rate'"):
        reproduce.reproduce("grid", wrong, tmp_path, size="tiny")
    assert not list(tmp_path.iterdir())


def test_unknown_names_and_the_list(capsys):
    assert reproduce.command(["gao_best_of_m"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'gao_best_of_n'?" in said
    assert "known: " in said
    assert reproduce.command(["--list"]) == 0
    assert "Gao et al. 2022" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["tiny", "default", "large"])
@pytest.mark.parametrize("name", reproduce.names())
def test_every_shipped_ablation_builds(name, size):
    module = importlib.import_module(f"experiments.ablations.{name}")
    found = module.get_ablation(size, (0, 1))
    reproduce.check(found)
    assert {one.point["seed"] for one in found.measurements} == {0, 1}
    assert found.criteria
    assert f"rlhf_jax.apps.reproduce {name}" in module.__doc__, "the notebook shows its command"
