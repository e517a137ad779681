"""Ouyang et al. 2022, Fig. 1: how often labelers prefer each step of the recipe, at three sizes, to the largest SFT model.

    python -m experiments.ablations.reproduce instructgpt_win_rates --seeds=3

The pretrained model, the same behind a prefix, SFT, PPO and PPO-ptx, of three sizes. One reward model and one value function,
those of the largest size, serve all policies, as InstructGPT's of 6B served its 175B. Judges gave no training label.

The prefix is found as theirs was (section 3.5): of several candidates the one whose answers to validation prompts the reward
model scores highest, with the largest pretrained model. A candidate is two demonstrations, as turns before the prompt's own;
the context has room for no more, theirs for many.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Bench,
    Criterion,
    Finding,
    GridRun,
    Measurement,
    Row,
    Table,
    draw_seeds,
    paired,
)
from experiments.ablations.measures import (
    Asked,
    Panel,
    Reference,
    draw_answers,
    make_proxy,
    opinions,
    panel_of,
    reference,
)
from experiments.ablations.shared import KL_COEF, PTX_COEF, TRUNKS, base, base_runs, policy
from experiments.menagerie import sft
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Demonstration, Message, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.checkpoints import find_checkpoint, load_language_model
from rlhf_jax.evaluation.likelihood import continuations
from rlhf_jax.models.config import num_params

SIZES = (*TRUNKS, "m")  # from the smallest to the largest
METHODS = {
    "GPT": "#767676",
    "GPT prompted": "#b8860b",
    "SFT": "#009e73",
    "PPO": "#56b4e9",
    "PPO-ptx": "#d55e00",
}
PPO_PTX = {"PPO": 0.0, "PPO-ptx": PTX_COEF}
PREFIXES = 16  # candidates


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Two PPO runs a size and seed beyond the base."""
    panel = panel_of(size)
    runs: dict[str, GridRun] = {}
    measurements = []
    for seed in seeds:
        runs |= {run.folder: run for run in base_runs(size, seed, *TRUNKS)}
        largest = (base(seed, "pretrain"), base(seed, "sft"), base(seed, "reward"))
        for trunk in SIZES:
            folders = {
                name: base(seed, stage, trunk)
                for name, stage in (
                    ("GPT", "pretrain"),
                    ("GPT prompted", "pretrain"),
                    ("SFT", "sft"),
                )
            }
            for name, ptx_coef in PPO_PTX.items():
                run = policy(size, seed, kl_coef=KL_COEF, ptx_coef=ptx_coef, trunk=trunk)
                runs[run.folder], folders[name] = run, run.folder
            measurements += [
                Measurement(
                    f"seed{seed}-{trunk}-{name.replace(' ', '-')}",
                    {"seed": seed, "trunk": trunk, "method": name},
                    (folder, *largest),
                    panel.settings,
                    partial(
                        judged,
                        panel=panel,
                        seed=seed,
                        folder=folder,
                        prompted=name == "GPT prompted",
                    ),
                )
                for name, folder in folders.items()
            ]
    return Ablation(
        "Ouyang et al. 2022, Fig. 1",
        seeds,
        list(runs.values()),
        measurements,
        CRITERIA,
        figure,
        "Against the largest supervised model. Thin: seeds.",
    )


# --- measurements -----------------------------------------------------------------------------------------------------


def judged(bench: Bench, *, panel: Panel, seed: int, folder: str, prompted: bool) -> list[Row]:
    """Held-out labelers' preference over the largest supervised model's answers, and gold."""
    ref = reference(bench, panel, seed)
    one = load_language_model(find_checkpoint(bench.workdir, str(bench.folder(folder))))
    context_length = one.model.config.context_length
    asked = (
        behind(ref.asked, best_prefix(bench, ref, panel, seed), context_length)
        if prompted
        else ref.asked
    )
    answers = draw_answers(one, asked, panel, seed)
    row: Row = {"parameters": num_params(one.model.config)}
    for name, found in opinions(panel, ref, answers, seed).items():
        row |= {
            name: found.value,
            f"{name}_low": float(found.low or 0.0),
            f"{name}_high": float(found.high or 0.0),
        }
    return [row]


