"""Commands on this machine: `doctor`, `bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add the group to the parser."""
    parser = commands.add_parser(
        "doctor", help="platform, devices, memory settings, versions, and what is wrong"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=doctor)

    parser = commands.add_parser("bench", help="measure against a peer; without NAME, list the benchmarks")
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=bench)


def doctor(args: argparse.Namespace) -> dict[str, Any]:
    """`hllm doctor`."""
    from hllm_jax.doctor import examine, show

    report = examine()
    if not args.json:
        show(report)
    return report


def bench(args: argparse.Namespace) -> Any:
    """`hllm bench [NAME]`: runs `scripts/bench/NAME.py --json` in an interpreter of its own."""
    scripts = _benchmarks()
    if args.name is None:
        if not args.json:
            for name, path in scripts.items():
                print(f"{name:12} {_summary(path)}")
        return [{"name": name, "summary": _summary(path)} for name, path in scripts.items()]
    if args.name not in scripts:
        raise ValueError(f"there is no benchmark {args.name!r}; there are {', '.join(scripts) or 'none'}")
    done = subprocess.run(
        [sys.executable, str(scripts[args.name]), "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise ValueError(
            f"scripts/bench/{args.name}.py ended with status {done.returncode}; what it said is above"
        )
    result = json.loads(done.stdout)
    if not args.json:
        for name, value in result.items():
            print(f"{name:20} {json.dumps(value, ensure_ascii=False)}")
    return result


def _benchmarks() -> dict[str, Path]:
    from hllm_jax.recipes import checkout

    root = checkout()
    if root is None:
        raise ValueError(
            "benchmarks are part of the repository, and this is an installed package: clone it first"
        )
    found = sorted((root / "scripts" / "bench").glob("*.py"))
    return {path.stem: path for path in found if path.stem != "common"}


def _summary(path: Path) -> str:
    import ast

    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
