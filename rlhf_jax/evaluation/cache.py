"""Measurements that survive a killed evaluation: one JSON file per checkpoint and group of metrics.

    partial/<checkpoint>-<group>.json = {"key": sha256 of all that it depends on, "data": ...}

A file whose key differs is measured again. A fresh measurement goes through the same text form as one that is
read back, so that a resumed evaluation gives the same file as an uninterrupted one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.evaluation.table import write_json


class Cache:
    """Measurements kept in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(
        self,
        checkpoint: str,
        group: str,
        depends_on: Mapping[str, Any],
        measure: Callable[[], dict[str, Any]],
    ) -> tuple[dict[str, Any], bool]:
        """What `measure()` returns, or what it returned before; and whether it was there already."""
        path = self.folder / f"{checkpoint}-{group}.json"
        key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: damaged ({error}); delete it and run again") from error
            if kept["key"] == key:
                return kept["data"], True
        data = json.loads(json.dumps(plain(measure())))
        write_json(path, {"key": key, "data": data})
        return data, False


def plain(tree: Any) -> Any:
    """Arrays as nested lists, mappings and sequences as JSON has them."""
    if isinstance(tree, Mapping):
        return {str(name): plain(part) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(part) for part in tree]
    return tree.tolist() if isinstance(tree, np.ndarray | np.generic) else tree
