"""Build frozen dataclasses from a ConfigDict, strictly.

An experiment file returns a ConfigDict; a stage declares a frozen dataclass with exactly the fields
it reads. `build` makes one of the other and refuses whatever does not fit: an unknown key (with the
nearest known name), a missing key, a value of the wrong type. Nothing has a default here: the
experiment file is the whole truth about a run.

Left out on purpose: string references, lazy imports and environment variables in configs.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# The least value that a field of this name makes sense with, in whatever stage it stands.
LEAST: dict[str, int] = {
    "seed": 0,
    "num_steps": 1,
    "total_episodes": 1,
    "batch_size": 1,
    "num_micro_batches": 1,
    "num_mini_batches": 1,
    "max_length": 1,
    "row_length": 1,
    "prompt_length": 1,
    "response_length": 1,
    "context_length": 1,
    "eval_every": 1,
    "eval_batches": 1,
    "log_every": 1,
    "save_every": 1,
    "keep": 1,
}


def build(cls: type[T], tree: Mapping[str, Any], path: str = "config") -> T:
    """Make the frozen dataclass `cls` out of a mapping with exactly its fields.

    Raises:
        ValueError: a key is unknown (names the nearest field), is missing, or has a value of the
            wrong type, or one below `LEAST`.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in tree:
        if key not in names:
            raise ValueError(f"{path}.{key}: no such field; {_nearest(key, names)}")
    missing = [name for name in names if name not in tree]
    if missing:
        raise ValueError(f"{path}: missing {', '.join(missing)}; set them in the experiment file")
    values = {name: _convert(hints[name], tree[name], f"{path}.{name}") for name in names}
    for name in LEAST.keys() & values.keys():
        if isinstance(values[name], int) and values[name] < LEAST[name]:
            what = "positive" if LEAST[name] else "0 or more"
            raise ValueError(
                f"{path}.{name}={values[name]}: must be {what}; set --{path}.{name}={LEAST[name]} "
                "or more"
            )
    return cls(**values)


def _nearest(key: str, names: list[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(names)}"


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), _mapping(value, path), path)
    if origin is dict:
        return {
            str(k): _convert(args[1], v, f"{path}.{k}") for k, v in _mapping(value, path).items()
        }
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{path}: expected a list, got {value!r}")
        return tuple(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{path}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(present_type(hint), value, path)
    return _scalar(hint, value, path)


def present_type(hint: Any) -> Any:
    """Return the type of a field's value where it is there: X for X | None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) and not hasattr(value, "items"):
        raise ValueError(f"{path}: expected a group of fields, got {value!r}")
    return value


def _scalar(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (hint is not bool and isinstance(value, bool)) or not isinstance(value, hint):
        raise ValueError(f"{path}: expected {hint.__name__}, got {type(value).__name__} {value!r}")
    return value


def plan_pipeline(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a pipeline's stage configs in the order in which they run, each with its seed.

    Every stage runs in the folder WORKDIR/NAME, so stages name each other's folders as ../NAME.

    Raises:
      ValueError: an unknown key, a stage without the field `stage`, an absent stage in `order`.
    """
    names = ["stage", "seed", "order", "stages"]
    for key in config:
        if key not in names:
            raise ValueError(f"config.{key}: no such field of a pipeline; {_nearest(key, names)}")
    stages = config["stages"]
    absent = [name for name in config["order"] if name not in stages]
    if absent:
        raise ValueError(
            f"config.order names {', '.join(absent)}, but config.stages has {', '.join(stages)}"
        )
    plans = {}
    for name in config["order"]:
        stage = stages[name]
        if "stage" not in stage:
            raise ValueError(f"config.stages.{name}: the field `stage` is missing")
        plain = stage.to_dict() if hasattr(stage, "to_dict") else dict(stage)
        plans[name] = {**plain, "seed": config["seed"]}
    return plans


def require_divides(divisor: int, number: int, what: str, remedy: str) -> None:
    """Refuse arithmetic that does not come out even, naming both numbers."""
    if divisor <= 0 or number % divisor:
        raise ValueError(f"{what}: {number} is not divisible by {divisor}; {remedy}")


def require(condition: bool, message: str) -> None:
    """Refuse an impossible configuration before anything compiles."""
    if not condition:
        raise ValueError(message)


def require_given(value: T | None, message: str) -> T:
    """Return a value that only some runs need; refuse a config without it where it is needed."""
    if value is None:
        raise ValueError(message)
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the fields in which two plain config trees differ, as `name: old -> new`."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines
