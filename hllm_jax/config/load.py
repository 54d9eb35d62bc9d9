"""A YAML file and overrides, checked against a configuration class: the instance, or all that is wrong."""

from __future__ import annotations

import copy
import difflib
import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hllm_jax.config.convert import plain
from hllm_jax.config.declare import Invalid, Problems, overlooking
from hllm_jax.config.document import COMMAND_LINE, Document, Key, Place, dotted, read_document, short
from hllm_jax.config.problems import ConfigError, Problem
from hllm_jax.config.schema import below, fields, nearest_key, with_defaults

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

T = TypeVar("T")

WANTS = {
    "int_type": "wants an integer",
    "int_from_float": "wants an integer",
    "int_parsing": "wants an integer",
    "float_type": "wants a number",
    "float_parsing": "wants a number",
    "bool_type": "wants true or false",
    "bool_parsing": "wants true or false",
    "string_type": "wants text",
    "dataclass_type": "wants a section (keys with values)",
    "dataclass_exact_type": "wants a section (keys with values)",
    "dict_type": "wants keys with values",
    "tuple_type": "wants a list",
    "list_type": "wants a list",
    "set_type": "wants a list",
    "none_required": "wants null",
    "path_type": "wants a path",
}


def load_config(cls: type[T], path: str | os.PathLike[str] | None = None, overrides: Iterable[str] = ()) -> T:
    """Read `path` (YAML; `None` for the defaults alone), apply `overrides`, and build `cls` from it.

    Args:
        cls: a class declared with `@config`, whose fields are scalars, sections, tuples and dicts of them.
        path: the YAML file.
        overrides: `"train.steps=100"`, `"data.sources.0.weight=2"`, …; values are YAML, a later one wins.

    Raises:
        ConfigError: names every problem with file, line, full key, value and nearest valid key.
    """
    document = read_document(path, overrides)
    return check(cls, document)


def check(cls: type[T], document: Document) -> T:
    """Build `cls` from a document that was already read; raises `ConfigError` like `load_config`."""
    adapter: TypeAdapter[T] = TypeAdapter(cls)
    values = with_defaults(cls, copy.deepcopy(document.values))
    problems = list(document.problems)
    config, errors = _validate(adapter, values)
    if errors and _reread_text(document, values, errors):
        config, errors = _validate(adapter, values)
    problems += _report(cls, document, values, errors)
    if not problems and config is not None:
        return config
    problems += _combinations(cls, adapter, document, values, errors)
    raise ConfigError(sorted(dict.fromkeys(problems), key=_place))


def _validate(adapter: TypeAdapter[T], values: dict[str, Any]) -> tuple[T | None, list[ErrorDetails]]:
    # Through JSON, because strict validation of JSON is what a configuration wants: a list is a tuple, a
    # mapping is a section, an integer is a number, and nothing else is anything else.
    try:
        return adapter.validate_json(json.dumps(values), strict=True), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _reread_text(document: Document, values: dict[str, Any], errors: list[ErrorDetails]) -> bool:
    """Where text is wanted and a plain number was written (`run.name=2024`), take it as it was written."""
    changed = False
    for error in errors:
        if error["type"] not in ("string_type", "literal_error"):
            continue
        key = _key(values, error["loc"])
        place, value = document.places.get(key), _at(values, key)
        if (
            place is None
            or place.text is None
            or value is None
            or (isinstance(value, bool) and _is_text(error))
        ):
            continue
        if _is_text(error) or place.text in _choices(error):
            _put(values, key, place.text)
            changed = True
    return changed


def _report(
    cls: type, document: Document, values: dict[str, Any], errors: list[ErrorDetails]
) -> list[Problem]:
    """Problems of one validation; those of a union's members at one key become one problem."""
    grouped: dict[Key, list[ErrorDetails]] = {}
    for error in errors:
        grouped.setdefault(_key(values, error["loc"]), []).append(error)
    problems: list[Problem] = []
    for key, group in grouped.items():
        where, value = document.where(key), _at(values, key)
        first = group[0]
        raised = first.get("ctx", {}).get("error")
        if isinstance(raised, Invalid):
            problems += [_invalid(cls, document, values, key, *problem) for problem in raised.problems]
            continue
        shown = None if value is _NOTHING else short(value)
        nearest: str | None = None
        if raised is not None:
            message, shown = str(raised), None
        elif first["type"] == "unexpected_keyword_argument":
            nearest = nearest_key(cls, key)
            valid = ", ".join(name for each in below(cls, key[:-1]) for name in fields(each))
            message = "unknown key." if nearest else f"unknown key; here go {valid}."
        elif first["type"] == "missing":
            message, shown = "is required and not given", None
        else:
            choices = [choice for error in group for choice in _choices(error)]
            close = difflib.get_close_matches(str(value), choices, n=1)
            message = " or ".join(dict.fromkeys(_wants(error) for error in group))
            message += "" if first["type"] == "literal_error" else _found(value)
            nearest = close[0] if close else None
            message += "." if nearest else ""
        problems.append(Problem(where=where, key=dotted(key), value=shown, message=message, nearest=nearest))
    return problems


