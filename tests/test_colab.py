"""The notebook runs from its first cell to its last at tiny size, in a kernel of this interpreter, and is stored clean."""

import json
import re
import sys

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from tests_support import ROOT

NOTEBOOK = ROOT / "colabs" / "rlhf_tour.ipynb"
FIGURES = ("world-gold", "pretrain-run", "sft-run", "reward-plots", "rollout-table", "ppo-curves", "tax", "evaluate-plot")


def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


# --- as stored ----------------------------------------------------------------------------------------------


def test_it_is_valid_and_has_no_outputs():
    notebook = stored()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


def test_it_names_no_folder_of_anyones_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    rooted = re.compile(r"(?<![\w.:/])/(?:home|Users|root|work|tmp|mnt|content|opt|var|usr)\b|\b[A-Z]:\\\\\w|file://|(?<!\w)~/")
    assert rooted.findall(text) == []


# --- as run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs; raises `CellExecutionError` if a cell does."""
    folder = tmp_path_factory.mktemp("colab")
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "tour",
            "language": "python"}  # fmt: skip
    (folder / "kernels" / "tour").mkdir(parents=True)
    (folder / "kernels" / "tour" / "kernel.json").write_text(json.dumps(spec))
    specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")])  # no kernel of the machine, whatever it is called
    notebook = stored()
    with pytest.MonkeyPatch.context() as patch:  # JAX_PLATFORMS and the cache of compiled programs come from conftest.py
        patch.setenv("RLHF_JAX_TOUR", str(folder / "run"))
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        kernel = AsyncKernelManager(kernel_name="tour", kernel_spec_manager=specs)
        # Only so that nothing hangs forever: a starved machine is no reason to fail.
        client = NotebookClient(notebook, km=kernel, timeout=1200, startup_timeout=600,
                                resources={"metadata": {"path": str(NOTEBOOK.parent)}})  # fmt: skip
        client.execute()
    return notebook


def cell(notebook, name):
    return next(cell for cell in notebook.cells if cell.id == name)


def printed(notebook, name):
    """What a cell wrote to its standard output."""
    return "".join(output.text for output in cell(notebook, name).outputs if output.get("name") == "stdout")


def numbers(text):
    return [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def test_every_cell_ran_in_order_and_none_raised(executed):
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [cell.id for cell in code for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_were_drawn(executed, name):
    images = [output for output in cell(executed, name).outputs if "image/png" in output.get("data", {})]
    assert len(images) == 1
    assert len(images[0].data["image/png"]) > 10_000  # base64; an empty canvas is far smaller


def test_the_loss_mask_is_shown_token_by_token(executed):
    page = next(output.data["text/html"] for output in cell(executed, "sft-mask").outputs if "data" in output)
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
    found = numbers(printed(executed, "reward-plots"))
    assert len(found) == 2
    assert all(0 <= share <= 1 for share in found)


def test_a_response_is_priced_token_by_token(executed):
    text = printed(executed, "rollout-table")
    header, *lines = text.split("\n\n")[1].strip("\n").splitlines() if "\n\n" in text else [""]
    assert header.split() == ["token", "logp", "ref", "logp", "KL", "reward", "value", "advantage", "whitened", "return"]
    columns = [[float(number) for number in line.split()[-8:]] for line in lines]
    for logp, ref_logp, kl, _, expected, advantage, _, returned in columns:
        assert kl == pytest.approx(logp - ref_logp, abs=2e-3)
        assert returned == pytest.approx(expected + advantage, abs=2e-3)
    paid, score, beta, total_kl = numbers(text.rpartition("sum of rewards")[2].replace("- beta", "beta"))
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
    assert re.findall(r"gold of (\w+)", printed(executed, "evaluate-plot")) == ["base", "sft", "ppo", "ppo_ptx"]
    assert printed(executed, "report").startswith("wrote ")
    assert printed(executed, "chat-run").count("user ") == 2
    assert printed(executed, "chat-run").count("assistant ") == 2


def test_every_exercise_is_one_changed_line(executed):
    lines = printed(executed, "exercises-check").splitlines()
    assert len(lines) == 5
    assert all(line.count("->") == 1 for line in lines)
