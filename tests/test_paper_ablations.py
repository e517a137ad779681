"""What the ablations of papers compare is comparable, and what they count is counted right."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from experiments.ablations import algorithms, decoding, gpt3_few_shot, pad_is_eos, palm_architecture
from experiments.ablations.shared import base, beside
from experiments.menagerie import reward
from rlhf_jax.apps.ablation import Table
from rlhf_jax.data.batches import Batches
from rlhf_jax.data.dropping import Dropped
from rlhf_jax.models.config import num_params


@pytest.mark.parametrize("size", ["tiny", "default", "large"])
def test_algorithms_start_alike_and_see_equally_many_samples(size):
    runs = {name: algorithms.algorithm(size, 1, name) for name in (*algorithms.ONLINE, *algorithms.OFFLINE)}
    assert {run.config.init.policy for run in runs.values()} == {"../../../base/seed1/sft"}
    episodes = set()
    for name in algorithms.ONLINE:
        config = runs[name].config
        settings = config.ppo if name == "PPO" else config.policy_gradient
        updates, every = settings.total_episodes // settings.batch_size, config.checkpoint.save_every
        assert updates == 2 * every, f"{name}: half-way and the end are kept"
        assert updates * settings.batch_size == settings.total_episodes
        assert config.init.reward == "../../../base/seed1/reward"
        episodes.add(settings.total_episodes)
    assert len(episodes) == 1
    for name in algorithms.OFFLINE:
        assert runs[name].config.data.comparisons == beside(base(1, "reward"), runs[name].folder)
    reward_1, ppo_1, reward_2, ppo_2 = algorithms.runs_of(size, 1, algorithms.ITERATED)
    assert episodes == {ppo_1.config.ppo.total_episodes + ppo_2.config.ppo.total_episodes}
    labelled = reward.get_config(size).labelling.num_prompts
    assert labelled == reward_1.config.labelling.num_prompts + reward_2.config.labelling.num_prompts
    for policy, rewarded in ((ppo_1, reward_1), (ppo_2, reward_2)):
        assert policy.config.init.to_dict() == {"policy": "../../../../base/seed1/sft", "value": "reward",
                                                "reward": beside(rewarded.folder, policy.folder)}  # fmt: skip
        assert rewarded.config.init.policy == policy.config.init.policy
    assert (reward_2.config.init.sampler, reward_2.config.data.earlier) == ("../ppo_1", ("../reward_1",))
    assert len({run.folder for run in runs.values()}) == len(algorithms.TRAINED) - 1 == 10


def test_every_algorithm_has_a_colour_of_its_own():
    names = (algorithms.BEST, *algorithms.TRAINED)
    assert len({to_hex(algorithms._colour(name)) for name in names}) == len(names)


def test_changed_blocks_have_as_many_parameters():
    plain = palm_architecture.shape("default", palm_architecture.GPT, 896)
    for change in palm_architecture.CHANGES:
        shape = palm_architecture.shape("default", change, 896)
        ratio = num_params(shape) / num_params(plain)
        assert ratio == pytest.approx(1 if change != palm_architecture.UNTIED else 1 + 896 * 64 / num_params(plain), abs=0.003)
    assert palm_architecture.shape("default", "SwiGLU", 896).ffw_width < plain.ffw_width
    assert palm_architecture.shape("default", "multi-query", 896).ffw_width > plain.ffw_width
    assert plain.ffw_width == 4 * plain.width


def test_repetition_diversity_and_the_end_of_peoples_texts():
    looped = [1, 2, 3, 4, 1, 2, 3, 4, 1]  # 6 four-grams, 4 different
    assert decoding.repetition([looped]) == pytest.approx(1 / 3)
    assert decoding.repetition([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0  # only what stood in the same text counts
    assert decoding.repetition([[], [1]]) == 0
    assert decoding.distinct([[1, 2, 1, 2], [1, 2]]) == pytest.approx(2 / 4)
    assert [*decoding.until([5, 6, 1, 7, 1], (1, 9))] == [5, 6, 1]
    assert [*decoding.until([5, 6], (1,))] == [5, 6]


def test_a_hidden_end_is_no_target_and_nothing_else_changes():
    tokens = np.array([[2, 7, 3, 8, 1, 2, 9, 1], [2, 7, 3, 8, 8, 1, 0, 0]])
    mask = np.array([[0, 0, 0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1, 0, 0]], bool)
    data = Batches({"tokens_BT": tokens, "loss_mask_BT": mask}, Dropped(2, {}), batch_size=2, seed=0)
    pad_is_eos.hide(data, 1)
    assert data.arrays["loss_mask_BT"].astype(int).tolist() == [[0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0]]


def test_the_envelope_keeps_what_nothing_cheaper_undercuts():
    points = [(4.0, 2.0), (1.0, 3.0), (2.0, 3.5), (8.0, 1.0), (6.0, 2.0)]
    kept = gpt3_few_shot.envelope(Table([{"flops": flops, "loss": loss} for flops, loss in points]))
    assert [(row["flops"], row["loss"]) for row in kept.rows] == [(1.0, 3.0), (4.0, 2.0), (8.0, 1.0)]
