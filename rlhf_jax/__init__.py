"""Train language models as ChatGPT is trained, end to end, in JAX."""

from pathlib import Path

__version__ = (Path(__file__).parent / "VERSION").read_text().strip()
