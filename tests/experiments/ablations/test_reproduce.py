"""Ablations: grids resume, divergence and failure are shown, every shipped grid can be built."""

import csv
import importlib
import json
import shutil
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.ablations import (
    coste_ensembles,
    decoding,
    exposure,
    gao_best_of_n,
    gpt3_few_shot,
    instructgpt_labelers,
    instructgpt_win_rates,
    ppo_table1,
    reproduce,
    truthfulness_toxicity_bias,
)
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    GridRun,
    draw_seeds,
)
from experiments.ablations.measures import (
    PolicyEvalSettings,
    draw_sample_pool,
    evaluate_checkpoints,
    load_reference,
    metrics,
    proxy_scores,
)
from experiments.ablations.shared import reward_run
from rlhf_jax import main
from rlhf_jax.evaluation.table import Cache
from rlhf_jax.training.checkpoints import Meta, all_steps, lineage_entry, read_meta
from rlhf_jax.training.loop import LoopConfig, run_loop
from rlhf_jax.training.run import claim, locate
from rlhf_jax.training.updates import TrainState

STEPS = 4


class Toy:
    """A stage of milliseconds: w ← rate · w from 1 or its parent's; at `die_at` it is killed."""

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
        lineage = {
            role: lineage_entry(path, read_meta(locate(folder, path)))
            for role, path in config.init.items()
        }

        def step_fn(state, step):
            if step == cls.die_at:
                raise KeyboardInterrupt
            cls.steps_done += 1
            w = state.params["w"] * config.rate
            return TrainState(state.step + 1, {"w": w}, state.opt_state, state.extras), {"loss": w}

        run_loop(
            workdir=folder,
            state=TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(())}, {}, {}),
            step_fn=step_fn,
            config=LoopConfig(log_every=1, save_every=1, keep=1),
            meta=Meta(
                stage="toy",
                kind="language_model",
                num_steps=STEPS,
                model={},
                tokenizer="",
                lineage=lineage,
            ),
        )


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(main.STAGES, "toy", Toy)
    monkeypatch.setattr(Toy, "die_at", None)
    monkeypatch.setattr(Toy, "steps_done", 0)
    yield
    plt.close("all")


def losses(context, *, folder, column=None):
    lines = (context.folder(folder) / "metrics.jsonl").read_text().splitlines()
    return [{"step": row["step"], "loss": row["loss"]} for row in map(json.loads, lines)]


def results(workdir):
    return list(csv.DictReader((workdir / "grid/results.csv").read_text().splitlines()))


def last_loss_below(limit):
    def judge(table):
        loss = table.where(step=STEPS).column("loss")
        if not loss.size:
            raise ValueError("no run was finished")
        return Finding(bool(loss.max() < limit), float(loss.max()))

    return judge


def figure(table, seeds=None):
    chart, axes = plt.subplots()
    for seed in seeds or table.values("seed"):
        draw_seeds(axes, table.where(seed=seed), "step", "loss", colour="C0", label="toy")
    return chart


def ablation(seeds=(0, 1), rate=0.5, draw=figure):
    criteria = (
        Criterion("ends below 0.1", last_loss_below(0.1)),
        Criterion("below 0.01", last_loss_below(0.01), "another paper"),
    )
    grid = Ablation("a toy", seeds, criteria, draw)
    for seed in seeds:
        base, child = f"base/seed{seed}/toy", f"grid/seed{seed}/child"
        config = {"stage": "toy", "seed": seed, "rate": 0.5}
        parent = {"policy": f"../../../{base}"}
        grid.add_runs(
            GridRun(base, {**config, "init": {}}),
            GridRun(child, {**config, "init": parent, "rate": rate if seed else 0.5}),
        )
        grid.add_measurement(f"seed{seed}", {"seed": seed}, (child,), losses, folder=child)
    return grid


