"""Helpers that several test files share."""

import importlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def load_experiment(path: str, argument: str | None = None) -> Any:
    """The ConfigDict of an experiment file, locked as the command line locks it."""
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config() if argument is None else module.get_config(argument)
    return config.lock()
