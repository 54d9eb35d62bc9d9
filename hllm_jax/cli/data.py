"""Commands on data: `data list`, `data prepare NAME`, `data inspect CONFIG`."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add the group to the parser."""
    group = commands.add_parser(
        "data", help="list corpora, prepare one, or look at the rows a config trains on"
    )
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")

    parser = actions.add_parser("list", help="registered corpora: language, size, licence")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=list_corpora)

    parser = actions.add_parser("prepare", help="fetch and build a corpus")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print its record as JSON")
    parser.set_defaults(run=prepare)

    parser = actions.add_parser("inspect", help="tokens, weights and segments of the first rows of a config")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument(
        "--rows", type=int, default=1, metavar="N", help="how many rows (default: %(default)s)"
    )
    parser.set_defaults(run=inspect)


def list_corpora(args: argparse.Namespace) -> list[dict[str, Any]]:
    """`hllm data list`."""
    from hllm_jax.data.corpora.registry import corpora_table
    from hllm_jax.data.corpora.registry import list_corpora as corpora

    if not args.json:
        from rich.console import Console

        Console().print(corpora_table())
    return [_record(corpus) for corpus in corpora()]


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """`hllm data prepare NAME`."""
    from hllm_jax.data.corpora.registry import find_corpus, prepare_corpus

    print(f"{args.name}: from {find_corpus(args.name).package.command}", file=sys.stderr)
    corpus = _record(prepare_corpus(args.name))
    if not args.json:
        for name, value in corpus.items():
            print(f"{name:12} {value}")
    return corpus


def inspect(args: argparse.Namespace) -> None:
    """`hllm data inspect CONFIG`."""
    from rich.console import Console

    from hllm_jax import data
    from hllm_jax.inspection import tokenizer_of
    from hllm_jax.recipes import load_run_config
    from hllm_jax.training.config import TrainConfig

    _, config = load_run_config(args.config, args.overrides)
    if not hasattr(config, "data"):
        raise ValueError(
            f"{args.config} has no data: section; hllm validate {args.config} prints what it has"
        )
    task = getattr(config, "task", None)
    objective = task.resolve(config.data) if task is not None else getattr(config, "objective", None)
    objective = getattr(config, "prompts", getattr(config, "pairs", objective))
    train = getattr(config, "train", TrainConfig(steps=1))  # the tokenizer recipe has no rows of its own
    shown = data.inspect(
        config.data,
        tokenizer_of(config),
        batch_size=max(args.rows, train.batch_size),
        sequence_length=config.rollout.prompt_window if hasattr(config, "prompts") else train.sequence_length,
        seed=config.run.seed,
        rows=args.rows,
        objective=objective,
    )
    Console().print(shown)


def _record(corpus: Any) -> dict[str, Any]:
    """The public fields of a corpus that JSON can say."""
    return {
        field.name: getattr(corpus, field.name)
        for field in dataclasses.fields(corpus)
        if isinstance(getattr(corpus, field.name), (str, int, float, bool, tuple, list, dict, type(None)))
    }