def test_writes_a_row_per_point_a_verdict_per_criterion_and_a_figure(tmp_path, capsys):
    reproduce.reproduce("grid", ablation(), tmp_path, size="tiny")
    rows = results(tmp_path)
    assert [(row["seed"], row["step"], float(row["loss"]), row["status"]) for row in rows] == [
        (seed, str(step), 0.5**step, "complete") for seed in "01" for step in range(1, STEPS + 1)
    ]
    verdict = json.loads((tmp_path / "grid/verdict.json").read_text())
    names = ("source", "claim", "value", "passed", "num_seeds")
    assert [tuple(each[name] for name in names) for each in verdict["criteria"]] == [
        ("", "ends below 0.1", 0.0625, True, 2),
        ("another paper", "below 0.01", 0.0625, False, 2),
    ]
    assert (tmp_path / "grid/figure.png").stat().st_size > 5000
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "below 0" in line] == ["passed", "FAILED"]


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
        assert {row["status"] for row in rows if row["seed"] == "1"} == {
            "diverged: grid/seed1/child"
        }
        losses_shown = [row["loss"] and float(row["loss"]) for row in rows if row["seed"] == "1"]
        assert losses_shown == [pytest.approx(2.0**60), pytest.approx(2.0**120), ""], again
        verdict = json.loads((tmp_path / "grid/verdict.json").read_text())
        assert verdict["diverged"] == ["diverged: grid/seed1/child"]
    assert Toy.steps_done == 2 * STEPS + STEPS + 3  # it was not tried again
    assert "diverged: grid/seed1/child" in capsys.readouterr().out.splitlines()[-1]
    child = GridRun(
        "grid/seed1/grandchild",
        {"stage": "toy", "seed": 1, "init": {"policy": "../child"}, "rate": 0.5},
    )
    states = {"grid/seed1/child": "diverged: grid/seed1/child"}
    assert reproduce.finish(child, tmp_path, states) == "not run: diverged: grid/seed1/child"


def test_a_claim_that_cannot_be_measured_has_failed(tmp_path):
    table = reproduce.Table([{"seed": 0, "status": "complete"}])
    assert reproduce.judge(ablation(seeds=(0,)).criteria[0], table) == {
        "source": "",
        "claim": "ends below 0.1",
        "passed": False,
        "value": None,
        "low": None,
        "high": None,
        "detail": "could not be measured: no run was finished",
        "num_seeds": 1,
    }


def test_a_figure_without_a_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the figure or a panel of it shows nothing of seed 1"):
        reproduce.reproduce(
            "grid", ablation(draw=lambda table: figure(table, [0])), tmp_path, size="tiny"
        )


def test_a_panel_without_a_seed_that_another_panel_shows_is_refused(tmp_path):
    def two_panels(table):
        chart, (left, right) = plt.subplots(1, 2)
        draw_seeds(left, table, "step", "loss", colour="C0", label="toy")
        draw_seeds(right, table.where(seed=0), "step", "loss", colour="C0", label="toy")
        return chart

    with pytest.raises(ValueError, match="a panel of it shows nothing of seed 1"):
        reproduce.reproduce("grid", ablation(draw=two_panels), tmp_path, size="tiny")


def test_a_verdict_counts_the_seeds_of_which_nothing_diverged():
    rows = [{"seed": seed, "step": STEPS, "loss": 0.05, "status": "complete"} for seed in (0, 1, 2)]
    table = reproduce.Table([*rows, {"seed": 1, "status": "diverged: somewhere"}])
    assert reproduce.judge(ablation().criteria[0], table)["num_seeds"] == 2


@pytest.mark.parametrize(
    "error", [KeyError(("xs", 300)), StopIteration(), TypeError("one value for two names")]
)
def test_a_cell_that_is_gone_in_every_seed_is_a_failure_and_not_a_crash(error):
    def judge(table):
        raise error

    verdict = reproduce.judge(Criterion("", judge), reproduce.Table([]))
    assert not verdict["passed"]
    assert verdict["detail"].startswith("could not be measured: ")


def test_two_different_runs_in_one_folder_are_refused():
    grid = ablation()
    run = grid.runs["base/seed0/toy"]
    grid.add_runs(run)
    with pytest.raises(ValueError, match="two different runs are called base/seed0/toy"):
        grid.add_runs(GridRun(run.folder, {**run.config, "rate": 0.25}))


