"""Train a policy whose end token is padding, and so masked: it does not learn to stop.

    python -m experiments.ablations.reproduce pad_is_eos --seeds=3

Huang et al. 2024, on the end token. The common mistake: pad_token = eos_token, and every padding
token is taken out of the loss. The stages here cannot make it, since masks are noted while a
conversation is laid down and never found by looking for a token; so it is made in this file, in a
short supervised training of its own on the quickstart's demonstrations without its mix of
documents. From the pretrained model, which has seen the end token after forum replies, and from
fresh parameters, which have not. Estimated for three seeds on two quiet cores, beyond the base: 7
minutes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    Options,
    Row,
    Table,
    draw_point,
    interval_finding,
)
from experiments.ablations.measures import PolicyEvalSettings, PromptSet, load_prompt_set
from experiments.ablations.shared import base, base_runs, pick
from experiments.menagerie import sft
from rlhf_jax.data.batches import Batches, demonstration_batches
from rlhf_jax.data.packing import PackedDemonstrations
from rlhf_jax.data.records import Demonstration
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.checkpoints import LoadedModel, load_language_model
from rlhf_jax.models.heads import init_params
from rlhf_jax.stages.language import language_loss, trained_tokens
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.updates import Objective, init_state, supervised_update

STARTS = ("pretrained", "fresh")
MASKS = {"end trained": False, "end masked": True}
COLOURS = dict(zip(MASKS, ("#2a3f8f", "#c22"), strict=True))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Train four times a seed inside the measurements; no run is added beyond pretraining."""
    ablation = Ablation("Huang et al. 2024", seeds, CRITERIA, figure)
    num_prompts = pick(size, tiny=8, default=128, large=512)
    num_samples = pick(size, tiny=2, default=4, large=4)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed, stages=("pretrain",)))
        for start in STARTS:
            for mask, hidden in MASKS.items():
                ablation.add_measurement(
                    f"seed{seed}-{start}-{mask.replace(' ', '-')}",
                    {"seed": seed, "start": start, "mask": mask},
                    (base(seed, "pretrain"),),
                    tune,
                    settings=PolicyEvalSettings(size, num_prompts, num_samples),
                    seed=seed,
                    start=start,
                    hidden=hidden,
                    epochs=pick(size, tiny=1.0, default=2.0, large=2.0),
                )
    return ablation


def tune(
    context: Context,
    *,
    settings: PolicyEvalSettings,
    seed: int,
    start: str,
    hidden: bool,
    epochs: float,
) -> list[Row]:
    """Train on demonstrations, with or without the end token in the loss, and sample answers."""
    checkpoint, config = context.checkpoint(base(seed, "pretrain")), sft.get_config(settings.size)
    prompt_set = load_prompt_set(settings, checkpoint)
    model, params = load_language_model(checkpoint)
    source, data_dir = config.data.demonstrations, config.data.data_dir
    data = demonstration_batches(
        load(source, Demonstration, split="train", data_dir=data_dir),
        prompt_set.tokenizer,
        context_length=config.sft.max_length,
        batch_size=config.sft.batch_size,
        seed=seed,
    )
    if hidden:
        hide(data, prompt_set.tokenizer.turn_end_id)
    num_steps = round(epochs * data.num_examples / data.batch_size)
    shape: Options = {"row_length": config.sft.row_length, "others": 0, "row_multiple": 1}
    packed = PackedDemonstrations(data, num_steps=num_steps, **shape)
    if start == "fresh":
        params = init_params(model, jax.random.key(seed))
    optimizer = make_optimizer(OptimizerConfig(**config.optimizer), num_steps)
    objective = Objective(partial(language_loss, model, 0.0), trained_tokens)
    update = jax.jit(partial(supervised_update, objective, optimizer))
    state = init_state(params, optimizer)
    for step in range(num_steps):
        batch = jax.tree.map(jnp.asarray, packed.batch(step))
        state, metrics = update(state, batch, jax.random.key(step), {})
    if not np.isfinite(float(metrics["grad_norm"])):
        return [{"status": f"diverged: {start}, end {'masked' if hidden else 'trained'}"}]
    policy = LoadedModel(model, state.params)
    return [measure_endings(policy, prompt_set, settings, seed)]


def hide(data: Batches, token: int) -> None:
    """Take a token out of the loss wherever it stands, as those do who find padding by its id."""
    data.arrays["loss_mask_BT"] = data.arrays["loss_mask_BT"] & (data.arrays["tokens_BT"] != token)


def measure_endings(
    policy: LoadedModel, prompt_set: PromptSet, settings: PolicyEvalSettings, seed: int
) -> Row:
    """Return the share of answers that end by themselves, and their length."""
    rows = prompt_set.sample(policy, jax.random.key(seed), settings.num_samples)
    samples = [sample for row in rows for sample in row]
    return {
        "finished": float(np.mean([sample.finished for sample in samples])),
        "length": float(np.mean([sample.length for sample in samples])),
    }


# --- claims ---------------------------------------------------------------------------------------


def finishes(table: Table, start: str, mask: str, low: float, high: float) -> Finding:
    """Judge the share of answers that end by themselves."""
    rows = table.where(start=start, mask=mask).having("finished")
    share = t_interval(rows.column("finished"))
    text = f"mean length {rows.column('length').mean():.1f} tokens"
    return interval_finding(low <= share.mean <= high, share, text)


CRITERIA = tuple(
    Criterion(
        f"{start} parameters, {mask}: {text} of answers end by themselves",
        partial(finishes, start=start, mask=mask, low=low, high=high),
    )
    for start in STARTS
    for mask, text, low, high in (
        ("end trained", "more than 95 %", 0.95, 1.0),
        ("end masked", "less than 50 %", 0.0, 0.5),
    )
)


def figure(table: Table) -> Figure:
    """Draw the share of finished answers and their length; a dot for every seed."""
    chart, panels = plt.subplots(1, 2, figsize=(8.4, 3.4))
    for axes, column in zip(panels, ("finished", "length"), strict=True):
        for place, start in enumerate(STARTS):
            for shift, (mask, colour) in zip((-0.12, 0.12), COLOURS.items(), strict=True):
                rows, x = table.where(start=start, mask=mask).having(column), place + shift
                for row in rows.rows:
                    draw_point(axes, x, float(row[column]), row["seed"], ms=5, color=colour)
                if len(rows):
                    label = mask if place == 0 else None
                    look: Options = {"ms": 18, "mew": 2, "color": colour, "label": label}
                    axes.plot(x, rows.column(column).mean(), "_", **look)
        axes.set_xticks(range(len(STARTS)), [f"from {start} parameters" for start in STARTS])
    panels[0].set(ylabel="answers that end by themselves", ylim=(-0.03, 1.03))
    panels[1].set(ylabel="length, tokens", ylim=(0, None))
    panels[0].legend()
    chart.suptitle("Padding that is the end token", fontsize=11)
    return chart
