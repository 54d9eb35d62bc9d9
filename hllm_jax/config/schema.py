"""Which keys a configuration class has, and which of them is nearest to one that does not exist."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from typing import Any

from hllm_jax.config.convert import plain
from hllm_jax.config.declare import Invalid


@functools.cache
def fields(cls: type) -> dict[str, Any]:
    """The keys of a section and their types, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def sections(annotation: Any) -> list[type]:
    """The dataclasses that a field of this type can hold directly (`X`, `X | None`, `Annotated[X, …]`)."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [found for part in typing.get_args(annotation) for found in sections(part)]
    if origin is typing.Annotated:
        return sections(typing.get_args(annotation)[0])
    return [annotation] if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else []


def item_sections(annotation: Any) -> list[type]:
    """The dataclasses that the items of a tuple, list or dict field can hold."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return [found for part in arguments for found in item_sections(part)]
    if origin is typing.Annotated:
        return item_sections(arguments[0])
    if origin in (tuple, list, dict):
        return [found for part in arguments for found in sections(part)]
    return []


def below(cls: type, key: tuple[str | int, ...]) -> list[type]:
    """The dataclasses that stand at `key` below `cls`; empty where there is none."""
    found = [cls]
    items: list[type] = []
    for part in key:
        if items:  # `part` is the number or name of an item
            found = list(items)
            items.clear()
            continue
        annotations = [fields(each)[str(part)] for each in found if str(part) in fields(each)]
        found = [section for annotation in annotations for section in sections(annotation)]
        items = [section for annotation in annotations for section in item_sections(annotation)]
    return found


def all_keys(cls: type) -> list[str]:
    """Every dotted key of a configuration class; items of a list stand as number 0."""
    found: list[str] = []

    def walk(cls: type, prefix: str, above: tuple[type, ...]) -> None:
        for name, annotation in fields(cls).items():
            found.append(prefix + name)
            for section in sections(annotation):
                if section not in above:
                    walk(section, f"{prefix}{name}.", (*above, section))
            for section in item_sections(annotation):
                if section not in above:
                    walk(section, f"{prefix}{name}.0.", (*above, section))

    walk(cls, "", (cls,))
    return found


def nearest_key(cls: type, key: tuple[str | int, ...]) -> str | None:
    """The valid key most like an unknown one: a sibling, the same name in another section, or any alike."""
    *section, name = key
    name = str(name)
    prefix = "".join(f"{part}." for part in section)
    siblings = [sibling for each in below(cls, tuple(section)) for sibling in fields(each)]
    everywhere = all_keys(cls)
    if close := difflib.get_close_matches(name, siblings, n=1, cutoff=0.8):
        return prefix + close[0]
    wanted = prefix + name
    elsewhere = [other for other in everywhere if other.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return min(elsewhere, key=lambda other: other.count("."))
    if close := difflib.get_close_matches(name, siblings, n=1, cutoff=0.6):
        return prefix + close[0]
    # The last part of each valid key against the unknown name, then whole dotted keys.
    last = {other.rsplit(".", 1)[-1]: other for other in reversed(everywhere)}
    if close := difflib.get_close_matches(name, last, n=1, cutoff=0.75):
        return last[close[0]]
    return next(iter(difflib.get_close_matches(wanted, everywhere, n=1, cutoff=0.75)), None)


def with_defaults(cls: type, given: dict[str, Any]) -> dict[str, Any]:
    """`given` over the defaults of `cls`: a key set in a section keeps what else that section's default says.

    Without this, `train: {steps: 5}` over a default of `Train(batch_size=8)` would forget the 8.
    """
    values = dict(given)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if field.name not in given:
            if _refused(field):
                values[field.name] = {}  # the loader then says what is missing from it, and where
            continue
        value, annotation = given[field.name], fields(cls)[field.name]
        direct, items = sections(annotation), item_sections(annotation)
        if isinstance(value, dict) and len(direct) == 1:
            default = _default(field)
            values[field.name] = (
                _over(default, value)
                if dataclasses.is_dataclass(default)
                else with_defaults(direct[0], value)
            )
        elif isinstance(value, list) and len(items) == 1:
            values[field.name] = [with_defaults(items[0], v) if isinstance(v, dict) else v for v in value]
        elif isinstance(value, dict) and len(items) == 1:
            values[field.name] = {
                k: with_defaults(items[0], v) if isinstance(v, dict) else v for k, v in value.items()
            }
    return values


def _over(default: Any, given: dict[str, Any]) -> dict[str, Any]:
    cls = type(default)
    values = with_defaults(cls, given)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        own = getattr(default, field.name)
        if field.name not in given:
            values[field.name] = plain(own)
        elif dataclasses.is_dataclass(own) and isinstance(given[field.name], dict):
            values[field.name] = _over(own, given[field.name])
    return values


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return None if _refused(field) else field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _refused(field: dataclasses.Field[Any]) -> bool:
    """Whether the default is a section that its own check refuses: something in it must be given."""
    if field.default_factory is dataclasses.MISSING:
        return False
    try:
        field.default_factory()
    except Invalid:
        return True
    return False