def test_two_measurements_with_one_name_or_of_what_is_not_there_are_refused():
    for name, point, needs, message in (
        ("seed1", {"seed": 1}, (), "two measurements are called seed1"),
        ("more", {"seed": 1}, ("elsewhere",), "needs elsewhere, which is not among the runs"),
        ("more", {"seed": 7}, (), "seed 7 is not among"),
    ):
        grid = ablation()
        grid.add_measurement(name, point, needs, losses)
        with pytest.raises(ValueError, match=message):
            reproduce.check(grid)


def test_other_arguments_are_measured_again(tmp_path, capsys):
    for column, kept in (("loss", 0), ("loss", 2), ("step", 0)):
        grid = ablation()
        for measurement in grid.measurements:
            measurement.arguments["column"] = PolicyEvalSettings(column, 1, 1)
        reproduce.reproduce("grid", grid, tmp_path, size="tiny")
        assert capsys.readouterr().out.count("(kept)") == kept


def test_what_an_evaluation_names_is_its_parent():
    run = GridRun(
        "grid/seed0/evaluate",
        {
            "stage": "evaluate",
            "init": {},
            "checkpoints": {"ppo": "../ppo", "hub": "hub:org/name"},
            "data": {"comparisons": "../../base", "earlier": ("../one",)},
        },
    )
    assert list(reproduce._parents(run.config)) == ["../ppo", "../../base", "../one"]
    rewards = {"reward": {"source": "reward:../reward", "weight": 1.0}}
    assert list(reproduce._parents({"rewards": rewards})) == ["../reward"]
    assert (
        reproduce.finish(run, reproduce.Path("."), {"grid/seed0/ppo": "diverged: it"})
        == "not run: diverged: it"
    )


def test_results_are_judged_again_without_a_run(tmp_path):
    reproduce.reproduce("grid", ablation(), tmp_path, size="tiny")
    before = json.loads((tmp_path / "grid/verdict.json").read_text())
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "grid/figure.png").unlink()
    Toy.steps_done = 0
    assert reproduce.judge_again("grid", ablation(), tmp_path, size="tiny") == before["criteria"]
    assert json.loads((tmp_path / "grid/verdict.json").read_text()) == before
    assert (tmp_path / "grid/figure.png").exists()
    assert Toy.steps_done == 0
    with pytest.raises(ValueError, match=r"has seeds \[0, 1\], asked for \[0\]; set --seeds"):
        reproduce.judge_again("grid", ablation(seeds=(0,)), tmp_path, size="tiny")
    with pytest.raises(FileNotFoundError, match="run other without --judge_again first"):
        reproduce.judge_again("other", ablation(), tmp_path, size="tiny")


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


def test_an_evaluation_of_a_retrained_checkpoint_is_refused(tmp_path):
    Toy.run(Toy.Config("toy", 0, {}, 0.5), str(tmp_path / "base"))
    (tmp_path / "evaluate").mkdir()
    for fingerprint in (read_meta(tmp_path / "base").fingerprint, "of another training"):
        entry = {"path": "../base", "fingerprint": fingerprint}
        content = {"checkpoints": {"ppo": entry}}
        (tmp_path / "evaluate/evaluation.json").write_text(json.dumps(content))
        if fingerprint == "of another training":
            with pytest.raises(
                ValueError,
                match=r"evaluate is an evaluation of another ppo than .*base holds now; delete one",
            ):
                reproduce._check_lineage(tmp_path / "evaluate")
        else:
            reproduce._check_lineage(tmp_path / "evaluate")


def test_a_mistake_in_the_last_run_is_said_before_the_first(tmp_path):
    wrong = ablation()
    wrong.runs["grid/seed1/child"].config["rat"] = 1.0
    with pytest.raises(
        ValueError, match=r"grid/seed1/child: config\.rat: no such field; did you mean 'rate'"
    ):
        reproduce.reproduce("grid", wrong, tmp_path, size="tiny")
    assert not list(tmp_path.iterdir())


