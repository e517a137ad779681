"""Measure how often labelers prefer each step of the recipe to the largest SFT model.

    python -m experiments.ablations.reproduce instructgpt_win_rates --seeds=3

Ouyang et al. 2022, Fig. 1: the pretrained model, the same behind a prefix, SFT, PPO and PPO-ptx, of
three sizes. One reward model and one value function, those of the largest size, serve all policies,
as InstructGPT's of 6B served its 175B. Judges gave no training label.

The prefix is found as theirs was (section 3.5): of several candidates the one whose answers to
validation prompts the reward model scores highest, with the largest pretrained model. A candidate
is two demonstrations, as turns before the prompt's own; the context has room for no more, theirs
for many.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    Row,
    Table,
    draw_seeds,
    interval_finding,
    paired,
)
from experiments.ablations.measures import (
    PolicyEvalSettings,
    PromptSet,
    Reference,
    draw_answers,
    full_eval_settings,
    interval_columns,
    judge_answers,
    load_reference,
    make_proxy,
)
from experiments.ablations.shared import KL_COEF, PTX_COEF, SIZES, TRUNKS, base, base_runs, policy
from experiments.menagerie import sft
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Demonstration, Message, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.checkpoints import load_language_model
from rlhf_jax.evaluation.likelihood import continuations
from rlhf_jax.models.config import num_params

METHODS = {
    "GPT": "#767676",
    "GPT prompted": "#b8860b",
    "SFT": "#009e73",
    "PPO": "#56b4e9",
    "PPO-ptx": "#d55e00",
}
BASE_STAGES = {"GPT": "pretrain", "GPT prompted": "pretrain", "SFT": "sft"}
PTX_COEFS = {"PPO": 0.0, "PPO-ptx": PTX_COEF}
PREFIXES = 16  # candidates


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Run PPO twice a size and seed beyond the base."""
    notes = "Against the largest supervised model. Thin: seeds."
    ablation = Ablation("Ouyang et al. 2022, Fig. 1", seeds, CRITERIA, figure, notes)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed, *TRUNKS))
        largest = [base(seed, stage) for stage in ("pretrain", "sft", "reward")]
        for trunk in SIZES:
            folders = {name: base(seed, stage, trunk) for name, stage in BASE_STAGES.items()}
            for name, ptx_coef in PTX_COEFS.items():
                run = policy(size, seed, kl_coef=KL_COEF, ptx_coef=ptx_coef, trunk=trunk)
                ablation.add_runs(run)
                folders[name] = run.folder
            for name, folder in folders.items():
                ablation.add_measurement(
                    f"seed{seed}-{trunk}-{name.replace(' ', '-')}",
                    {"seed": seed, "trunk": trunk, "method": name},
                    (folder, *largest),
                    judge_method,
                    settings=full_eval_settings(size),
                    seed=seed,
                    folder=folder,
                    prompted=name == "GPT prompted",
                )
    return ablation


# --- measurements ---------------------------------------------------------------------------------


def judge_method(
    context: Context, *, settings: PolicyEvalSettings, seed: int, folder: str, prompted: bool
) -> list[Row]:
    """Measure labelers' preference over the largest supervised model's answers, and gold."""
    reference = load_reference(context, settings, seed)
    prompt_set = reference.prompt_set
    model = load_language_model(context.checkpoint(folder))
    if prompted:
        prefix = best_prefix(context, reference, settings, seed)
        prompt_set = with_prefix(prompt_set, prefix, model.model.config.context_length)
    answers = draw_answers(model, prompt_set, settings, seed)
    measured = judge_answers(settings, reference, answers, seed)
    return [{"parameters": num_params(model.model.config), **interval_columns(measured)}]


def with_prefix(prompt_set: PromptSet, prefix: Sequence[Message], context_length: int) -> PromptSet:
    """Return the same prompts, each behind a prefix of earlier turns.

    Together they may fill what an answer leaves of the context.
    """
    prompts = [replace(p, messages=(*prefix, *p.messages)) for p in prompt_set.prompts]
    prompt_length = context_length - prompt_set.sampling.response_length
    sampling = prompt_set.sampling._replace(prompt_length=prompt_length)
    return replace(prompt_set, prompts=prompts, sampling=sampling)


def best_prefix(
    context: Context, reference: Reference, settings: PolicyEvalSettings, seed: int
) -> list[Message]:
    """Return the winner of the competition, which is held once a seed."""
    pretrained = context.checkpoint(base(seed, "pretrain"))
    reward = context.checkpoint(base(seed, "reward"))

    def compete() -> dict[str, list[str]]:
        policy = load_language_model(pretrained)
        proxy = make_proxy(reference, context.folder(base(seed, "reward")))
        data, tokenizer = sft.get_config(settings.size).data, reference.prompt_set.tokenizer
        shown = load(data.demonstrations, Demonstration, split="train", data_dir=data.data_dir)
        prompts = load(data.prompts, Prompt, split="validation", data_dir=data.data_dir)
        prompts = fitting_prompts(prompts, tokenizer, prompt_length=data.prompt_length)
        prompts = prompts[: settings.num_prompts]
        prompt_set = replace(reference.prompt_set, prompts=prompts)
        context_length, sampling = policy.model.config.context_length, prompt_set.sampling
        room = context_length - sampling.prompt_length - sampling.response_length
        prefixes, scores = candidate_prefixes(shown, tokenizer, room), []
        for prefix in prefixes:
            prefixed = with_prefix(prompt_set, prefix, context_length)
            answers = draw_answers(policy, prefixed, replace(settings, num_samples=1), seed)
            scores.append(float(proxy(continuations(tokenizer, prompts, answers)).mean()))
        winner = prefixes[int(np.argmax(scores))]
        return {"roles": [m.role for m in winner], "contents": [m.content for m in winner]}

    depends_on = {
        **asdict(settings),
        "policy": pretrained.meta.fingerprint,
        "reward": reward.meta.fingerprint,
    }
    kept, _ = context.cache.get(f"seed{seed}", "prefix", depends_on, compete)
    turns = zip(kept["roles"], kept["contents"], strict=True)
    return [Message(role, content) for role, content in turns]


