"""The speed benchmarks run the stages' functions and count what they do."""

import ast
import sys

import jax
import pytest

from benchmarks import compare
from benchmarks.run import rows, take_turns
from benchmarks.worker import ROOT, Worker
from benchmarks.works import PPO_PHASES, WORKS, Size, matmul_params, shape
from rlhf_jax.models import LanguageModel, init_params

TINY = Size(
    width=16,
    num_layers=1,
    num_heads=2,
    vocab_size=32,
    remat="none",
    attention="plain",
    prompts=4,
    rows=2,
    pairs=2,
    prompt=8,
    response=8,
    length=16,
)


@pytest.mark.parametrize("name", ["generate", "ragged", "sft", "reward", "ppo"])
def test_every_work_runs_twice(name):
    work = WORKS[name](TINY, "float32")
    for _ in range(2):
        measured = work.run()
        assert measured["seconds"] > 0
    if name == "ragged":
        assert 4 <= measured["tokens"] < work.units
    if name == "ppo":
        assert sum(measured[phase] for phase in PPO_PHASES) == pytest.approx(measured["seconds"])


def test_counted_parameters_are_those_of_the_kernels():
    params = init_params(LanguageModel(shape(TINY, "float32")), jax.random.key(0))
    kernels = sum(
        leaf.size for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"
    )
    assert matmul_params(TINY) == (kernels, params["trunk"]["embedding"].size)


def test_workers_take_turns_and_a_dead_one_is_left_out(tmp_path, capsys):
    serve = (
        "import sys; sys.path.insert(0, '.'); from benchmarks.worker import serve; "
        "serve({}, units=2, unit='x', flops=4e9)"
    )

    def worker(run):
        return Worker([sys.executable, "-c", serve.format(run)], {}, tmp_path / "log")

    measured = take_turns(
        {"a": worker("lambda: dict(seconds=2.0, bandwidth=1.0)"), "b": worker("lambda: 1 / 0")}, 3
    )
    assert [run["seconds"] for run in measured["a"].runs] == [2.0] * 3
    assert "b" not in measured
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert "2 [2..2] GFLOP/s" in rows(measured, "a")[-1]


@pytest.mark.parametrize("name", compare.PEERS)
def test_a_peer_is_said_to_have_what_its_file_has(name):
    folder = ROOT / "benchmarks" / "peers"
    assigned = {
        node.targets[0].id: node.value
        for node in ast.parse((folder / f"{name}_works.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    works, sizes = (
        tuple(map(ast.literal_eval, assigned[table].keys)) for table in ("WORKS", "SIZES")
    )
    assert compare.PEERS[name] == (works, sizes)
    assert (folder / f"{name}_requirements.txt").exists()


@pytest.mark.parametrize(("work", "size"), [("generate", "S512"), ("ppo", "M")])
def test_what_a_peer_lacks_is_named_and_left_out(work, size, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["compare", "--peer=tunix", "--python=python", f"--works={work}", f"--sizes={size}"],
    )
    compare.main()
    assert f"{work} {size} float32: tunix lacks it" in capsys.readouterr().err