def test_unknown_names_and_the_list(capsys):
    assert reproduce.command(["gao_best_of_m"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'gao_best_of_n'?" in error
    assert "known: " in error
    assert reproduce.command(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == reproduce.names()
    assert any("Gao et al. 2022, Fig. 1a" in line for line in lines)


@pytest.mark.parametrize("flags", [["--lst"], ["--list", "--tabel"], ["--table", "--config.x=1"]])
def test_a_misspelt_flag_does_not_list(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        reproduce.command(flags)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_the_table_of_a_workdir_has_every_claim_once(tmp_path, capsys):
    assert reproduce.command(["--table", f"--workdir={tmp_path}"]) == 2
    assert "no verdict.json" in capsys.readouterr().err
    reproduce.reproduce("grid", ablation(), tmp_path, size="tiny")
    claims = json.loads((tmp_path / "grid/verdict.json").read_text())["criteria"]
    capsys.readouterr()
    assert reproduce.command(["--table", f"--workdir={tmp_path}"]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(claims)
    assert lines[0].startswith("| `grid`, tiny, ")
    assert [line.split("|")[2].strip() for line in lines] == ["a toy", "another paper"]
    for line, verdict in zip(lines, claims, strict=True):
        cells = line.split("|")
        assert len(cells) == 8
        assert verdict["claim"] in cells[3]
        assert ("holds" in cells[5]) == verdict["passed"]


@pytest.mark.parametrize("size", ["tiny", "default", "large"])
@pytest.mark.parametrize("name", reproduce.names())
def test_every_shipped_ablation_builds(name, size):
    module = importlib.import_module(f"experiments.ablations.{name}")
    grid = module.get_ablation(size, (0, 1))
    reproduce.check(grid)
    assert {measurement.point["seed"] for measurement in grid.measurements} == {0, 1}
    claims = [criterion.claim for criterion in grid.criteria]
    assert claims
    assert len(set(claims)) == len(claims)
    assert f"experiments.ablations.reproduce {name}" in module.__doc__, (
        "the notebook shows its command"
    )


NUMBERS = {
    "gold": lambda i: 0.5 * i - 0.11 * i**2,
    "proxy": lambda i: 0.4 * i,
    "kl": lambda i: (0.4 * i) ** 2,
    "nll": lambda i: 0.8 + 0.02 * i,
    "distance": lambda i: 0.4 * i,
    "preferred": lambda i: 0.5 + 0.05 * i - 0.02 * i**2,
    "update": lambda i: 2 * i,
    "n": lambda i: 2**i,
    "epoch": lambda i: 2.0 * i,
    "loss": lambda i: 1.0 + (i - 3) ** 2,
    "accuracy": lambda i: 0.6,
    "heldout": lambda i: 0.6 + 0.01 * i,
    "approxkl": lambda i: 0.01,
    "parameters": lambda i: 1000 * (i + 1),
    "kl_coef": lambda i: 0.1 * (i + 1),
    "part": lambda i: i + 1,
    "return": float,
    "horizon": lambda i: 8 * 2**i,
    "cost": lambda i: 0.01 * 4**i,
    "bound": lambda i: 0.02 * 4**i,
    "position": lambda i: i,
    "wrong": lambda i: 0.1 + 0.02 * i,
    "after_error": lambda i: 0.3 + 0.02 * i,
    "after_clean": lambda i: 0.1,
    "rankings": lambda i: 300 * 4**i,
    "flops": lambda i: 1e9 * 2**i,
    "shots": lambda i: 2**i,
}
CONSTANTS = {
    "decisions": 100,
    "after_error_count": 40,
    "after_clean_count": 60,
    "chance": 0.25,
    "popular": 0.4,
    "finished": 0.9,
    "length": 12.0,
    "perplexity": 3.0,
    "repetition": 0.1,
    "distinct": 0.2,
    "different": 0.5,
    "log_z_squared": 0.5,
    "cached": 64,
    **dict.fromkeys(truthfulness_toxicity_bias.COLUMNS, 0.7),
    "preferred_low": 0.4,
    "preferred_high": 0.6,
    "alpha": 0.5,
    "beta": 0.2,
    "r_squared": 0.96,
    "accuracy_gold": 0.7,
    "accuracy_heldout": 0.65,
    **{
        f"{name}{end}": 0.7
        for name in instructgpt_labelers.COLUMNS
        for end in ("", "_low", "_high")
    },
}
SEVERAL = {  # several rows of one measurement
    coste_ensembles.figure: [{"rule": rule} for rule in coste_ensembles.RULES],
    decoding.figure: [
        {
            "decoding": name,
            "temperature": decoding.SPECS[name].temperature if name in decoding.SPECS else 1.0,
        }
        for name in (decoding.PEOPLE, *decoding.SPECS)
    ],
    exposure.figure: [{"prefix": prefix} for prefix in ("own", "expert")],
    gpt3_few_shot.figure: [{"task": task} for task in gpt3_few_shot.SHOTS],
    ppo_table1.figure: [
        {"loss": loss, "return": k}
        for k, loss in enumerate((ppo_table1.UNTRAINED, *ppo_table1.ROWS))
    ],
}


def made_up(grid, *, diverged):
    """A table with every column that any ablation reads.

    If `diverged`, the first run of the last seed has diverged before its first row.
    """
    rows = []
    for measurement in grid.measurements:
        point = measurement.point
        for more in SEVERAL.get(grid.figure, [{}]):
            for i in range(7):
                numbers = {name: number(i) for name, number in NUMBERS.items()}
                rows.append({**CONSTANTS, **numbers, **point, **more, "status": "complete"})
        if point["seed"] == grid.seeds[-1] and diverged:
            rows = [row for row in rows if any(row.get(k) != v for k, v in point.items())]
            rows.append({**point, "status": "diverged: some/run"})
            diverged = False
    return reproduce.Table(rows)


@pytest.mark.parametrize("name", reproduce.names())
def test_every_shipped_ablation_judges_and_draws_every_seed_even_a_diverged_one(name, tmp_path):
    grid = importlib.import_module(f"experiments.ablations.{name}").get_ablation("tiny", (0, 1, 2))
    table = made_up(grid, diverged=False)
    details = [reproduce.judge(criterion, table)["detail"] for criterion in grid.criteria]
    assert [detail for detail in details if "could not be measured" in detail] == []
    table = made_up(grid, diverged=True)
    for criterion in grid.criteria:
        reproduce.judge(criterion, table)
    reproduce.draw(grid, table, tmp_path / "figure.png", size="tiny")


# --- on real stages, at tiny size -----------------------------------------------------------------


def make_context(workdir):
    return Context(workdir, Cache(workdir / "measured"))


@pytest.fixture
def bases(tour, tmp_path, monkeypatch):
    """A workdir whose base of seed 0 is the tour's, and configs that find the tour's data."""
    for name in ("pretrain", "sft", "label", "reward_last_token", "ppo", "evaluate"):
        monkeypatch.setattr(f"experiments.menagerie.{name}.DATA_DIR", str(tour.workdir / "data"))
    for stage in ("pretrain", "sft", "label", "reward"):
        shutil.copytree(tour.workdir / stage, tmp_path / "base/seed0" / stage)
    return tmp_path


def test_a_real_ablation_with_two_seeds(bases, capsys):
    grid = instructgpt_labelers.get_ablation("tiny", (0, 1))
    reproduce.reproduce("instructgpt_labelers", grid, bases, size="tiny")
    rows = list(
        csv.DictReader((bases / "instructgpt_labelers/results.csv").read_text().splitlines())
    )
    assert [row["seed"] for row in rows] == ["0", "1"]
    for row in rows:
        assert all(
            0 <= float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"]) <= 1
            for name in instructgpt_labelers.COLUMNS
        )
    verdict = json.loads((bases / "instructgpt_labelers/verdict.json").read_text())
    claims = [each["claim"] for each in verdict["criteria"]]
    assert claims == [criterion.claim for criterion in grid.criteria]
    assert verdict["criteria"][0]["value"] == pytest.approx(
        sum(float(row["agree_train"]) for row in rows) / 2
    )
    assert capsys.readouterr().out.count("complete, skipped") == 0


def test_a_reward_model_on_some_rankings_of_another_run_in_shuffled_pairs(bases, capsys):
    run = reward_run("tiny", 0, "rm/seed0/m-16", trunk="m", num_rankings=16)
    run.config.reward.batching = "shuffled_pairs"
    assert reproduce.finish(run, bases, {}) == "complete"
    lines = (bases / "base/seed0/label/comparisons/train/train.jsonl").read_text().splitlines()[:16]
    ranks = [json.loads(line)["ranks"] for line in lines]
    untied = sum(a < b for one in ranks for a in one for b in one)
    assert f"epochs of {untied} rankings" in capsys.readouterr().out
    assert {
        row["validation/loss_gold"]
        for row in metrics(bases / "rm/seed0/m-16")
        if "validation/loss_gold" in row
    }


def test_rankings_of_a_run_that_has_none_are_refused(bases):
    run = reward_run("tiny", 0, "rm/seed0/m-16", trunk="m", num_rankings=16)
    run.config.data.comparisons = "../../../base/seed0/sft"
    with pytest.raises(
        FileNotFoundError,
        match=r"no comparisons in .*base/seed0/sft/comparisons; run the label stage",
    ):
        reproduce.finish(run, bases, {})


def test_best_of_n_starts_at_zero_and_the_proxy_rises(bases):
    context, settings = make_context(bases), PolicyEvalSettings("tiny", 3, 16, 1, 2)
    rows = gao_best_of_n.curve(context, settings=settings, seed=0, folder="base/seed0/reward")
    assert [row["n"] for row in rows] == [1, 2, 4, 8, 16]
    assert rows[0]["distance"] == 0
    assert abs(rows[0]["gold"]) < 1e-9
    assert all(a["proxy"] < b["proxy"] for a, b in pairwise(rows))
    pool = draw_sample_pool(context, settings, 0)
    scores = proxy_scores(pool, bases / "base/seed0/reward")
    highest = [score[k].max() for score, k in zip(scores, pool.sample_index, strict=True)]
    assert rows[-1]["proxy"] == pytest.approx(sum(highest) / 3, abs=1e-5)


def test_the_prefix_whose_answers_score_highest_stands_before_every_prompt(bases, monkeypatch):
    context, settings = make_context(bases), PolicyEvalSettings("tiny", 4, 2, 1, 8)
    reference, tried = load_reference(context, settings, 0), []
    draw = instructgpt_win_rates.draw_answers
    monkeypatch.setattr(
        instructgpt_win_rates,
        "draw_answers",
        lambda *arguments: tried.append(arguments[1].prompts) or draw(*arguments),
    )
    monkeypatch.setattr(
        instructgpt_win_rates,
        "make_proxy",
        lambda *_: lambda items: np.array([len(tried) % 3, 0.0]),
    )
    prefix = instructgpt_win_rates.best_prefix(context, reference, settings, 0)
    assert len(tried) == instructgpt_win_rates.PREFIXES
    assert [prompt.messages[: len(prefix)] for prompt in tried[1]] == [
        tuple(prefix)
    ] * 4  # 1, 2, 0, 1, ...: the second is best
    assert [prompt.messages[-1] for prompt in tried[0]] != [
        prompt.messages[-1] for prompt in reference.prompt_set.prompts
    ]  # validation
    arguments = {"settings": settings, "seed": 0, "folder": "base/seed0/pretrain"}
    (plain,), (prompted,) = (
        instructgpt_win_rates.judge_method(context, **arguments, prompted=prompted)
        for prompted in (False, True)
    )
    assert len(tried) == instructgpt_win_rates.PREFIXES + 2, "the competition is held once"
    assert tried[-2] == reference.prompt_set.prompts
    assert [prompt.messages for prompt in tried[-1]] == [
        (*prefix, *prompt.messages) for prompt in reference.prompt_set.prompts
    ]
    for row in (plain, prompted):
        assert row["preferred_low"] <= row["preferred"] <= row["preferred_high"]


def test_the_supervised_policy_is_at_distance_zero_of_itself(bases):
    context, settings = make_context(bases), PolicyEvalSettings("tiny", 4, 2, 1, 8)
    row = evaluate_checkpoints(
        context,
        settings=settings,
        seed=0,
        folder="base/seed0/sft",
        reward_folder="base/seed0/reward",
        steps=[9],
        start=True,
    )[0]
    assert row["update"] == 0
    assert {name: row[name] for name in ("kl", "gold", "proxy")} == pytest.approx(
        {"kl": 0, "gold": 0, "proxy": 0}, abs=1e-5
    )
    assert row["preferred"] == 0.5  # the same answers: nobody prefers any
