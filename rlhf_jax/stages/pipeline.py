"""A pipeline config: named stage configs in the order in which they run, one seed for all.

Every stage gets the folder WORKDIR/NAME; stages name each other's folders as ../NAME.
"""

from collections.abc import Mapping
from typing import Any


def plan(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The stage configs in order, each with the pipeline's seed.

    Raises:
      ValueError: an unknown key, a stage without the field `stage`, or `order` and `stages` that do not name the same stages.
    """
    known = {"stage", "seed", "order", "stages"}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"config.{unknown[0]}: no such field of a pipeline; known fields: {', '.join(sorted(known))}")
    order, stages = list(config["order"]), config["stages"]
    absent = [name for name in order if name not in stages]
    if absent:
        raise ValueError(f"config.order names {', '.join(absent)}, but config.stages has {', '.join(stages)}")
    plans = {}
    for name in order:
        stage = {**_plain(stages[name]), "seed": config["seed"]}
        if "stage" not in stage:
            raise ValueError(f"config.stages.{name}: the field `stage` is missing")
        plans[name] = stage
    return plans


def _plain(tree: Any) -> Any:
    return tree.to_dict() if hasattr(tree, "to_dict") else dict(tree)
