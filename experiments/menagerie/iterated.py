"""Iterated RLHF: after a PPO run labelers rank answers of its policy, and a new reward model learns from all rankings so far.

    python -m rlhf_jax.main --config=experiments/menagerie/iterated.py --workdir=runs/iterated

    pretrain -> sft -> reward_1 -> ppo_1 -> reward_2 -> ppo_2 -> evaluate

reward_2 collects from ppo_1 (`init.sampler`) and adds the rankings of reward_1 (`data.earlier`); every reward model and every
PPO run starts from SFT again, as in Bai 2022 §4.5. The prompts to be labelled are shared out among the rounds, so that all
rounds together cost the labels of one run of pipeline.py. To go on from the policy of the round before instead:
--config.stages.ppo_2.init.policy=../ppo_1 (then that is also the reference).
"""

from ml_collections import ConfigDict

from experiments.menagerie import evaluate, ppo, pretrain, reward, sft

ROUNDS = 2


def get_config(size: str = "default") -> ConfigDict:
    """The stages of every round, then an evaluation of all policies by held-out labelers and gold."""
    stages = {"pretrain": pretrain.get_config(size), "sft": sft.get_config(size)}
    for n in range(1, ROUNDS + 1):
        labelled, policy = reward.get_config(size), ppo.get_config(size)
        labelled.labelling.num_prompts //= ROUNDS
        labelled.init.sampler = f"../ppo_{n - 1}" if n > 1 else ""
        labelled.data.earlier = tuple(f"../reward_{earlier}" for earlier in range(1, n))
        policy.init.reward = f"../reward_{n}"
        stages |= {f"reward_{n}": labelled, f"ppo_{n}": policy}
    stages["evaluate"] = evaluate.get_config(size)
    policies = [f"ppo_{n}" for n in range(1, ROUNDS + 1)]
    stages["evaluate"].checkpoints = {
        "base": "../pretrain",
        "sft": "../sft",
        **{name: f"../{name}" for name in policies},
    }
    stages["evaluate"].reward = f"../reward_{ROUNDS}"
    return ConfigDict({"stage": "pipeline", "seed": 0, "order": list(stages), "stages": stages})
