"""Configurations as plain values and back: what is saved with a run, and what two runs differ in."""

from __future__ import annotations

import dataclasses
import enum
import os
from typing import Any

from hllm_jax.config.syntax import dump


class Absent:
    """Stands in a `diff` for a key that one side does not have."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as dicts, lists and scalars that JSON and YAML can hold; every key is written out."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"to_dict wants a configuration (a dataclass instance), got {type(config).__name__}")
    return {
        field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init
    }


def to_yaml(config: Any) -> str:
    """A configuration as YAML text; `load_config(type(config), file)` of it is equal to `config`."""
    return dump(to_dict(config))


def plain(value: Any) -> Any:
    """`value` as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs between two configurations given as dicts (from `to_dict` or a saved file).

    Returns:
        `(dotted key, old value, new value)` in the order of `new`, then keys that only `old` has; `ABSENT`
        stands for a missing key. Lists of the same length are compared item by item.
    """
    found: list[tuple[str, Any, Any]] = []
    _compare("", plain(old), plain(new), found)
    return found


def _compare(key: str, old: Any, new: Any, found: list[tuple[str, Any, Any]]) -> None:
    prefix = f"{key}." if key else ""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(name for name in old if name not in new)]:
            _compare(f"{prefix}{name}", old.get(name, ABSENT), new.get(name, ABSENT), found)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            _compare(f"{prefix}{index}", *pair, found)
    elif old != new or type(old) is not type(new):
        found.append((key, old, new))
