"""The plan counts what a run needs: its state exactly, its activations as XLA lays them out, and says what would fit."""

import dataclasses

import jax
import pytest
from tests_support import load_experiment

from rlhf_jax import main
from rlhf_jax.apps import plan
from rlhf_jax.apps.chips import CHIPS, Chip
from rlhf_jax.models import LanguageModel, init_params, llama, num_params
from rlhf_jax.stages.configuration import build
from rlhf_jax.training.mesh import make_mesh, place, state_shardings
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.state import init_state

SHAPE = llama(
    vocab_size=256, context_length=128, width=64, num_layers=5, num_heads=4, num_kv_heads=4, ffw_width=160, rope_base=1e4,
    dropout_rate=0.0, compute_dtype="float32", param_dtype="float32", remat="none",
)  # fmt: skip
REWARD = dataclasses.replace(SHAPE, num_layers=2)


def config_of(name, **changes):
    raw = load_experiment(f"experiments/menagerie/{name}.py", "tiny")
    for group, values in changes.items():
        raw[group].update(values)
    return build(main.STAGES[raw.stage].Config, raw)


@pytest.fixture(scope="module")
def pretrain():
    mesh = make_mesh(2, 2, 1)
    config = dataclasses.replace(config_of("pretrain", mesh={"fsdp_min_size": 256}), model=SHAPE)
    return config, mesh, plan.make_plan(config, {"policy": SHAPE}, mesh)


def test_resident_bytes_are_those_of_a_real_state(pretrain):
    config, mesh, planned = pretrain
    state = init_state(init_params(LanguageModel(SHAPE), jax.random.key(0)), make_optimizer(config.optimizer, 100))
    placed = place(state, state_shardings(state, mesh, 256))
    real = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((placed.params, placed.opt_state)))
    assert sum(planned.resident.values()) == real


def test_two_layers_tell_what_five_need(pretrain, monkeypatch):
    """Against the program of all layers, compiled: within 15 %."""
    config, mesh, planned = pretrain
    monkeypatch.setattr(plan, "_continue", lambda measure, *layers: plan.Cost(*measure(*layers)))
    whole = plan.make_plan(config, {"policy": SHAPE}, mesh).phases[0].cost
    assert planned.phases[0].cost.temporary == pytest.approx(whole.temporary, rel=0.15)
    assert planned.phases[0].cost.received == pytest.approx(whole.received, rel=0.02)


def test_ppo_has_four_networks_and_three_phases():
    config = config_of("ppo", data={"prompt_length": 16}, ppo={"response_length": 16}, mesh={"fsdp_min_size": 256})
    planned = plan.make_plan(config, {"policy": SHAPE, "reward": REWARD}, make_mesh(1, 2, 2))
    assert [phase.name for phase in planned.phases] == ["rollout", "judge", "update"]
    assert planned.resident["policy"] == planned.resident["reference"] == pytest.approx(num_params(SHAPE), rel=0.05)  # 4 B / 4
    assert planned.resident["value"] == planned.resident["reward"] < planned.resident["policy"]
    trained = planned.resident["policy"] + planned.resident["value"]
    assert planned.resident["Adam of both"] == pytest.approx(2 * trained, rel=0.01)
    assert all(phase.cost.received > 0 for phase in planned.phases)
    lines = plan.report(planned, CHIPS["v5p"], make_mesh(1, 2, 2))
    assert any("utilisation at most" in line for line in lines)


def test_what_does_not_fit_is_refused_with_what_would(pretrain):
    planned = pretrain[2]
    assert plan.remedy(planned, CHIPS["h200"]) == ""
    tight = Chip(memory=planned.peak / 3, bandwidth=1e12, flops=1e12, link=1e12)
    said = plan.remedy(planned, tight)
    assert said.startswith("does not fit: ")
    assert "4 x the devices, along fsdp" in said
    assert "chip v5e" in said


def test_names_and_meshes():
    assert num_params(plan.shape_of("gpt3:175b")) == pytest.approx(175e9, rel=0.01)
    assert num_params(plan.shape_of("gpt3:1.3b")) == pytest.approx(1.3e9, rel=0.02)
    assert plan.parse_mesh("data=8,fsdp=32") == {"data": 8, "fsdp": 32, "tensor": 1}
    with pytest.raises(ValueError, match=r"expected data=N,fsdp=N,tensor=N, got 'pipe=2'"):
        plan.parse_mesh("data=8,pipe=2")
    with pytest.raises(ValueError, match=r"gpt3:2b: known are gpt3:1\.3b"):
        plan.shape_of("gpt3:2b")
