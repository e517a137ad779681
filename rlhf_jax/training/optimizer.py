"""Adam as the papers used it: two epsilons, decoupled weight decay, clipping, schedules, weight averages.

    g ← g · min(1, c / ‖g‖)                              clip by global norm (c = max_grad_norm, 0 = off)
    m ← β₁ m + (1 - β₁) g ;  v ← β₂ v + (1 - β₂) g²      moments, float32 whatever the parameter dtype
    "torch":  u = m̂ / (√v̂ + ε)      with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)
    "tf":     u = m̂ / (√v̂ + ε̂)      with ε̂ = ε / √(1 - β₂ᵗ)
    θ ← θ - lr(t) (u + λ θ)                              λ on matrices only

The two flavours differ in the first steps, when 1 - β₂ᵗ is small: TensorFlow's ε is then effectively larger
and the updates smaller (Huang et al. 2024, implementation detail 12).

Left out on purpose: Adafactor, Muon and layer-wise rates.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any
_SCHEDULES = ("constant", "linear", "cosine")
_STYLES = ("torch", "tf")
_UNDECAYED_NAMES = ("bias", "scale")


@dataclass(frozen=True)
class OptimizerConfig:
    """Everything that decides an update; see the module for the equations.

    `warmup_steps` updates climb linearly from `warmup_init_fraction * learning_rate`; the rest of the run
    falls from `learning_rate` towards `final_fraction * learning_rate` by `schedule`. `max_grad_norm` and
    `weight_decay` are off at 0. Raises ValueError naming the field, its value and what would be valid.
    """

    learning_rate: float
    schedule: str
    warmup_steps: int
    warmup_init_fraction: float
    final_fraction: float
    b1: float
    b2: float
    eps: float
    adam_style: str
    weight_decay: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        """Check every field."""
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "must be > 0")
        _require(
            self.schedule in _SCHEDULES, "schedule", self.schedule, f"must be one of {_SCHEDULES}"
        )
        _require(
            self.adam_style in _STYLES, "adam_style", self.adam_style, f"must be one of {_STYLES}"
        )
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "must be >= 0")
        _require(0 <= self.b1 < 1, "b1", self.b1, "must be in [0, 1)")
        _require(0 <= self.b2 < 1, "b2", self.b2, "must be in [0, 1)")
        _require(self.eps > 0, "eps", self.eps, "must be > 0")
        _require(
            self.weight_decay >= 0, "weight_decay", self.weight_decay, "must be >= 0 (0 = off)"
        )
        _require(
            self.max_grad_norm >= 0, "max_grad_norm", self.max_grad_norm, "must be >= 0 (0 = off)"
        )
        for field in ("warmup_init_fraction", "final_fraction"):
            value = self.__dict__[field]
            _require(0 <= value <= 1, field, value, "must be in [0, 1]")
        _require(
            self.schedule != "constant" or self.final_fraction == 1,
            "final_fraction",
            self.final_fraction,
            "must be 1.0 with schedule='constant', which never decays",
        )


def _require(ok: bool, field: str, value: object, rule: str) -> None:
    if not ok:
        raise ValueError(f"optimizer.{field} = {value!r}: {rule}")


def schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate of update k = 0 … num_steps - 1, as a function of k.

    warm-up (k < w):  lr · (f₀ + (1 - f₀) k/w)
    afterwards, with x = (k - w) / (num_steps - w) and final fraction f:
        constant  lr;   linear  lr · (1 - (1 - f) x);   cosine  lr · (f + (1 - f) (1 + cos πx) / 2)

    Convention: x reaches 1 only *after* the last update, so a linear decay to 0 makes its last update with
    lr / num_steps, as OpenAI's code does. Raises ValueError when the warm-up is longer than the run.
    """
    warmup, base, final = config.warmup_steps, config.learning_rate, config.final_fraction
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
        return base * jnp.where(step < warmup, climb, decay)

    return rate


class AdamState(NamedTuple):
    """Number of updates made, and the first and second moments in float32."""

    updates: jax.Array
    mu: Params
    nu: Params


def scale_by_adam(b1: float, b2: float, eps: float, *, style: str) -> optax.GradientTransformation:
    """Adam's direction u in either reading of epsilon (Kingma & Ba 2015, Algorithm 1 and the end of §2).

    "torch" is optax's and PyTorch's; "tf" is TensorFlow's, which OpenAI's RLHF code ran on.
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
        updates = jax.tree.map(
            lambda m, v, g: ((m / correction1) / (jnp.sqrt(v / correction2) + epsilon)).astype(
                g.dtype
            ),
            mu,
            nu,
            grads,
        )
        return updates, AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _bias_correction(decay: float, count: jax.Array) -> jax.Array:
    """1 - decay^count; computed plainly at 0.999, the first steps lose four of seven digits."""
    return -jnp.expm1(count * math.log(decay)) if decay > 0 else jnp.ones(())


def global_norm(tree: Params) -> jax.Array:
    """‖tree‖₂ over all leaves, float32."""
    return jnp.sqrt(
        sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree))
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """g · min(1, max_norm / ‖g‖), the factor computed once: one read and one write per leaf."""

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        del params
        factor = max_norm / jnp.maximum(global_norm(grads), max_norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def decay_mask(params: Params) -> Params:
    """True where weight decay applies: leaves of two or more dimensions that are not called bias or scale."""

    def decayed(path: tuple[Any, ...], leaf: Any) -> bool:
        name = str(getattr(path[-1], "key", path[-1])) if path else ""
        return leaf.ndim >= 2 and name not in _UNDECAYED_NAMES

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clip, Adam, decoupled weight decay (Loshchilov & Hutter 2019), learning rate.

    `update` returns what is added to θ. `num_steps` counts calls of `update`; a stage that makes several
    updates per loop step passes their total.
    """
    parts = [clip_by_global_norm(config.max_grad_norm)] if config.max_grad_norm > 0 else []
    parts.append(scale_by_adam(config.b1, config.b2, config.eps, style=config.adam_style))
    if config.weight_decay > 0:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    parts.append(optax.scale_by_learning_rate(schedule(config, num_steps)))
    return optax.chain(*parts)


def ema_update(average: Params, params: Params, *, decay: float) -> Params:
    """average ← decay · average + (1 - decay) · params, in its own dtype (InstructGPT §C.4: decay 0.992)."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), average, params)
