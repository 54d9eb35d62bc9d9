"""Configurations as YAML and dicts: every one reads back equal, and `diff` shows what changed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hllm_jax.config import ABSENT, config, diff, load_config, to_dict, to_yaml


@config
class Inner:
    x: float = 0.0
    names: tuple[str, ...] = ()
    pairs: tuple[tuple[int, str], ...] = ()
    more: dict[str, float] | None = None


@config
class Outer:
    text: str | float = ""
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()
    either: int | str | bool | None = None


HARD_TEXTS = [
    "",
    " ",
    "null",
    "~",
    "true",
    "no",
    "1e-3",
    "1_000",
    "0x10",
    ".inf",
    "${x}",
    "12:30",
    "2024-01-01",
    "- a",
    "a: b",
    "#",
    "'",
    '"',
    "line\nline\n\n",
    "\ttab",
    "trailing ",
    "\u2028\x85\x00\x07",
    "{% generation %}{{ x }}{% endgeneration %}",
    "北京,ABC 👩‍👩‍👧 ▁",
    "=",
    "<<",
    "!x",
    "&a *b",
    "%",
    "---",
    "…" * 300,
]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_text_reads_back_as_it_was(tmp_path: Path, text: str) -> None:
    before = Outer(text=text, either=text, inner=Inner(names=(text, text), more={text: 1.0}))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(before), encoding="utf-8")
    assert load_config(Outer, path) == before


@pytest.mark.parametrize("x", [0.0, 1e-3, 1e-300, 1e22, 0.1 + 0.2, math.inf, -math.inf, 123456789.123])
def test_numbers_read_back_bit_equal(tmp_path: Path, x: float) -> None:
    before = Outer(text=x, inner=Inner(x=x, pairs=((1, "a"), (-2, "b"))), items=(Inner(x=x), Inner()))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(before), encoding="utf-8")
    assert load_config(Outer, path) == before


@pytest.mark.parametrize("value", [None, True, False, 0, -7, "7", "True"])
def test_kinds_stay_apart(tmp_path: Path, value: bool | int | str | None) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(Outer(either=value)), encoding="utf-8")
    again = load_config(Outer, path).either
    assert again == value
    assert type(again) is type(value)


def test_yaml_keeps_the_order_of_fields() -> None:
    assert list(to_dict(Outer())) == ["text", "inner", "items", "either"]
    assert to_yaml(Outer()).splitlines()[0] == "text: ''"


def test_diff_names_each_changed_key() -> None:
    old = {"a": 1, "b": {"c": 2, "gone": 0}, "l": [1, 2], "m": [1], "same": [{"x": 1}]}
    new = {"a": 1, "b": {"c": 3, "new": None}, "l": [1, 5], "m": [1, 2], "same": [{"x": 1}]}
    assert diff(old, new) == [
        ("b.c", 2, 3),
        ("b.new", ABSENT, None),
        ("b.gone", 0, ABSENT),
        ("l.1", 2, 5),
        ("m", [1], [1, 2]),
    ]


def test_diff_of_equal_configurations_is_empty() -> None:
    assert diff(to_dict(Outer(items=(Inner(),))), to_dict(Outer(items=(Inner(),)))) == []


def test_to_dict_wants_an_instance() -> None:
    with pytest.raises(TypeError, match="dataclass instance"):
        to_dict(Outer)