def _invalid(
    cls: type, document: Document, values: dict[str, Any], section: Key, field: str, message: str
) -> Problem:
    key = section + tuple(int(part) if part.isdecimal() else part for part in field.split(".") if part)
    value = _at(values, key, default=_default_at(cls, key))
    shown = None if value is _NOTHING else short(plain(value))
    return Problem(where=document.where(key), key=dotted(key), value=shown, message=message)


def _combinations(
    cls: type,
    adapter: TypeAdapter[Any],
    document: Document,
    values: dict[str, Any],
    errors: list[ErrorDetails],
) -> list[Problem]:
    """The impossible combinations that pydantic did not come to, because a key nearby was wrong itself.

    A refused section is overlooked, a misspelt key is spelt right, another wrong value is taken out, and then
    the rest is checked again. Problems of sections around a value that was taken out are not reported: its
    default may not fit the rest, which is nobody's mistake.
    """
    spoilt: set[Key] = set()
    known: set[Problems] = set()
    found: list[Problem] = []
    for _ in range(8):
        for error in errors:
            key, raised = _key(values, error["loc"]), error.get("ctx", {}).get("error")
            if isinstance(raised, Invalid):
                known.add(raised.problems)
                continue
            if not key:
                return found
            value = _remove(values, key)
            right = tuple((nearest_key(cls, key) or "").split("."))
            if error["type"] != "unexpected_keyword_argument":
                spoilt.add(key)
            elif right[:-1] == key[:-1] and right not in document.places and value is not _NOTHING:
                _put(values, right, value)
                document.places[right] = Place(document.where(key))
        values = with_defaults(cls, values)
        try:
            with overlooking(known):
                config, errors = _validate(adapter, values)
        except Exception:  # a check that was not made for values that another check has refused
            return found
        if config is not None:
            return found
        fresh: list[ErrorDetails] = []
        for error in errors:
            at = _key(values, error["loc"])
            if error["type"] == "value_error" and not any(key[: len(at)] == at for key in spoilt):
                fresh.append(error)
        found += _report(cls, document, values, fresh)
    return found


_NOTHING = object()


def _key(values: Any, location: tuple[int | str, ...]) -> Key:
    """pydantic's location without the names of union members that it puts in."""
    key: Key = ()
    for depth, part in enumerate(location):
        last = depth == len(location) - 1
        if (
            part in values
            if isinstance(values, dict)
            else isinstance(values, list) and part in range(len(values))
        ):
            values = values[part]
        elif not (last and isinstance(values, dict) and isinstance(part, str) and part.isidentifier()):
            continue
        key = (*key, part)
    return key


def _at(values: Any, key: Key, default: Any = _NOTHING) -> Any:
    for part in key:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return default
    return values


def _default_at(cls: type, key: Key) -> Any:
    """The class's own default at `key`, where there is one to be had without building sections."""
    found = below(cls, key[:-1])
    return getattr(found[0], str(key[-1]), _NOTHING) if found and key else _NOTHING


def _put(values: Any, key: Key, value: Any) -> None:
    for part in key[:-1]:
        values = values[part]
    values[key[-1]] = value


def _remove(values: Any, key: Key) -> Any:
    for part in key[:-1]:
        values = values.get(part) if isinstance(values, dict) else None
    return values.pop(key[-1], _NOTHING) if isinstance(values, dict) else _NOTHING


def _place(problem: Problem) -> tuple[bool, int]:
    """Sorts problems by line, and the command line last."""
    line = problem.where.rpartition(":")[2]
    return problem.where == COMMAND_LINE, int(line) if line.isdecimal() else 0


def _is_text(error: ErrorDetails) -> bool:
    return error["type"] == "string_type"


def _choices(error: ErrorDetails) -> list[str]:
    if error["type"] != "literal_error":
        return []
    return re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))


def _wants(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return f"must be {error.get('ctx', {}).get('expected')}"
    message = error["msg"]
    return WANTS.get(error["type"], message[:1].lower() + message[1:])


def _found(value: Any) -> str:
    if value is None:
        return ", this is empty"
    kinds = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a section",
    }
    return f", this is {kinds[type(value)]}" if type(value) in kinds else ""