def behind(asked: Asked, prefix: Sequence[Message], context_length: int) -> Asked:
    """The same prompts, each behind a prefix of earlier turns; together they may fill what an answer leaves of the context."""
    prompts = [replace(prompt, messages=(*prefix, *prompt.messages)) for prompt in asked.prompts]
    prompt_length = context_length - asked.sampling.response_length
    sampling = asked.sampling._replace(prompt_length=prompt_length)
    return replace(asked, prompts=prompts, sampling=sampling)


def best_prefix(bench: Bench, ref: Reference, panel: Panel, seed: int) -> list[Message]:
    """The winner of the competition, held once a seed and kept."""
    raw, reward = (
        find_checkpoint(bench.workdir, str(bench.folder(base(seed, stage))))
        for stage in ("pretrain", "reward")
    )

    def compete() -> dict[str, list[str]]:
        one, proxy = load_language_model(raw), make_proxy(ref, bench.folder(base(seed, "reward")))
        config, tokenizer = sft.get_config(panel.size).data, ref.asked.tokenizer
        told = load(config.demonstrations, Demonstration, split="train", data_dir=config.data_dir)
        asked = load(config.prompts, Prompt, split="validation", data_dir=config.data_dir)
        prompts = fitting_prompts(asked, tokenizer, prompt_length=config.prompt_length)[
            : panel.num_prompts
        ]
        exam = replace(ref.asked, prompts=prompts)
        scores, context_length = [], one.model.config.context_length
        room = context_length - exam.sampling.prompt_length - exam.sampling.response_length
        prefixes = candidates(told, tokenizer, room)
        for prefix in prefixes:
            said = draw_answers(
                one, behind(exam, prefix, context_length), replace(panel, num_samples=1), seed
            )
            scores.append(float(proxy(continuations(tokenizer, prompts, said)).mean()))
        winner = prefixes[int(np.argmax(scores))]
        return {
            "roles": [turn.role for turn in winner],
            "contents": [turn.content for turn in winner],
        }

    depends_on = {
        **panel.settings,
        "policy": raw.meta.fingerprint,
        "reward": reward.meta.fingerprint,
    }
    kept, _ = bench.cache.get(f"seed{seed}", "prefix", depends_on, compete)
    return [
        Message(role, content)
        for role, content in zip(kept["roles"], kept["contents"], strict=True)
    ]


def candidates(
    demonstrations: Sequence[Demonstration], tokenizer: Tokenizer, room: int
) -> list[list[Message]]:
    """`PREFIXES` pairs of neighbours among the demonstrations of which two fit; one alone where no two do."""
    turns = [list(one.messages) for one in demonstrations]
    length = [len(one.ids) for one in render_batch(tokenizer, turns, generation_prompt=False)]
    for several in (2, 1):
        short = [few for few, tokens in zip(turns, length, strict=True) if several * tokens <= room]
        if len(short) >= several * PREFIXES:
            groups = [
                short[start : start + several] for start in range(0, several * PREFIXES, several)
            ]
            return [[turn for few in group for turn in few] for group in groups]
    raise ValueError(
        f"fewer than {PREFIXES} demonstrations of at most {room} tokens, expected enough for the prefixes"
    )


# --- claims -----------------------------------------------------------------------------------------------------------


def _rate(table: Table, method: str, trunk: str, column: str = "preferred") -> dict[int, float]:
    found = table.where(method=method, trunk=trunk).having(column)
    if not len(found):
        raise ValueError(f"no point of {method} at size {trunk}")
    return {seed: float(one.column(column)[0]) for seed, one in found.by("seed")}


def _gaps(table: Table, better: tuple[str, str], worse: tuple[str, str]) -> np.ndarray:
    """(method, size) less (method, size), paired by seed."""
    return paired(_rate(table, *better), _rate(table, *worse))


