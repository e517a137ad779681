"""Optimise as the papers did: Adam with two epsilons, decoupled decay, clipping, schedules.

    g ← g · min(1, c / ‖g‖)                            clip by norm (c = max_grad_norm, 0 = off)
    m ← β₁ m + (1 - β₁) g ;  v ← β₂ v + (1 - β₂) g²    moments, float32 whatever the parameters
    "torch":  u = m̂ / (√v̂ + ε)      with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)
    "tf":     u = m̂ / (√v̂ + ε̂)      with ε̂ = ε / √(1 - β₂ᵗ)
    θ ← θ - lr(t) (u + λ θ)                              λ on matrices only

The two flavours differ in the first steps, when 1 - β₂ᵗ is small: TensorFlow's ε is then
effectively larger and the updates smaller (Huang et al. 2024, implementation detail 12).

Left out on purpose: Adafactor, Muon and layer-wise rates.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

Params = Any
Schedule = Literal["constant", "linear", "cosine"]
AdamStyle = Literal["torch", "tf"]
_UNDECAYED_NAMES = ("bias", "scale")


@dataclass(frozen=True)
class OptimizerConfig:
    """Say what decides an update; see the module for the equations.

    `warmup_steps` updates climb linearly from `warmup_init_fraction * learning_rate`; the rest of
    the run falls from `learning_rate` towards `final_fraction * learning_rate` by `schedule`.
    `max_grad_norm` and `weight_decay` are off at 0.

    Raises:
        ValueError: names the field, its value and what would be valid.
    """

    learning_rate: float
    schedule: Schedule
    warmup_steps: int
    warmup_init_fraction: float
    final_fraction: float
    b1: float
    b2: float
    eps: float
    adam_style: AdamStyle
    weight_decay: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        schedules, styles = get_args(Schedule), get_args(AdamStyle)
        decays = self.schedule != "constant"
        never_decays = "must be 1.0 with schedule='constant', which never decays"
        rules = {
            "learning_rate": (self.learning_rate > 0, "must be > 0"),
            "schedule": (self.schedule in schedules, f"must be one of {schedules}"),
            "adam_style": (self.adam_style in styles, f"must be one of {styles}"),
            "warmup_steps": (self.warmup_steps >= 0, "must be >= 0"),
            "b1": (0 <= self.b1 < 1, "must be in [0, 1)"),
            "b2": (0 <= self.b2 < 1, "must be in [0, 1)"),
            "eps": (self.eps > 0, "must be > 0"),
            "weight_decay": (self.weight_decay >= 0, "must be >= 0 (0 = off)"),
            "max_grad_norm": (self.max_grad_norm >= 0, "must be >= 0 (0 = off)"),
            "warmup_init_fraction": (0 <= self.warmup_init_fraction <= 1, "must be in [0, 1]"),
        }
        if decays:
            rules["final_fraction"] = (0 <= self.final_fraction <= 1, "must be in [0, 1]")
        else:
            rules["final_fraction"] = (self.final_fraction == 1, never_decays)
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"optimizer.{name} = {getattr(self, name)!r}: {rule}")


def schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the update k = 0 … num_steps - 1.

    warm-up (k < w):  lr · (f₀ + (1 - f₀) k/w)
    afterwards, with x = (k - w) / (num_steps - w) and final fraction f:
        constant  lr;   linear  lr · (1 - (1 - f) x);   cosine  lr · (f + (1 - f) (1 + cos πx) / 2)

    Convention: x reaches 1 only *after* the last update, so a linear decay to 0 makes its last
    update with lr / num_steps, as OpenAI's code does.

    Raises:
        ValueError: the warm-up is longer than the run.
    """
    warmup = config.warmup_steps
    final = config.final_fraction
    if num_steps < 1 or warmup > num_steps:
        raise ValueError(
            f"optimizer.warmup_steps = {warmup} does not fit in num_steps = {num_steps}: "
            "shorten it or train longer"
        )

    def rate(count: Any) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        done = jnp.clip((step - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
        if config.schedule == "cosine":
            decay = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        else:
            decay = 1 - (1 - final) * done  # constant is linear with final = 1
        start = config.warmup_init_fraction
        climb = start + (1 - start) * step / max(warmup, 1)
        return config.learning_rate * jnp.where(step < warmup, climb, decay)

    return rate


class AdamState(NamedTuple):
    """Hold the number of updates made, and the first and second moments in float32."""

    updates: jax.Array
    mu: Params
    nu: Params


def scale_by_adam(
    b1: float, b2: float, eps: float, *, style: AdamStyle
) -> optax.GradientTransformation:
    """Compute Adam's direction u (Kingma & Ba 2015, Algorithm 1 and the end of §2).

    The epsilon of "torch" is optax's and PyTorch's; that of "tf" is TensorFlow's, which OpenAI's
    RLHF code ran on.
    """

    def init(params: Params) -> AdamState:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, zeros))

    def update(
        grads: Params, state: AdamState, params: Params | None = None
    ) -> tuple[Params, AdamState]:
        del params
        count = state.updates + 1
        correction1, correction2 = _bias_correction(b1, count), _bias_correction(b2, count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g.astype(jnp.float32), state.mu, grads)
        nu = jax.tree.map(
            lambda v, g: b2 * v + (1 - b2) * jnp.square(g.astype(jnp.float32)), state.nu, grads
        )
        epsilon = eps / jnp.sqrt(correction2) if style == "tf" else eps

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            return ((m / correction1) / (jnp.sqrt(v / correction2) + epsilon)).astype(g.dtype)

        return jax.tree.map(direction, mu, nu, grads), AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _bias_correction(decay: float, count: jax.Array) -> jax.Array:
    """Return 1 - decay^count."""
    # Computed as it stands the difference loses four of seven digits in the first steps with 0.999.
    return -jnp.expm1(count * math.log(decay)) if decay > 0 else jnp.ones(())


def global_norm(tree: Params) -> jax.Array:
    """Return ‖tree‖₂ over all leaves, float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Clip to g · min(1, max_norm / ‖g‖)."""

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        del params
        # optax divides and selects in every leaf; one factor for all is one read and write each.
        factor = max_norm / jnp.maximum(global_norm(grads), max_norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def decay_mask(params: Params) -> Params:
    """Mark where weight decay applies: leaves of two or more dimensions, no bias or scale."""

    def decayed(path: tuple[Any, ...], leaf: Any) -> bool:
        name = str(getattr(path[-1], "key", path[-1])) if path else ""
        return leaf.ndim >= 2 and name not in _UNDECAYED_NAMES

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Chain clipping, Adam, decoupled weight decay (Loshchilov & Hutter 2019) and learning rate.

    `update` returns what is added to θ; `num_steps` is the number of its calls in the whole run.
    """
    parts = [clip_by_global_norm(config.max_grad_norm)] if config.max_grad_norm > 0 else []
    parts.append(scale_by_adam(config.b1, config.b2, config.eps, style=config.adam_style))
    if config.weight_decay > 0:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    parts.append(optax.scale_by_learning_rate(schedule(config, num_steps)))
    return optax.chain(*parts)


def ema_update(average: Params, params: Params, *, decay: float) -> Params:
    """Return decay · average + (1 - decay) · params, in the average's dtype (InstructGPT §C.4)."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), average, params)
