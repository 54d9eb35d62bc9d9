"""The YAML that configurations are written in: YAML 1.2's plain scalars, each node with its line.

PyYAML follows YAML 1.1, where `no` is false, `12:30` is 750, `1e-3` is text and a date is a date. Here
a plain scalar is null, a boolean (`true`, `false`), an integer (`1_000`), a number (`1e-3`, `.inf`) or
text; `.nan` is no value of a configuration. The same table reads and writes, so that what is written reads
back as it was.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

PLAIN: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0x[0-9a-fA-F_]+|0o[0-7_]+|[0-9][0-9_]*)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF))$",
        "-+0123456789.",
    ),
]


class Loader(yaml.SafeLoader):
    """Composes nodes with YAML 1.2 plain scalars."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML keeps one table per class)


class Dumper(yaml.SafeDumper):
    """Writes text in quotes exactly where `Loader` would read something else."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML keeps one table per class)

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out: a reader should not have to follow anchors."""
        return True


for _tag, _pattern, _first in PLAIN:
    for _class in (Loader, Dumper):
        # PyYAML looks resolvers up by first character; "" stands for the empty scalar.
        _class.add_implicit_resolver(_tag, re.compile(_pattern), ["" if c == "\0" else c for c in _first])


def scalar(tag: str, text: str) -> Any:
    """The value of a scalar node with a core-schema `tag`.

    Raises:
        ValueError: an explicit tag that does not fit its text (`!!int x`), or a tag that is not supported.
    """
    kind = tag.removeprefix("tag:yaml.org,2002:")
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "int":
        digits = text.replace("_", "").lower()
        sign, bare = (-1, digits[1:]) if digits.startswith("-") else (1, digits.removeprefix("+"))
        base = {"0x": 16, "0o": 8}.get(bare[:2], 10)
        return sign * int(bare[2:] if base != 10 else bare, base)
    if kind == "float":
        return float(re.sub(r"\.(inf)$", r"\1", text.replace("_", "").lower()))
    raise ValueError(f"{text!r} cannot be read as {tag}; supported are text, numbers, true, false and null")


def dump(value: Any, *, flow: bool = False) -> str:
    """`value` (dicts, lists and scalars) as YAML text; on one line with `flow`."""
    text: str = yaml.dump(
        value,
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow,
        width=1_000_000 if flow else 100,
    )
    return text.removesuffix("...\n").removesuffix("\n") if flow else text
