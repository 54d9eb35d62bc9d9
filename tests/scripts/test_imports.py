"""Scripts run seldom: what they take from the library must be there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent / "scripts"
#: Those of the published implementations run in an environment of their own.
SCRIPTS = [path for path in sorted(ROOT.rglob("*.py")) if "peers" not in path.parts]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_from_the_library_is_there(path: Path) -> None:
    taken = [
        (node.module, name.name)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hllm_jax")
        for name in node.names
    ]
    missing = [
        f"{module}.{name}"
        for module, name in taken
        if not hasattr(importlib.import_module(module), name) and not submodule(module, name)
    ]
    assert missing == []


def submodule(module: str, name: str) -> bool:
    """Whether a package has a module of that name."""
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True
