"""What all Menagerie experiments agree on: sizes, devices, how often to write, the optimizer's shape.

Sizes: `tiny` is for tests (seconds), `default` for the quickstart (minutes on two cores), `large` for ablations on a GPU.
Choose one with `--config=experiments/menagerie/ppo.py:tiny`.
"""

from typing import Any

from ml_collections import ConfigDict

SIZES = ("tiny", "default", "large")


def pick(size: str, *, tiny: Any, default: Any, large: Any) -> Any:
    """The value for a size."""
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not one of {', '.join(SIZES)}")
    return {"tiny": tiny, "default": default, "large": large}[size]


def base(
    stage: str, size: str, *, log_every: int, save_every: int, sample_every: int = 0
) -> ConfigDict:
    """The fields that every stage has."""
    pick(size, tiny=None, default=None, large=None)
    return ConfigDict(
        {
            "stage": stage,
            "seed": 0,
            "mesh": {
                "data": pick(size, tiny=1, default=-1, large=-1),
                "fsdp": 1,
                "tensor": 1,
                "fsdp_min_size": 16_384,
                **dict.fromkeys(
                    ("compute_dtype", "remat", "scan_layers", "attention"), "as_trained"
                ),
            },
            "checkpoint": {
                "log_every": log_every,
                "save_every": save_every,
                "keep": 1,
                "sample_every": sample_every,
            },
        }
    )


def adam(
    learning_rate: float,
    *,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    warmup_init_fraction: float = 0.0,
    final_fraction: float = 0.1,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    adam_style: str = "torch",
) -> dict[str, Any]:
    """Adam as InstructGPT used it (b1 0.9, b2 0.95), cosine to a tenth of the peak."""
    return {
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "warmup_init_fraction": warmup_init_fraction,
        "final_fraction": final_fraction,
        "b1": 0.9,
        "b2": b2,
        "eps": eps,
        "adam_style": adam_style,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
    }


def lora(rank: int) -> dict[str, Any]:
    """Adapters on every linear layer of a gated model; rank 0 trains all parameters."""
    return {
        "rank": rank,
        "alpha": 16.0,
        "modules": ("query", "key", "value", "out", "gate", "up", "down"),
    }


def prompt_length(size: str) -> int:
    """Room for the longest prompt; a tiny vocabulary needs more tokens for the same words."""
    return pick(size, tiny=64, default=48, large=64)


def monitor(size: str, *, every: int) -> dict[str, Any]:
    """Gold's view of a few validation prompts while a policy trains."""
    return {
        "world": f"menagerie/{size}",
        "prompts": f"tfds:menagerie_prompts/{size}",
        "num_prompts": pick(size, tiny=16, default=256, large=512),
        "every": every,
        "prompt_length": prompt_length(size),
        "response_length": RESPONSE_LENGTH,
        "batch_size": pick(size, tiny=16, default=256, large=512),
    }


DATA_DIR = "runs/data"
RESPONSE_LENGTH = 40
