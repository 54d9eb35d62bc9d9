"""Commands that train: `quickstart`, `train`, `validate`, `report`, `recipes`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add the group to the parser."""
    parser = commands.add_parser(
        "quickstart", help="train a small bilingual chat model from raw text, end to end"
    )
    parser.add_argument(
        "--scale", choices=("small", "medium", "large"), default="small", help="how much to train"
    )
    parser.add_argument(
        "--out", default="runs/quickstart", metavar="DIR", help="run folder (default: %(default)s)"
    )
    parser.set_defaults(run=quickstart)

    parser = commands.add_parser("train", help="run the recipe of a configuration")
    _add_config(parser)
    parser.set_defaults(run=train)

    parser = commands.add_parser("validate", help="check a configuration without starting anything")
    _add_config(parser)
    parser.add_argument("--json", action="store_true", help="print the resolved configuration as JSON")
    parser.set_defaults(run=validate)

    parser = commands.add_parser("report", help="write report.html of a run")
    parser.add_argument("directory", metavar="RUN", help="run folder, or a folder of runs")
    parser.set_defaults(run=report)

    parser = commands.add_parser("recipes", help="list recipes, or `copy NAME DIR` one to change it")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    copy = actions.add_parser("copy", help="write a recipe and its configurations into a folder")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("directory", metavar="DIR")
    copy.set_defaults(run=copy_recipe)
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(run=list_recipes)


def quickstart(args: argparse.Namespace) -> None:
    """`hllm quickstart`."""
    from hllm_jax.quickstart import quickstart

    quickstart(scale=args.scale, out=args.out)


def train(args: argparse.Namespace) -> None:
    """`hllm train CONFIG [key=value ...]`: prints the resolved configuration, then what the recipe says."""
    from rich.console import Console

    from hllm_jax.config import to_yaml
    from hllm_jax.recipes import load_run_config

    recipe, config = load_run_config(args.config, args.overrides)
    Console(stderr=True, highlight=False).print(
        to_yaml(config), end="", markup=False, soft_wrap=True, style="dim"
    )
    recipe.main(config)
    if hasattr(config, "run"):
        _write_page(Path(config.run.dir).expanduser())


def _write_page(folder: Path) -> None:
    """`report.html` of a run that trained; without matplotlib, a word on how to have one."""
    from hllm_jax.report import MissingPlots, report
    from hllm_jax.training.platform import is_coordinator

    if (folder / "metrics.jsonl").is_file() and is_coordinator():
        try:
            print(f"report: {report(folder)}", file=sys.stderr)
        except MissingPlots as error:
            print(f"no report.html: {error}", file=sys.stderr)


def validate(args: argparse.Namespace) -> dict[str, Any]:
    """`hllm validate CONFIG [key=value ...]`."""
    from hllm_jax.config.convert import to_dict, to_yaml
    from hllm_jax.recipes import load_run_config

    _, config = load_run_config(args.config, args.overrides)
    if getattr(config, "lora", None) is not None:
        from hllm_jax.inspection import spec_of_config
        from hllm_jax.models.lora import check_adapters

        check_adapters(config.lora, spec_of_config(config))
    if not args.json:
        print(to_yaml(config), end="")
        print(f"# {args.config} is valid")
    return to_dict(config)


def report(args: argparse.Namespace) -> None:
    """`hllm report RUN`."""
    from hllm_jax.report import report

    print(report(args.directory))


def list_recipes(args: argparse.Namespace) -> list[dict[str, Any]]:
    """`hllm recipes`."""
    from hllm_jax.recipes import home, recipes

    found = recipes()
    if not args.json:
        for recipe in found:
            print(f"{recipe.name:12} {recipe.summary}")
            for config in recipe.configs:
                print(f"{'':12}   {config.relative_to(home()).as_posix()}")
        print("\nhllm train CONFIG runs one; hllm recipes copy NAME DIR hands out a copy to change.")
    return [
        {
            "name": recipe.name,
            "summary": recipe.summary,
            "path": str(recipe.path),
            "configs": [config.relative_to(home()).as_posix() for config in recipe.configs],
        }
        for recipe in found
    ]


def copy_recipe(args: argparse.Namespace) -> None:
    """`hllm recipes copy NAME DIR`."""
    from hllm_jax.recipes import copy

    written = copy(args.name, args.directory)
    for path in written:
        print(path)
    if len(written) > 1:
        print(f"\nhllm train {os.fspath(written[1])}")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file, shipped configuration, or run folder")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="e.g. train.steps=100 (values are YAML)"
    )
