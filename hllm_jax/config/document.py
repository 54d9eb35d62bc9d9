"""A configuration file and its overrides as plain values, with the place that every key came from."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hllm_jax.config.problems import ConfigError, Problem
from hllm_jax.config.syntax import Loader, dump, scalar

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

Key = tuple[str | int, ...]
COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a value was written, and a scalar's text as it was written (`None` when quoted or no scalar)."""

    where: str
    text: str | None = None


@dataclasses.dataclass
class Document:
    """Values as dicts, lists and scalars; `places` says where each key was written."""

    source: str
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[Key, Place] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def where(self, key: Key) -> str:
        """The place of `key`, or of the nearest section around it that was written down."""
        for length in range(len(key), 0, -1):
            if place := self.places.get(key[:length]):
                return place.where
        return self.source

    def override(self, text: str) -> None:
        """Apply one `a.b.c=value`; the value is YAML (`[1, 2]`, `1e-3`, `null`), what is no YAML is text."""
        name, equals, written = text.partition("=")
        name = name.strip()
        if not equals or not all(name.split(".")):
            message = "is no override; write key=value, for example train.steps=100"
            self.problems.append(Problem(where=COMMAND_LINE, key=text, message=message))
            return
        if not _is_unicode(text):
            shown = text.encode("utf-8", "replace").decode()
            self.problems.append(Problem(where=COMMAND_LINE, key=shown, message="is not valid UTF-8"))
            return
        branch = Document(COMMAND_LINE)
        try:
            node = yaml.compose(written, Loader=Loader)
            value = branch.plain(node, (), set()) if node is not None else None
        except (yaml.YAMLError, RecursionError):
            branch, value = Document(COMMAND_LINE), written
        self.problems += branch.problems
        key = self._descend(name)
        if key is None:
            return
        parent: Any = self.values
        for part in key[:-1]:
            parent = parent[part]
        parent[key[-1]] = value
        self.places = {old: place for old, place in self.places.items() if old[: len(key)] != key}
        self.places |= {key + below: place for below, place in branch.places.items()}
        self.places[key] = Place(COMMAND_LINE, written if written.strip() else None)

    def _descend(self, name: str) -> Key | None:
        """The key of a dotted name, whose sections are created on the way; `None` after a problem."""
        node: Any = self.values
        key: Key = ()
        parts = name.split(".")
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            if isinstance(node, list):
                if not part.isdecimal() or int(part) >= len(node):
                    message = (
                        f"{dotted(key)} has {len(node)} items in {self.source}; give a number below that"
                    )
                    self.problems.append(Problem(where=COMMAND_LINE, key=name, message=message))
                    return None
                key = (*key, int(part))
                node = node[int(part)]
                continue
            key = (*key, part)
            if last:
                return key
            if node.get(part) is None:
                node[part] = {}
            elif not isinstance(node[part], (dict, list)):
                message = (
                    f"{dotted(key)} is {short(node[part])} in {self.where(key)}, which has no keys below it"
                )
                self.problems.append(Problem(where=COMMAND_LINE, key=name, message=message))
                return None
            node = node[part]
        return key

    def plain(self, node: yaml.Node, key: Key, above: set[int]) -> Any:
        """The plain value of a YAML node; records the places below `key`, and problems."""
        where = self.source if self.source == COMMAND_LINE else f"{self.source}:{node.start_mark.line + 1}"
        if key:
            self.places.setdefault(key, Place(where))
        if id(node) in above:
            self._refuse(where, key, "an alias that contains itself has no value")
            return None
        if isinstance(node, yaml.ScalarNode):
            try:
                value = scalar(node.tag, node.value)
            except ValueError as error:
                self._refuse(where, key, str(error))
                return None
            self.places[key] = Place(where, None if node.style else node.value)
            return value
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self._refuse(where, key, f"the tag {node.tag} is not supported")
            return None
        above = above | {id(node)}
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*key, index), above) for index, item in enumerate(node.value)]
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = where if self.source == COMMAND_LINE else f"{self.source}:{name_node.start_mark.line + 1}"
            if not isinstance(name_node, yaml.ScalarNode):
                self._refuse(line, key, "a key must be plain text, not a list or a mapping")
                continue
            name: str = name_node.value
            if name in values:
                first = self.places[(*key, name)].where
                self._refuse(line, (*key, name), f"is written twice (first at {first}); keep one of them")
                continue
            self.places[(*key, name)] = Place(line)
            values[name] = self.plain(value_node, (*key, name), above)
            # A section's place is the line of its key, not of its first value.
            self.places[(*key, name)] = Place(line, self.places[(*key, name)].text)
        return values

    def _refuse(self, where: str, key: Key, message: str) -> None:
        self.problems.append(Problem(where=where, key=dotted(key), message=message))


def read_document(path: str | os.PathLike[str] | None, overrides: Iterable[str] = ()) -> Document:
    """Read a YAML file (or nothing) and apply overrides to it.

    Raises:
        ConfigError: the file is missing, empty, not UTF-8, not YAML, or not a mapping of keys.
    """
    if path is None:
        document = Document("defaults")
    else:
        document = Document(str(path))
        text = _text(Path(path))
        try:
            node = yaml.compose(text, Loader=Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            message = "is not YAML: " + " ".join(filter(None, (error.context, error.problem)))
            raise ConfigError([Problem(where=where, message=message)]) from None
        except (yaml.YAMLError, RecursionError) as error:
            reason = (
                "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
            )
            raise ConfigError([Problem(where=str(path), message=f"is not YAML: {reason}")]) from None
        if node is None:
            message = "is empty; a configuration is a mapping of keys, for example `train: {steps: 100}`"
            raise ConfigError([Problem(where=str(path), message=message)])
        values = document.plain(node, (), set())
        if not isinstance(values, dict):
            message = f"must be a mapping of keys (`key: value` lines), this is {short(values)}"
            raise ConfigError([Problem(where=str(path), message=message)])
        document.values = values
    for override in overrides:
        document.override(override)
    return document


def dotted(key: Key) -> str:
    """`("data", "sources", 0)` as `"data.sources.0"`."""
    return ".".join(str(part) for part in key)


def short(value: Any, limit: int = 80) -> str:
    """`value` as one line of YAML, cut to `limit` characters."""
    text = dump(value, flow=True)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        close = difflib.get_close_matches(path.name, names, n=1)
        nearest = str(folder / close[0]) if close else None
        raise ConfigError(
            [Problem(where=str(path), message="there is no such file.", nearest=nearest)]
        ) from None
    except OSError as error:
        raise ConfigError([Problem(where=str(path), message=f"cannot be read: {error.strerror}")]) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); save it as UTF-8"
        raise ConfigError([Problem(where=f"{path}:{line}", message=message)]) from None
