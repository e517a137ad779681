"""Define what all Menagerie experiments share: sizes, devices, how often to write, the optimizer.

Sizes: `tiny` is for tests (seconds), `default` for the quickstart (minutes on two CPU cores),
`medium` the same world with a model of 5 M parameters and more rankings (an hour or two on them),
`large` for ablations on a GPU. Choose one with `--config=experiments/menagerie/ppo.py:tiny`.
"""

from typing import Any

from ml_collections import ConfigDict

SIZES = ("tiny", "default", "medium", "large")
DATA_DIR = "runs/data"
RESPONSE_LENGTH = 40


def pick(size: str, *, tiny: Any, default: Any, large: Any, medium: Any = None) -> Any:
    """Return the value for a size; medium is as default where nothing else is said."""
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not one of {', '.join(SIZES)}")
    medium = default if medium is None else medium
    return {"tiny": tiny, "default": default, "medium": medium, "large": large}[size]


def mesh(size: str) -> dict[str, Any]:
    """Return data parallelism over all devices; the smallest size takes one."""
    return {
        "data": pick(size, tiny=1, default=-1, large=-1),
        "fsdp": 1,
        "tensor": 1,
        "fsdp_min_size": 16_384,
        "compute_dtype": "as_trained",
        "remat": "as_trained",
        "scan_layers": "as_trained",
        "attention": "as_trained",
    }


def base(
    stage: str, size: str, *, log_every: int, save_every: int, sample_every: int = 0
) -> ConfigDict:
    """Return a config with the fields that every training stage has."""
    checkpoint = {
        "log_every": log_every,
        "save_every": save_every,
        "keep": 1,
        "sample_every": sample_every,
    }
    return ConfigDict({"stage": stage, "seed": 0, "mesh": mesh(size), "checkpoint": checkpoint})


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
    """Return Adam as InstructGPT used it (b1 0.9, b2 0.95), cosine to a tenth of the peak."""
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
    """Return adapters on every linear layer of a gated model; rank 0 trains all parameters."""
    return {
        "rank": rank,
        "alpha": 16.0,
        "modules": ("query", "key", "value", "out", "gate", "up", "down"),
    }


def reward(
    source: str, weight: float = 1.0, *, clip: float = 0.0, normalisation: str = "none"
) -> dict[str, Any]:
    """Return one of the rewards whose weighted sum is maximised."""
    return {"source": source, "weight": weight, "clip": clip, "normalisation": normalisation}


def prompt_length(size: str) -> int:
    """Return room for the longest prompt; a small vocabulary needs more tokens per word."""
    return pick(size, tiny=64, default=48, large=64)


def monitor(size: str, *, every: int) -> dict[str, Any]:
    """Return gold as the judge of a few validation prompts while a policy trains."""
    return {
        "judge": f"menagerie/{size}:gold",
        "prompts": f"tfds:menagerie_prompts/{size}",
        "num_prompts": pick(size, tiny=16, default=256, large=512),
        "every": every,
        "prompt_length": prompt_length(size),
        "response_length": RESPONSE_LENGTH,
        "batch_size": pick(size, tiny=16, default=256, large=512),
    }
