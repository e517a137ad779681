"""Huang et al. 2024, on the end token (E27): a policy whose end token is padding, and so masked, does not learn to stop.

    python -m experiments.ablations.reproduce pad_is_eos --seeds=3

The common mistake: pad_token = eos_token, and every padding token is taken out of the loss. The stages here cannot make it,
since masks are noted while a conversation is laid down and never found by looking for a token; so it is made in this file, in
a short supervised training of its own on the quickstart's demonstrations without its mix of documents. From the pretrained
model, which has seen the end token after forum replies, and from fresh parameters, which have not. Estimated for three seeds
on two quiet cores, beyond the base: 7 minutes.
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
    Bench,
    Criterion,
    Finding,
    GridRun,
    Measurement,
    Row,
    Table,
    mark_seed,
)
from experiments.ablations.measures import Asked, Panel, ask
from experiments.ablations.shared import base, base_runs, pick
from experiments.menagerie import sft
from rlhf_jax.data.batches import Batches, demonstration_batches
from rlhf_jax.data.packing import PackedDemonstrations
from rlhf_jax.data.records import Demonstration
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.checkpoints import (
    LoadedModel,
    find_checkpoint,
    load_language_model,
    load_tokenizer_of,
)
from rlhf_jax.evaluation.generate import generate
from rlhf_jax.models.heads import init_params
from rlhf_jax.stages.language import language_loss, trained_tokens
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.updates import Objective, init_state, supervised_update

STARTS = ("pretrained", "fresh")
MASKS = {"end trained": False, "end masked": True}
COLOURS = dict(zip(MASKS, ("#2a3f8f", "#c22"), strict=True))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """No run beyond pretraining; four short trainings a seed inside the measurements."""
    panel = Panel(
        size,
        pick(size, tiny=8, default=128, large=512),
        pick(size, tiny=2, default=4, large=4),
        1,
        8,
    )
    epochs = pick(size, tiny=1.0, default=2.0, large=2.0)
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed, stages=("pretrain",))
        for start in STARTS:
            for mask, hidden in MASKS.items():
                how = {"start": start, "hidden": hidden, "epochs": epochs}
                measurements.append(
                    Measurement(
                        f"seed{seed}-{start}-{mask.replace(' ', '-')}",
                        {"seed": seed, "start": start, "mask": mask},
                        (base(seed, "pretrain"),),
                        {**panel.settings, **how},
                        partial(tune, panel=panel, seed=seed, **how),
                    )
                )
    return Ablation("Huang et al. 2024", seeds, runs, measurements, CRITERIA, figure)


def tune(
    bench: Bench, *, panel: Panel, seed: int, start: str, hidden: bool, epochs: float
) -> list[Row]:
    """Train on demonstrations with or without the end token in the loss; how many answers end by themselves."""
    one = find_checkpoint(bench.workdir, str(bench.folder(base(seed, "pretrain"))))
    asked, candidate, settings = (
        ask(panel, load_tokenizer_of(one)),
        load_language_model(one),
        sft.get_config(panel.size),
    )
    data = demonstration_batches(
        load(
            settings.data.demonstrations,
            Demonstration,
            split="train",
            data_dir=settings.data.data_dir,
        ),
        asked.tokenizer,
        context_length=settings.sft.max_length,
        batch_size=settings.sft.batch_size,
        seed=seed,
    )
    if hidden:
        hide(data, asked.tokenizer.turn_end_id)
    num_steps = round(epochs * data.num_examples / data.batch_size)
    packed = PackedDemonstrations(
        data, row_length=settings.sft.row_length, num_steps=num_steps, others=0, row_multiple=1
    )
    model, params = candidate
    if start == "fresh":
        params = init_params(model, jax.random.key(seed))
    optimizer = make_optimizer(OptimizerConfig(**settings.optimizer), num_steps)
    objective = Objective(partial(language_loss, model, 0.0), trained_tokens)
    update = jax.jit(partial(supervised_update, objective, optimizer))
    state = init_state(params, optimizer)
    for step in range(num_steps):
        state, metrics = update(
            state, jax.tree.map(jnp.asarray, packed.batch(step)), jax.random.key(step), {}
        )
    if not np.isfinite(float(metrics["grad_norm"])):
        return [{"status": f"diverged: {start}, end {'masked' if hidden else 'trained'}"}]
    return [ending(LoadedModel(model, state.params), asked, panel, seed)]


def hide(data: Batches, token: int) -> None:
    """Take a token out of the loss wherever it stands, as those do who find padding by its id."""
    data.arrays["loss_mask_BT"] = data.arrays["loss_mask_BT"] & (data.arrays["tokens_BT"] != token)


def ending(policy: LoadedModel, asked: Asked, panel: Panel, seed: int) -> Row:
    """Share of answers that end by themselves, and their length."""
    key = jax.random.key(seed)
    drawn = generate(*policy, asked.tokenizer, asked.prompts, key, asked.sampling)
    said = [answer for few in drawn for answer in few]
    return {
        "finished": float(np.mean([one.finished for one in said])),
        "length": float(np.mean([one.length for one in said])),
    }


# --- claims -----------------------------------------------------------------------------------------------------------


def finishes(table: Table, start: str, mask: str, low: float, high: float) -> Finding:
    """Share of answers that end by themselves."""
    rows = table.where(start=start, mask=mask).having("finished")
    found = t_interval(rows.column("finished"))
    return Finding(
        low <= found.mean <= high, *found, f"mean length {rows.column('length').mean():.1f} tokens"
    )


CRITERIA = tuple(
    Criterion(
        f"E27.{start}_{mask.split()[1]}",
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
    """Share of finished answers and their length; a dot for every seed."""
    made, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
    for one, column in zip(axes, ("finished", "length"), strict=True):
        for place, start in enumerate(STARTS):
            for shift, (mask, colour) in zip((-0.12, 0.12), COLOURS.items(), strict=True):
                rows = table.where(start=start, mask=mask).having(column)
                for seed, value in zip(rows.column("seed"), rows.column(column), strict=True):
                    mark_seed(
                        one.plot(place + shift, value, "o", ms=5, alpha=0.6, color=colour)[0],
                        int(seed),
                    )
                if len(rows):
                    one.plot(
                        place + shift,
                        rows.column(column).mean(),
                        "_",
                        ms=18,
                        mew=2,
                        color=colour,
                        label=mask if place == 0 else None,
                    )
        one.set_xticks(range(len(STARTS)), [f"from {start} parameters" for start in STARTS])
        one.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="answers that end by themselves", ylim=(-0.03, 1.03))
    axes[1].set(ylabel="length, tokens", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=8)
    made.suptitle("Padding that is the end token", fontsize=11)
    made.tight_layout()
    return made
