"""The notebooks run from first cell to last at tiny size, and are stored without outputs."""

import json
import math
import re
import shutil
import sys

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from tests_support import ROOT

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "colabs").glob("*.ipynb"))}
FIGURES = {
    "rlhf_tour": (
        "world-gold",
        "pretrain-run",
        "sft-run",
        "reward-plots",
        "rollout-table",
        "ppo-curves",
        "tax",
        "evaluate-plot",
    ),
    "over_optimisation": ("noise", "winners", "curves", "rl-plot"),
    "ppo_details": (
        "bandit",
        "bandit-clip",
        "runs-plot",
        "ratio",
        "tokens",
        "whiten",
        "clip-plot",
        "value",
        "eos",
    ),
}


def stored(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


# --- as stored -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_valid_and_has_no_outputs(name):
    notebook = stored(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_names_no_folder_of_anyones_machine(name):
    text = NOTEBOOKS[name].read_text(encoding="utf-8")
    rooted = re.compile(
        r"(?<![\w.:/])/(?:home|Users|root|work|tmp|mnt|content|opt|var|usr)\b|\b[A-Z]:\\\\\w|file://|(?<!\w)~/"
    )
    assert rooted.findall(text) == []


# --- as run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all notebooks run, with a kernel of this interpreter."""
    folder = tmp_path_factory.mktemp("colab")
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "tour",
        "language": "python",
    }
    (folder / "kernels" / "tour").mkdir(parents=True)
    (folder / "kernels" / "tour" / "kernel.json").write_text(json.dumps(spec))
    return folder


def execute(name, folder):
    """A notebook with its outputs; raises `CellExecutionError` if a cell does."""
    specs = KernelSpecManager(
        kernel_dirs=[str(folder / "kernels")]
    )  # no kernel of the machine, whatever it is called
    notebook = stored(name)
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # JAX_PLATFORMS and the cache of compiled programs come from conftest.py
        patch.setenv("RLHF_JAX_TOUR", str(folder / "run"))
        patch.setenv("RLHF_JAX_FOLDER", str(folder))
        patch.setenv("RLHF_JAX_SIZE", "tiny")
        for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(variable, str(folder / variable.lower()))
        kernel = AsyncKernelManager(kernel_name="tour", kernel_spec_manager=specs)
        # Only so that nothing hangs forever: a starved machine is no reason to fail.
        client = NotebookClient(
            notebook,
            km=kernel,
            timeout=1200,
            startup_timeout=600,
            resources={"metadata": {"path": str(NOTEBOOKS[name].parent)}},
        )
        client.execute()
    return notebook


@pytest.fixture(scope="module")
def executed(folder):
    """The tour."""
    return execute("rlhf_tour", folder)


@pytest.fixture(scope="module")
def others(executed, folder):
    """The other notebooks, which find the tour's data and first stages in place of their own."""
    (folder / "runs/colabs").mkdir(parents=True)
    (folder / "runs/data").symlink_to(folder / "run/data")
    for stage in ("pretrain", "sft", "label", "reward"):
        copy = folder / "runs/colabs/tiny/base/seed0" / stage
        shutil.copytree(folder / "run" / stage, copy)
        config = (copy / "config.json").read_text()
        (copy / "config.json").write_text(config.replace(str(folder / "run/data"), "runs/data"))
    return {name: execute(name, folder) for name in NOTEBOOKS if name != "rlhf_tour"}


@pytest.fixture(scope="module")
def everything(executed, others):
    return {"rlhf_tour": executed, **others}


@pytest.fixture(scope="module")
def over_optimisation(others):
    return others["over_optimisation"]


@pytest.fixture(scope="module")
def ppo_details(others):
    return others["ppo_details"]


def cell(notebook, name):
    return next(cell for cell in notebook.cells if cell.id == name)


def printed(notebook, name):
    """What a cell wrote to its standard output."""
    return "".join(
        output.text for output in cell(notebook, name).outputs if output.get("name") == "stdout"
    )


def numbers(text):
    return [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_ran_in_order_and_none_raised(everything, name):
    code = [cell for cell in everything[name].cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [
        cell.id for cell in code for output in cell.outputs if output.output_type == "error"
    ]


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, places in FIGURES.items() for place in places]
)
def test_figures_were_drawn(everything, name, place):
    images = [
        output
        for output in cell(everything[name], place).outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == 1
    assert len(images[0].data["image/png"]) > 10_000  # base64; an empty canvas is far smaller


# --- the tour


def test_the_loss_mask_is_shown_token_by_token(executed):
    page = next(
        output.data["text/html"]
        for output in cell(executed, "sft-mask").outputs
        if "data" in output
    )
    assert page.count("#a6d4f2") > 5  # trained
    assert page.count("#e4e4e4") > 5  # only read
    trained, read = numbers(printed(executed, "sft-mask").splitlines()[0])
    assert 0 < trained < read


def test_the_ranking_loss_by_hand_is_the_packages(executed):
    pairs, by_hand, by_package = numbers(printed(executed, "reward-hand").partition("over")[2])
    assert pairs >= 3
    assert by_hand == pytest.approx(by_package, abs=1e-5)
    assert by_hand > 0


def test_accuracies_are_shares(executed):
    shares = numbers(printed(executed, "reward-plots"))
    assert len(shares) == 2
    assert all(0 <= share <= 1 for share in shares)


def test_a_response_is_priced_token_by_token(executed):
    text = printed(executed, "rollout-table")
    header, *lines = text.split("\n\n")[1].strip("\n").splitlines() if "\n\n" in text else [""]
    assert header.split() == [
        "token",
        "logp",
        "ref",
        "logp",
        "KL",
        "reward",
        "value",
        "advantage",
        "whitened",
        "return",
    ]
    columns = [[float(number) for number in line.split()[-8:]] for line in lines]
    for logp, ref_logp, kl, _, expected, advantage, _, returned in columns:
        assert kl == pytest.approx(logp - ref_logp, abs=2e-3)
        assert returned == pytest.approx(expected + advantage, abs=2e-3)
    paid, score, beta, total_kl = numbers(
        text.rpartition("sum of rewards")[2].replace("- beta", "beta")
    )
    assert paid == pytest.approx(score - beta * total_kl, abs=1e-3)
    assert paid == pytest.approx(sum(row[3] for row in columns), abs=1e-3 * len(columns))


def test_the_first_ratio_is_one(executed):
    sampled, other, largest, training = printed(executed, "ratio").splitlines()
    ratio, clipped, approximate_kl = numbers(sampled.partition("{")[2])
    assert ratio == pytest.approx(1, abs=1e-5)
    assert (clipped, round(approximate_kl, 6)) == (0, 0)
    assert numbers(other.partition("{")[2])[2] > 1e-7  # another policy has another ratio
    assert numbers(largest)[-1] < 1e-4
    assert numbers(training)[0] < 1e-4


def test_all_checkpoints_are_measured_and_the_assistant_answers(executed):
    assert len(numbers(printed(executed, "tax"))) == 4
    assert re.findall(r"gold of (\w+)", printed(executed, "evaluate-plot")) == [
        "base",
        "sft",
        "ppo",
        "ppo_ptx",
    ]
    assert printed(executed, "report").startswith("wrote ")
    assert printed(executed, "chat-run").count("user ") == 2
    assert printed(executed, "chat-run").count("assistant ") == 2


def test_every_exercise_is_one_changed_line(executed):
    lines = printed(executed, "exercises-check").splitlines()
    assert len(lines) == 5
    assert all(line.count("->") == 1 for line in lines)


# --- over-optimisation


def test_the_first_stages_were_found_and_not_trained_again(over_optimisation):
    trained = re.findall(
        r"^== (\w+): (\S+)$", printed(over_optimisation, "models"), flags=re.MULTILINE
    )
    assert trained == [("reward", "runs/colabs/tiny/rm/seed0/m-16")]


def test_independent_noise_costs_the_share_that_theory_says(over_optimisation):
    lines = printed(over_optimisation, "noise").splitlines()
    assert len(lines) == 3
    for line in lines:
        share, expected = numbers(line.partition("gold is")[2])[0], numbers(line)[-1]
        assert share == pytest.approx(expected, abs=0.1)


def test_the_fits_are_finite_numbers(over_optimisation):
    fits = re.findall(
        r"proxy: alpha (\S+), beta (\S+), R² (\S+),", printed(over_optimisation, "curves")
    )
    assert len(fits) == 2
    for alpha, beta, r_squared in fits:
        assert all(math.isfinite(float(number)) for number in (alpha, beta, r_squared))
        assert float(alpha) != 0
        assert float(r_squared) <= 1


def test_ppo_leaves_the_supervised_policy(over_optimisation):
    runs = [
        line
        for line in printed(over_optimisation, "rl-plot").splitlines()
        if line.startswith("beta")
    ]
    assert [numbers(line)[0] for line in runs] == [0.0, 0.05, 0.2]
    for line in runs:
        assert numbers(line)[-1] > 0.01  # KL at the end, nats
    assert printed(over_optimisation, "answers").count("  PPO  proxy") == 4


# --- PPO's details


def test_the_bandit_goes_where_the_formulas_say(ppo_details):
    lines = printed(ppo_details, "bandit").splitlines()
    assert len(lines) == 3
    for line in lines:
        reached, formula = (numbers(part) for part in re.findall(r"\[(.*?)\]", line))
        assert reached == pytest.approx(formula, abs=0.03)
    reached, best = numbers(lines[0].partition("J ")[2])
    assert best - 0.01 < reached <= best + 1e-4


def test_the_details_start_at_ratio_one_and_leave_it(ppo_details):
    first, *later = printed(ppo_details, "ratio").splitlines()
    assert first.startswith("first minibatch")
    assert numbers(first.partition("1|")[2])[0] < 1e-5
    assert len(later) == 4
    assert all(numbers(line.partition("1|")[2])[0] > 1e-3 for line in later)


def test_the_tokens_of_one_response_are_paid_what_it_earns(ppo_details):
    paid, score, beta, nats = numbers(
        printed(ppo_details, "tokens").splitlines()[0].replace("- beta", "beta")
    )
    assert paid == pytest.approx(score - beta * nats, abs=1e-3)


def test_whitened_means_mean_zero_and_deviation_one(ppo_details):
    _, white, _ = printed(ppo_details, "whiten").splitlines()
    assert numbers(white) == pytest.approx([0, 1], abs=2e-3)


def test_some_answers_have_no_room_to_end(ppo_details):
    torn, count, room = numbers(printed(ppo_details, "eos").strip().splitlines()[-1])
    assert 0 < torn < count
    assert room == 12
