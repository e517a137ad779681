"""How ChatGPT is trained, end to end, in JAX: pretrain, SFT, reward model, PPO(-ptx), evaluate, chat."""

from pathlib import Path

__version__ = (Path(__file__).parent / "VERSION").read_text().strip()
