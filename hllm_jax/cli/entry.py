"""The entry point of `hllm`: the parser, where output goes, and what an error looks like.

A command is a function of the parsed arguments. What it returns is the JSON of `--json`; without that option
it prints for people and the value is dropped. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import hllm_jax
from hllm_jax.cli import data, machine, model, plan, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells do


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0, or what the command says (`args.status`); 2 after a user's error, 130 after Ctrl-C.
    """
    args = parse(argv)
    without_tpu()
    as_json: bool = getattr(args, "json", False)
    try:
        with _stdout_for_json(as_json) as stdout:
            result = args.run(args)
            if as_json:
                json.dump(plain_json(result), stdout, ensure_ascii=False, indent=2, allow_nan=False)
                stdout.write("\n")
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has gone; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if os.environ.get("HLLM_DEBUG") == "1" or not is_for_user(error):
            raise
        print(f"hllm {args.command}: {_message(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    return int(getattr(args, "status", 0))


def without_tpu() -> None:
    """Keep JAX from looking for a TPU where libtpu is installed only to plan for one.

    It would look for seconds, and complain. Where a device file or a platform is there, nothing is touched.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
        return
    devices = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    if not devices and importlib.util.find_spec("jax_cuda12_plugin") is None:
        os.environ["JAX_PLATFORMS"] = "cpu"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; `key=value` may stand before and after options."""
    parser = build_parser()
    args, left = parser.parse_known_args(argv)
    if left and (not hasattr(args, "overrides") or any(each.startswith("-") for each in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        args.overrides = [*args.overrides, *left]
    return args


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each group of commands adds its own."""
    parser = argparse.ArgumentParser(
        prog="hllm",
        description="Large language models in JAX: from text to tokens, training, and chat.",
        epilog="HLLM_DEBUG=1 shows the traceback of an error. HLLM_CACHE is where data is kept.",
    )
    parser.add_argument("--version", action="version", version=f"hllm {hllm_jax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for group in (train, plan, model, data, machine):
        group.add_commands(commands)
    return parser


def plain_json(value: Any) -> Any:
    """`value` without what JSON cannot say: tuples become lists, numbers that are not finite null."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return plain_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@contextlib.contextmanager
def _stdout_for_json(as_json: bool) -> Iterator[TextIO]:
    """With `--json`, a stream that alone reaches standard output; whatever else is printed goes to stderr.

    Libraries below Python print too, so the file descriptor itself is moved.
    """
    if not as_json:
        yield sys.stdout
        return
    real = sys.stdout
    try:
        descriptor = real.fileno()
    except (OSError, ValueError):  # a test's or notebook's own stream: only Python's prints can be moved
        with contextlib.redirect_stdout(sys.stderr):
            yield real
        return
    real.flush()
    kept = os.dup(1)
    try:
        with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as stdout:
            os.dup2(2, 1)
            with contextlib.redirect_stdout(sys.stderr):
                yield stdout
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def is_for_user(error: Exception) -> bool:
    """Whether the message alone says what to do: errors of input, files and packages, and all of our own."""
    return isinstance(error, (ValueError, OSError, ImportError)) or type(error).__module__.startswith(
        "hllm_jax"
    )


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
