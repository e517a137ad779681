"""The plan counts a run's state exactly, its programs as XLA lays them out, and what would fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tests_support import load_experiment

from experiments.scale import memory_plan, plan
from experiments.scale.hlo_stats import collectives
from experiments.scale.plan import CHIPS, USABLE, Chip
from rlhf_jax import main
from rlhf_jax.config import build
from rlhf_jax.models import LanguageModel, init_cache, init_params, llama, num_params, to_dict
from rlhf_jax.training.mesh import make_mesh, on_mesh, state_shardings
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.updates import init_state

SHAPE = llama(
    vocab_size=64,
    context_length=64,
    width=64,
    num_layers=5,
    num_heads=4,
    num_kv_heads=4,
    ffw_width=160,
    rope_base=1e4,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)
SMALL = dataclasses.replace(SHAPE, num_layers=1)


def raw_config(name, **changes):
    raw = load_experiment(f"experiments/menagerie/{name}.py", "tiny")
    for group, values in changes.items():
        raw[group].update(values)
    return raw


def config_of(name, **changes):
    raw = raw_config(name, mesh={"fsdp_min_size": 256}, **changes)
    return build(main.STAGES[raw.stage].Config, raw)


def held(phase):
    return sum(phase.memory.values())


@pytest.fixture(scope="module")
def pretrain():
    mesh = make_mesh(2, 2, 1)
    config = dataclasses.replace(config_of("pretrain"), model=SHAPE)
    return config, mesh, memory_plan.make_plan(config, {"policy": SHAPE}, mesh)


def test_resident_bytes_are_those_of_a_real_state(pretrain):
    config, mesh, planned = pretrain
    optimizer = make_optimizer(config.optimizer, 100)
    state = jax.eval_shape(
        lambda: init_state(init_params(LanguageModel(SHAPE), jax.random.key(0)), optimizer)
    )
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    placed = jax.device_put(zeros, state_shardings(state, mesh, 256))
    real = sum(
        leaf.addressable_shards[0].data.nbytes
        for leaf in jax.tree.leaves((placed.params, placed.opt_state))
    )
    assert sum(planned.resident.values()) == real


def test_few_layers_tell_what_five_need(pretrain, monkeypatch):
    """Against the program of all layers, compiled."""
    config, mesh, planned = pretrain
    monkeypatch.setattr(memory_plan, "TRAINED", 5)
    whole = memory_plan.make_plan(config, {"policy": SHAPE}, mesh).phases[0]
    assert held(planned.phases[0]) == pytest.approx(held(whole), rel=0.05)
    assert planned.phases[0].received == pytest.approx(whole.received, rel=0.02)


def test_ppo_has_four_networks_and_three_phases(monkeypatch):
    """Its programs are traced, not compiled: that takes a minute."""

    def traced(mesh, function, resident, passing):
        with on_mesh(mesh):
            function.lower(*resident, *passing)
        return np.array([2e6, 1e6])

    monkeypatch.setattr(memory_plan, "measure", traced)
    config = config_of("ppo", data={"prompt_length": 16}, ppo={"response_length": 8})
    mesh, wide = make_mesh(1, 2, 2), dataclasses.replace(SMALL, width=128)
    planned = memory_plan.make_plan(config, {"policy": wide, "reward": SMALL}, mesh)
    resident = planned.resident
    assert (
        resident["policy"] == resident["reference"] == pytest.approx(num_params(wide), rel=0.05)
    )  # 4 bytes over 4 devices
    assert resident["value"] == resident["reward"] < resident["policy"]
    assert resident["Adam of both"] == pytest.approx(
        2 * (resident["policy"] + resident["value"]), rel=0.01
    )
    rollout, judge, update = planned.phases
    cache = init_cache(wide, config.ppo.batch_size, 24)
    assert rollout.memory["cache"] == sum(x.nbytes for x in (*cache.keys, *cache.values)) / 4
    assert held(judge) == held(update) == 2e6
    copy = 4 * num_params(wide) / 2  # the sampler's, of the policy, split over tensor alone
    assert held(rollout) == pytest.approx(2e6 + copy, rel=0.01)
    assert (rollout.received, update.received) == (
        1e6 + 8 * 1e6,
        1e6,
    )  # a token is sent as often as one is drawn
    assert update.flops == 3 * (
        judge.flops - memory_plan.forward_flops(SMALL, 16 * 24, 24)
    )  # all but the reward model is trained


def test_a_loop_sends_as_often_as_it_runs():
    mesh = make_mesh(1, 4, 2)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))

    def seven_sums(x_N):
        def body(total, number):
            mean = jax.lax.with_sharding_constraint(
                (x_N * (number + total)).sum(), NamedSharding(mesh, PartitionSpec())
            )
            return mean, None

        return jax.lax.scan(body, jnp.zeros(()), jnp.arange(7.0))[0]

    compiled = (
        jax.jit(seven_sums)
        .lower(jax.ShapeDtypeStruct((16,), jnp.float32, sharding=split))
        .compile()
    )
    (sent,) = collectives(compiled)
    assert (sent.kind, sent.num_bytes, sent.times, sent.group) == ("all-reduce", 4, 7, 4)
    assert sent.received == 7 * 4 * 2 * 3 / 4


def test_what_does_not_fit_is_refused_with_a_change_that_fits():
    mesh, raw = make_mesh(1, 1, 1), raw_config("pretrain", model=to_dict(SMALL))
    config = build(main.STAGES["pretrain"].Config, raw)
    planned = memory_plan.make_plan(config, {"policy": SMALL}, mesh)
    assert plan.remedy(planned, CHIPS["v5e"], config, {"policy": SMALL}, mesh, fill=1.0) == ""
    half = sum(planned.resident.values()) + held(planned.phases[0]) * 0.7
    tight = Chip(memory=half / USABLE, bandwidth=1e12, flops=1e12, link=1e12)
    with pytest.raises(ValueError, match=r"^does not fit: .* in update, ") as refusal:
        list(plan.plan_run(raw, mesh, tight, fill=1.0))
    assert "Would fit: pretrain.num_micro_batches=2 (" in str(refusal.value)
    assert "2 x the devices along fsdp, if all of it divides" in str(refusal.value)
    assert (
        plan.room_for(config, {"policy": SMALL}, mesh, 16) == ""
    )  # neither 8 rows nor 4 heads can be split so often
    assert "--chip=v5e" in str(refusal.value)
    raw.pretrain.num_micro_batches = 2
    lines = list(plan.plan_run(raw, mesh, tight, fill=1.0))
    assert lines[0].startswith(
        "== pretrain on 1 devices, data x fsdp x tensor = 1 x 1 x 1; policy of "
    )
    assert any(line.startswith("model FLOPs utilisation at most ") for line in lines)


def test_what_cannot_be_planned_is_refused():
    mesh = make_mesh(1, 1, 1)
    with pytest.raises(ValueError, match=r"lora\.rank > 0: adapters are not planned"):
        memory_plan.make_plan(config_of("sft", lora={"rank": 4}), {"policy": SMALL}, mesh)
    with pytest.raises(
        ValueError, match=r"config\.stage: reward is not planned; pretrain, sft, ppo are"
    ):
        list(plan.plan_run(raw_config("reward"), mesh, CHIPS["h200"], fill=1.0))
    with pytest.raises(ValueError, match=r"--fill=1\.5: expected a part"):
        list(plan.plan_run(raw_config("pretrain"), mesh, CHIPS["h200"], fill=1.5))
    with pytest.raises(ValueError, match=r"config\.init: \.\./sft is relative to a workdir"):
        list(plan.plan_run(raw_config("ppo"), mesh, CHIPS["h200"], fill=1.0))


def test_names_and_meshes():
    assert num_params(plan.shape_of("gpt3:175b")) == pytest.approx(175e9, rel=0.01)
    assert num_params(plan.shape_of("gpt3:1.3b")) == pytest.approx(1.3e9, rel=0.02)
    assert plan.parse_mesh("data=8,fsdp=32") == {"data": 8, "fsdp": 32, "tensor": 1}
    with pytest.raises(ValueError, match=r"expected data=N,fsdp=N,tensor=N, got 'pipe=2'"):
        plan.parse_mesh("data=8,pipe=2")
    with pytest.raises(ValueError, match=r"gpt3:2b is not one of gpt3:1\.3b"):
        plan.shape_of("gpt3:2b")
