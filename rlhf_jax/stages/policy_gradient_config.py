"""Settings of the policy-gradient stage and the arithmetic that they must satisfy."""

from dataclasses import dataclass
from typing import Literal

from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.maths.losses import Reduction
from rlhf_jax.maths.returns import GroupStd
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.stages.configuration import require, require_divides
from rlhf_jax.stages.monitor import Monitor
from rlhf_jax.stages.rollouts import ScoreRules
from rlhf_jax.stages.workspace import CheckpointConfig, MeshConfig
from rlhf_jax.training.optimizer import OptimizerConfig

WEIGHED = ("reinforce", "clip")  # losses in which every response counts with its advantage
PAIRS = ("dpo", "ipo")  # losses of the best against the worst


@dataclass(frozen=True)
class Init:
    """Where the parameters come from; a path starting with ../ is relative to the workdir."""

    policy: str  # also the reference
    reward: str


@dataclass(frozen=True)
class Data:
    """Prompts for the rollouts."""

    data_dir: str
    prompts: str
    prompt_length: int


@dataclass(frozen=True)
class PolicyGradient:
    """Every detail of the algorithm, under PPO's names where PPO has one."""

    total_episodes: int
    batch_size: int  # episodes per update: prompts x samples_per_prompt
    samples_per_prompt: int
    num_epochs: int
    num_mini_batches: int
    num_micro_batches: int  # per minibatch: changes memory, not results
    response_length: int
    sampling_rows: int  # as ppo's
    temperature: float
    loss: Literal["reinforce", "clip", "dpo", "ipo", "best"]
    baseline: Literal["none", "batch", "moving", "leave_one_out", "group"]
    group_std: GroupStd  # what baseline group divides by
    group_std_eps: float
    reduction: Reduction  # of clip and best
    cliprange: float
    cliprange_high: float  # above 1; DAPO's clip-higher if larger than cliprange
    kl_coef: float
    kl_in: Literal["reward", "loss"]
    kl_estimator: Literal["k1", "k2", "k3"]  # in the reward; in the loss it is k3
    missing_eos_penalty: float
    missing_eos_mode: Literal["replace", "subtract", "none"]
    score_clip: float
    score_normalisation: Literal["none", "running_std"]

    @property
    def num_prompts(self) -> int:
        """Prompts per update."""
        return self.batch_size // self.samples_per_prompt

    @property
    def spec(self) -> SamplingSpec:
        """The whole distribution: a truncated one would bias every ratio."""
        return SamplingSpec(temperature=self.temperature, top_k=0, top_p=1.0, nucleus="holtzman")

    @property
    def rules(self) -> ScoreRules:
        """What is done to scores."""
        return ScoreRules(
            kl_estimator=self.kl_estimator, missing_eos_penalty=self.missing_eos_penalty,
            missing_eos_mode=self.missing_eos_mode, score_clip=self.score_clip, score_normalisation=self.score_normalisation,
        )  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["policy_gradient"]
    seed: int
    init: Init
    data: Data
    policy_gradient: PolicyGradient
    lora: LoraConfig
    monitor: Monitor
    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig


def check(settings: PolicyGradient, num_devices: int) -> None:
    """Refuse impossible arithmetic before anything compiles."""
    name, samples = "policy_gradient", settings.samples_per_prompt
    require_divides(settings.batch_size, settings.total_episodes, f"{name}.total_episodes by {name}.batch_size",
                    "change one of the two")  # fmt: skip
    require_divides(samples, settings.batch_size, f"{name}.batch_size by {name}.samples_per_prompt", "choose a divisor")
    require_divides(settings.num_mini_batches, settings.num_prompts, f"prompts per update by {name}.num_mini_batches",
                    "choose a divisor: a minibatch has whole groups")  # fmt: skip
    prompts = settings.num_prompts // settings.num_mini_batches
    require_divides(settings.num_micro_batches, prompts, f"prompts per minibatch by {name}.num_micro_batches",
                    "choose a divisor")  # fmt: skip
    require_divides(num_devices, prompts // settings.num_micro_batches, "prompts per micro-batch by devices",
                    f"raise {name}.batch_size or use fewer devices")  # fmt: skip
    compares = settings.loss in (*PAIRS, "best") or settings.baseline in ("leave_one_out", "group")
    require(not compares or samples >= 2, f"{name}.samples_per_prompt={samples}: loss={settings.loss} with "
            f"baseline={settings.baseline} compares responses to one prompt and needs at least 2")  # fmt: skip
    require(settings.sampling_rows >= 0,
            f"{name}.sampling_rows={settings.sampling_rows}: expected a number of responses, or 0 for all")
    require(settings.temperature > 0, f"{name}.temperature must be > 0: greedy rollouts have no log-probability")
    require(settings.kl_in == "reward" or settings.loss == "clip", f"{name}.kl_in=loss belongs to loss=clip: "
            f"loss={settings.loss} has no place for it; use kl_in=reward")  # fmt: skip
    require(settings.loss not in PAIRS or settings.kl_coef > 0,
            f"{name}.loss={settings.loss} needs {name}.kl_coef > 0: it is DPO's β")  # fmt: skip