def candidate_prefixes(
    demonstrations: Sequence[Demonstration], tokenizer: Tokenizer, room: int
) -> list[list[Message]]:
    """Return `PREFIXES` pairs of neighbours among the demonstrations of which two fit.

    Where there are too few, single demonstrations.

    Raises:
        ValueError: there are too few of these, too.
    """
    turns = [list(demonstration.messages) for demonstration in demonstrations]
    lengths = [len(row.ids) for row in render_batch(tokenizer, turns, generation_prompt=False)]
    for count in (2, 1):
        short = [row for row, length in zip(turns, lengths, strict=True) if count * length <= room]
        if len(short) >= count * PREFIXES:
            starts = range(0, count * PREFIXES, count)
            return [[m for row in short[k : k + count] for m in row] for k in starts]
    raise ValueError(
        f"fewer than {PREFIXES} demonstrations of at most {room} tokens, expected enough for the "
        "prefixes"
    )


# --- claims ---------------------------------------------------------------------------------------


def _rate(table: Table, method: str, trunk: str, column: str = "preferred") -> dict[int, float]:
    rows = table.where(method=method, trunk=trunk).having(column)
    if not len(rows):
        raise ValueError(f"no point of {method} at size {trunk}")
    return rows.each_seed(lambda seed: seed.column(column)[0])


def _gaps(table: Table, better: tuple[str, str], worse: tuple[str, str]) -> np.ndarray:
    """Return (method, size) less (method, size), paired by seed."""
    return paired(_rate(table, *better), _rate(table, *worse))


def ordered(table: Table) -> Finding:
    """Judge the smallest step from a method to the next better one, of all sizes."""
    pairs = (("PPO", "SFT"), ("PPO-ptx", "SFT"), ("SFT", "GPT prompted"), ("GPT prompted", "GPT"))
    steps = {
        (trunk, better, worse): t_interval(_gaps(table, (better, trunk), (worse, trunk)))
        for trunk in SIZES
        for better, worse in pairs
    }
    least = min(steps, key=lambda step: steps[step].mean)
    trunk, better, worse = least
    above = sum(interval.low > 0 for interval in steps.values())
    text = (
        f"the smallest: {better} over {worse} at size {trunk}; "
        f"{above} of {len(steps)} steps have intervals above 0"
    )
    return interval_finding(steps[least].mean > 0, steps[least], text)


def supervised_is_better(table: Table) -> Finding:
    """Judge the least distance between SFT's and GPT's intervals, of all seeds and sizes."""
    gaps: dict[tuple[str, int], float] = {}
    for trunk in SIZES:
        low = _rate(table, "SFT", trunk, "preferred_low")
        high = _rate(table, "GPT", trunk, "preferred_high")
        gaps |= {(trunk, seed): low[seed] - high[seed] for seed in low if seed in high}
    least = min(gaps, key=lambda cell: gaps[cell])
    return Finding(gaps[least] > 0, gaps[least], f"the least: size {least[0]}, seed {least[1]}")


def small_beats_large(table: Table) -> Finding:
    """Judge the smallest PPO-ptx less the largest pretrained model."""
    smallest = ("PPO-ptx", SIZES[0])
    gap = t_interval(_gaps(table, smallest, ("GPT", SIZES[-1])))
    prompted = _gaps(table, smallest, ("GPT prompted", SIZES[-1])).mean()
    return interval_finding(gap.low > 0, gap, f"{prompted:+.3f} over the largest one prompted")


def mix_changes_little(table: Table) -> Finding:
    """Judge the largest difference between PPO-ptx and PPO."""
    gaps = {
        trunk: float(_gaps(table, ("PPO-ptx", trunk), ("PPO", trunk)).mean()) for trunk in SIZES
    }
    most = max(abs(gap) for gap in gaps.values())
    return Finding(most <= 0.05, most, ", ".join(f"{k}: {v:+.3f}" for k, v in gaps.items()))


CRITERIA = (
    Criterion(
        "at every size PPO and PPO-ptx > SFT > prompted > pretrained (the value is the smallest "
        "step)",
        ordered,
    ),
    Criterion(
        "at every size and seed the interval of SFT lies above that of the pretrained model",
        supervised_is_better,
    ),
    Criterion(
        "the smallest PPO-ptx is preferred more than the largest pretrained model (interval above "
        "0)",
        small_beats_large,
    ),
    Criterion("PPO-ptx and PPO differ by at most 5 points at every size", mix_changes_little),
)


# --- figure ---------------------------------------------------------------------------------------


def figure(table: Table) -> Figure:
    """Draw the win rate against size for every method, and gold beside it."""
    chart, panels = plt.subplots(1, 2, figsize=(9.4, 3.8))
    columns = (
        ("preferred", "preferred to the largest SFT model", 0.5),
        ("gold", "gold, SD of the largest SFT model", 0.0),
    )
    for axes, (column, label, level) in zip(panels, columns, strict=True):
        for method, colour in METHODS.items():
            rows = table.where(method=method)
            draw_seeds(axes, rows, "parameters", column, colour=colour, label=method)
        axes.set(xlabel="parameters", ylabel=label, xscale="log")
        axes.axhline(level, color="#bbb", lw=0.8, zorder=0)
    panels[0].legend()
    return chart