def ordered(table: Table) -> Finding:
    """The smallest step of PPO and PPO-ptx over SFT, SFT over the prompted model, that over the plain one."""
    pairs = (("PPO", "SFT"), ("PPO-ptx", "SFT"), ("SFT", "GPT prompted"), ("GPT prompted", "GPT"))
    steps = {
        (trunk, better, worse): t_interval(_gaps(table, (better, trunk), (worse, trunk)))
        for trunk in SIZES
        for better, worse in pairs
    }
    least = min(steps, key=lambda name: steps[name].mean)
    text = f"the smallest: {least[1]} over {least[2]} at size {least[0]}; {sum(one.low > 0 for one in steps.values())} of "
    return Finding(
        steps[least].mean > 0, *steps[least], f"{text}{len(steps)} steps have intervals above 0"
    )


def supervised_is_better(table: Table) -> Finding:
    """The least distance between SFT's and GPT's intervals, of all seeds and sizes."""
    gaps: dict[tuple[str, int], float] = {}
    for trunk in SIZES:
        low, high = (
            _rate(table, "SFT", trunk, "preferred_low"),
            _rate(table, "GPT", trunk, "preferred_high"),
        )
        gaps |= {(trunk, seed): low[seed] - high[seed] for seed in low if seed in high}
    least = min(gaps, key=lambda name: gaps[name])
    return Finding(
        gaps[least] > 0, gaps[least], None, None, f"the least: size {least[0]}, seed {least[1]}"
    )


def small_beats_large(table: Table) -> Finding:
    """The smallest PPO-ptx less the largest pretrained model."""
    found = t_interval(_gaps(table, ("PPO-ptx", SIZES[0]), ("GPT", SIZES[-1])))
    prompted = _gaps(table, ("PPO-ptx", SIZES[0]), ("GPT prompted", SIZES[-1])).mean()
    return Finding(found.low > 0, *found, f"{prompted:+.3f} over the largest one prompted")


def alike(table: Table) -> Finding:
    """The largest difference between PPO-ptx and PPO."""
    gaps = {
        trunk: float(_gaps(table, ("PPO-ptx", trunk), ("PPO", trunk)).mean()) for trunk in SIZES
    }
    most = max(gaps, key=lambda trunk: abs(gaps[trunk]))
    return Finding(
        abs(gaps[most]) <= 0.05,
        abs(gaps[most]),
        None,
        None,
        ", ".join(f"{k}: {v:+.3f}" for k, v in gaps.items()),
    )


CRITERIA = (
    Criterion(
        "E11.order",
        "at every size PPO and PPO-ptx > SFT > prompted > pretrained (the value is the smallest step)",
        ordered,
    ),
    Criterion(
        "E11.sft",
        "at every size and seed the interval of SFT lies above that of the pretrained model",
        supervised_is_better,
    ),
    Criterion(
        "E11.small",
        "the smallest PPO-ptx is preferred more than the largest pretrained model (interval above 0)",
        small_beats_large,
    ),
    Criterion("E11.ptx", "PPO-ptx and PPO differ by at most 5 points at every size", alike),
)


# --- figure -----------------------------------------------------------------------------------------------------------


def figure(table: Table) -> Figure:
    """Win rate against size for every method; gold beside it."""
    made, axes = plt.subplots(1, 2, figsize=(9.4, 3.8))
    columns = {
        "preferred": "preferred to the largest SFT model",
        "gold": "gold, SD of the largest SFT model",
    }
    for one, (column, label) in zip(axes, columns.items(), strict=True):
        for method, colour in METHODS.items():
            draw_seeds(
                one, table.where(method=method), "parameters", column, colour=colour, label=method
            )
        one.set(xlabel="parameters", ylabel=label, xscale="log")
        one.axhline(0.5 if column == "preferred" else 0.0, color="#bbb", lw=0.8, zorder=0)
        one.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    made.tight_layout()
    return made
