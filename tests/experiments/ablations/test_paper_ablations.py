"""What the ablations of papers compare is comparable, and what they count is counted right."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from experiments.ablations import (
    algorithms,
    decoding,
    exposure,
    gao_rl,
    gpt3_few_shot,
    instructgpt_kl,
    measures,
    pad_is_eos,
    palm_architecture,
    ppo_table1,
    ziegler_controller,
)
from experiments.ablations.framework import Context, Table, paired, require_two
from experiments.ablations.shared import base, beside
from experiments.menagerie import label
from rlhf_jax.data.batches import Batches
from rlhf_jax.evaluation.table import Cache
from rlhf_jax.models.config import num_params


@pytest.mark.parametrize("size", ["tiny", "default", "large"])
def test_algorithms_start_alike_and_see_equally_many_samples(size):
    runs = {
        name: algorithms.make_run(size, 1, name)
        for name in (*algorithms.ONLINE, *algorithms.OFFLINE)
    }
    assert {run.config.init.policy for run in runs.values()} == {"../../../base/seed1/sft"}
    episodes = set()
    for name in algorithms.ONLINE:
        config = runs[name].config
        settings = config.ppo if name == "PPO" else config.policy_gradient
        updates, every = (
            settings.total_episodes // settings.batch_size,
            config.checkpoint.save_every,
        )
        assert updates == 2 * every, f"{name}: half-way and the end are kept"
        assert updates * settings.batch_size == settings.total_episodes
        assert config.rewards.reward.source == "reward:../../../base/seed1/reward"
        episodes.add(settings.total_episodes)
    assert len(episodes) == 1
    for name in algorithms.OFFLINE:
        assert runs[name].config.data.comparisons == beside(base(1, "label"), runs[name].folder)
    label_1, reward_1, ppo_1, label_2, reward_2, ppo_2 = algorithms.make_runs(
        size, 1, algorithms.ITERATED
    )
    assert episodes == {ppo_1.config.ppo.total_episodes + ppo_2.config.ppo.total_episodes}
    labelled = label.get_config(size).label.num_prompts
    assert labelled == label_1.config.label.num_prompts + label_2.config.label.num_prompts
    for policy, rewarded in ((ppo_1, reward_1), (ppo_2, reward_2)):
        assert policy.config.init.to_dict() == {
            "policy": "../../../../base/seed1/sft",
            "value": "reward",
        }
        source = f"reward:{beside(rewarded.folder, policy.folder)}"
        assert policy.config.rewards.reward.source == source
        assert rewarded.config.init.policy == policy.config.init.policy
    assert label_1.config.init.policy == "../../../../base/seed1/sft"
    assert (label_2.config.init.policy, reward_2.config.data.comparisons) == (
        "../ppo_1",
        "../label_2",
    )
    assert reward_2.config.data.earlier == ("../label_1",)
    assert len({run.folder for run in runs.values()}) == len(algorithms.TRAINED) - 1 == 10


def test_every_algorithm_has_a_colour_of_its_own():
    names = (algorithms.BEST_OF_N, *algorithms.TRAINED)
    assert len({to_hex(algorithms.colour_of(name)) for name in names}) == len(names)


def test_changed_blocks_have_as_many_parameters():
    plain = palm_architecture.make_model("default", palm_architecture.GPT, 896)
    for change in palm_architecture.CHANGES:
        shape = palm_architecture.make_model("default", change, 896)
        ratio = num_params(shape) / num_params(plain)
        assert ratio == pytest.approx(
            1 if change != palm_architecture.UNTIED else 1 + 896 * 64 / num_params(plain), abs=0.003
        )
    assert palm_architecture.make_model("default", "SwiGLU", 896).ffw_width < plain.ffw_width
    assert palm_architecture.make_model("default", "multi-query", 896).ffw_width > plain.ffw_width
    assert plain.ffw_width == 4 * plain.width


def test_repetition_diversity_and_the_end_of_peoples_texts():
    looped = [1, 2, 3, 4, 1, 2, 3, 4, 1]  # 6 four-grams, 4 different
    assert decoding.repetition([looped]) == pytest.approx(1 / 3)
    assert (
        decoding.repetition([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0
    )  # only what stood in the same text counts
    assert decoding.repetition([[], [1]]) == 0
    assert decoding.distinct([[1, 2, 1, 2], [1, 2]]) == pytest.approx(2 / 4)
    assert [*decoding.until_stop([5, 6, 1, 7, 1], (1, 9))] == [5, 6, 1]
    assert [*decoding.until_stop([5, 6], (1,))] == [5, 6]


def test_a_hidden_end_is_no_target_and_nothing_else_changes():
    tokens = np.array([[2, 7, 3, 8, 1, 2, 9, 1], [2, 7, 3, 8, 8, 1, 0, 0]])
    mask = np.array([[0, 0, 0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1, 0, 0]], bool)
    data = Batches({"tokens_BT": tokens, "loss_mask_BT": mask}, batch_size=2, seed=0)
    pad_is_eos.hide(data, 1)
    assert data.arrays["loss_mask_BT"].astype(int).tolist() == [
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
    ]


def test_the_envelope_keeps_what_nothing_cheaper_undercuts():
    points = [(4.0, 2.0), (1.0, 3.0), (2.0, 3.5), (8.0, 1.0), (6.0, 2.0)]
    kept = gpt3_few_shot.envelope(Table([{"flops": flops, "loss": loss} for flops, loss in points]))
    assert [(row["flops"], row["loss"]) for row in kept.rows] == [
        (1.0, 3.0),
        (4.0, 2.0),
        (8.0, 1.0),
    ]


def test_a_diverged_policy_is_measured_at_its_last_good_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(measures, "load_reference", lambda *_: None)
    monkeypatch.setattr(measures, "make_proxy", lambda *_: None)
    monkeypatch.setattr(
        measures, "evaluate_policy", lambda settings, reference, path, *_: {"at": path.name}
    )
    monkeypatch.setattr(measures, "all_steps", lambda folder: [20, 30])
    context = Context(tmp_path, Cache(tmp_path / "measured"))
    arguments = {
        "settings": measures.full_eval_settings("tiny"),
        "seed": 0,
        "folder": "ppo",
        "reward_folder": "reward",
        "start": False,
    }
    assert measures.evaluate_checkpoints(context, steps=[40], **arguments) == [
        {"update": 30, "at": "30"}
    ]
    assert measures.evaluate_checkpoints(context, steps=[10, 20], **arguments) == [
        {"update": 20, "at": "20"}
    ]


# --- claims that can fail -------------------------------------------------------------------------


def test_seeds_are_paired_and_one_that_lacks_a_side_does_not_count():
    assert paired({0: 1.0, 1: 2.0, 2: 3.0}, {2: 1.0, 0: 0.5}).tolist() == [0.5, 2.0]
    assert paired({0: 1.0, 1: np.nan}, {0: 0.0, 1: 0.0}).tolist() == [1.0]
    with pytest.raises(ValueError, match="no seed has both sides"):
        paired({0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match="needs two of them"):
        require_two(np.array([1.0]))


def test_the_best_penalty_is_compared_with_the_same_seeds():
    """Seed 2 has no run at the best β and is much worse at the ends: it must not help."""
    rates = {0.0: (0.58, 0.58, 0.2), 0.1: (0.6, 0.6, None), 2.0: (0.58, 0.58, 0.2)}
    rows = [
        {"seed": seed, "kl_coef": kl, "preferred": rate}
        for kl, of in rates.items()
        for seed, rate in enumerate(of)
        if rate
    ]
    assert instructgpt_kl.inverted_u(Table(rows)).value == pytest.approx(0.02)


def drift(settle):
    """β over 150 updates: from 0.2 down by a constant rate until `settle`, and at rest then."""
    return Table(
        [
            {"seed": seed, "update": n, "kl_coef": 0.2 * np.exp(-0.02 * min(n, settle))}
            for seed in (0, 1)
            for n in range(150)
        ]
    )


def test_a_controller_that_drifts_for_ever_has_not_come_to_rest():
    assert not ziegler_controller.plateau(drift(150)).passed
    assert ziegler_controller.plateau(drift(110)).passed


def rl_table(gold, preferred, trunk="m"):
    return Table(
        [
            {
                "seed": seed,
                "method": "rl",
                "trunk": trunk,
                "kl_coef": 0.0,
                "update": n,
                "distance": 0.2 * n,
                "proxy": float(n),
                "gold": g,
                "preferred": p,
                "preferred_low": p - 0.03,
                "preferred_high": p + 0.03,
            }
            for seed in (0, 1)
            for n, (g, p) in enumerate(zip(gold, preferred, strict=True))
        ]
    )


def test_gold_that_only_falls_has_no_peak():
    assert gao_rl.rises_and_falls(rl_table([0, 0.3, -0.4, -0.5], [0.5] * 4)).passed
    assert not gao_rl.rises_and_falls(rl_table([0, -0.1, -0.4, -0.9], [0.5] * 4)).passed


def test_the_highest_of_noisy_preferences_is_no_preference():
    assert gao_rl.preference_falls(rl_table([0, 1, 1, 0], [0.5, 0.6, 0.5, 0.3]), "m").passed
    assert not gao_rl.preference_falls(rl_table([0, 1, 1, 0], [0.5, 0.52, 0.51, 0.3]), "m").passed
    assert not gao_rl.preference_falls(rl_table([0, 1, 1, 0], [0.5, 0.6, 0.5, 0.48]), "m").passed


def test_a_loss_that_diverged_in_every_seed_scores_as_the_untrained_and_spoils_no_other():
    rows = [
        {"seed": seed, "environment": "one", "loss": loss, "return": score, "kl": 0.1}
        for seed in (0, 1)
        for loss, score in ((ppo_table1.UNTRAINED, 0.0), (ppo_table1.CLIP, 2.0))
    ]
    rows += [
        {
            "seed": seed,
            "environment": "one",
            "loss": ppo_table1.NONE,
            "kl": 9.0,
            "status": "diverged",
        }
        for seed in (0, 1)
    ]
    table = Table([{"status": "complete", **row} for row in rows])
    assert ppo_table1.unlimited_fails(table)[:2] == (True, pytest.approx(90))
    assert ppo_table1.clip_is_good(table)[:2] == (True, 0.0)
    assert ppo_table1.clip_beats_none(table).value == 1.0
    lost = Table([row for row in table.rows if row["loss"] != ppo_table1.NONE])
    lost = Table(
        [
            *lost.rows,
            *(
                {k: row[k] for k in ("seed", "environment", "loss", "status")}
                for row in table.where(loss=ppo_table1.NONE).rows
            ),
        ]
    )
    assert ppo_table1.unlimited_fails(lost).passed


def test_errors_are_compared_at_the_same_position():
    """Equal at each position, but one side has most of its decisions where everything is harder."""
    rows = [
        {"prefix": prefix, "position": k, "wrong": wrong, "decisions": count}
        for prefix, counts in (("own", (10, 90)), ("expert", (90, 10)))
        for k, (wrong, count) in enumerate(zip((0.1, 0.5), counts, strict=True))
    ]
    assert exposure.own_over_expert(Table(rows)) == pytest.approx(0)
    assert exposure.error_rate(Table(rows), "own") - exposure.error_rate(
        Table(rows), "expert"
    ) == pytest.approx(0.32)
