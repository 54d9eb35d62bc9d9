"""The process that a reward function runs in. What crosses, both ways, are lines of JSON: text.

It is a process and not a thread because only a process can be ended whatever it does. It reads calls until
its pipe closes, and ends itself when the process that started it is gone.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Function = Callable[..., Any]

LARGEST = 3.4028234e38  # of float32, which rewards are


def serve() -> None:
    """Load the function that the first line names, then answer call after call.

    A call is `{"prompts", "completions", "records"}`. A verifier answers with a line `{"row", "score"}` or
    `{"row", "error"}` as soon as one is judged, a function with one line `{"scores", "errors"}`.
    """
    answers, calls = os.fdopen(os.dup(1), "w", encoding="utf-8"), os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)  # what the function prints must not run into the answers
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # and it has no input
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    start = json.loads(calls.readline())
    sys.path[:] = start["path"]
    try:
        function = load(start["function"])
    except BaseException as error:  # SystemExit of a script that was meant to be run, too
        say({"error": told(error)})
        return
    say({"ready": True})
    answer = judge if start["each"] else score
    for line in calls:
        call = json.loads(line)
        answer(function, start["options"], call["prompts"], call["completions"], call["records"], say)


def follow(parent: int) -> None:
    """End this process when the one that started it is gone, even in the middle of a call."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def score(
    function: Function,
    options: dict[str, Any],
    prompts: list[str],
    completions: list[str],
    records: list[dict[str, Any]],
    say: Callable[[dict[str, Any]], None],
) -> None:
    """Call a function on all; where it raises, find the rows on which it raises by themselves."""

    def call(rows: Sequence[int]) -> list[float | None]:
        chosen = ([each[row] for row in rows] for each in (prompts, completions, records))
        found = function(*chosen, **options)
        try:
            values = list(found)
        except TypeError:
            raise TypeError(f"it returned {shown(found)}, not a list of numbers") from None
        if len(values) != len(rows):
            raise ValueError(f"it returned {len(values)} rewards for {len(rows)} completions")
        return [number(value) for value in values]

    rows = list(range(len(prompts)))
    try:
        say({"scores": call(rows)})
        return
    except Exception as error:
        whole = told(error)
    errors: dict[int, str] = {}
    for row in rows if len(rows) > 1 else ():
        try:
            call([row])
        except Exception as error:
            errors[row] = told(error)
    scores: list[float | None] = [None] * len(rows)
    rest = [row for row in rows if row not in errors]
    # A function that fails on the batch alone, or on every row of it, has no part that could be trusted.
    if errors and rest:
        try:
            for row, value in zip(rest, call(rest), strict=True):
                scores[row] = value
        except Exception as error:
            errors |= dict.fromkeys(rest, told(error))
    else:
        errors = dict.fromkeys(rows, whole)
    say({"scores": scores, "errors": {str(row): message for row, message in errors.items()}})


def judge(
    function: Function,
    options: dict[str, Any],
    prompts: list[str],
    completions: list[str],
    records: list[dict[str, Any]],
    say: Callable[[dict[str, Any]], None],
) -> None:
    """Ask a verifier about one answer after the other."""
    for row, each in enumerate(zip(prompts, completions, records, strict=True)):
        try:
            found = function(*each, **options)
            value = number(found)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(
                    f"it returned {found!r}: a verifier says true or false, or a share of 0 to 1"
                )
            say({"row": row, "score": value})
        except Exception as error:
            say({"row": row, "error": told(error)})


def number(value: Any) -> float | None:
    """A reward as a float; None where it is no finite number, in float32."""
    if value is None:
        return None
    if isinstance(value, str):
        raise TypeError(f"it returned {shown(value)} as a reward, not a number")
    found = float(value)
    return found if abs(found) <= LARGEST else None


def load(path: str) -> Function:
    """The function of `file.py:function` or `package.module:function`.

    Raises:
        FileNotFoundError, ImportError, AttributeError: the message says what there is.
        Exception: whatever the file raises.
    """
    where, _, name = path.rpartition(":")
    if where.endswith(".py"):
        file = Path(where).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {where} in {Path.cwd()}")
        sys.path.insert(0, str(file.resolve().parent))
        spec = importlib.util.spec_from_file_location(f"reward_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise AttributeError(f"{where} has no function {name!r}; it has {', '.join(known) or 'none'}")
    return function


def told(error: BaseException) -> str:
    """An error as a line: its kind, its message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    place = f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {error}{place}"


def shown(value: Any) -> str:
    """Type and start of a value."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
