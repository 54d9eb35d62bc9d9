"""The `hllm` command from outside: exit status, what goes to which stream, and that it starts quickly."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hllm_jax import recipes
from hllm_jax.cli import entry, machine, main

RECIPE = '''"""Says what it was told."""

from hllm_jax.config import config


@config
class Config:
    recipe: str = "say"
    text: str = "nothing"
    steps: int = 1


def main(config: Config) -> None:
    if config.text == "interrupt":
        raise KeyboardInterrupt
    if config.text == "file":
        open("missing.txt")
    if config.text == "wrong":
        raise ValueError("text is wrong, say something else")
    print("said", config.text * config.steps)
'''


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One recipe, `say`, and the current folder in `tmp_path`."""
    home = tmp_path / "home"
    (home / "train").mkdir(parents=True)
    (home / "configs" / "say").mkdir(parents=True)
    (home / "train" / "say.py").write_text(RECIPE, encoding="utf-8")
    (home / "configs" / "say" / "tiny.yaml").write_text("recipe: say\ntext: hello\n", encoding="utf-8")
    monkeypatch.setattr(recipes, "home", lambda: home)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HLLM_DEBUG", raising=False)
    return home


def test_train_runs_the_recipe_with_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "configs/say/tiny.yaml", "steps=2"]) == 0
    assert capsys.readouterr() == ("said hellohello\n", "recipe: say\ntext: hello\nsteps: 2\n")


def test_validate_prints_the_resolved_config(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "say/tiny", "text=你好"]) == 0
    assert capfd.readouterr().out == "recipe: say\ntext: 你好\nsteps: 1\n# say/tiny is valid\n"
    assert main(["validate", "say/tiny", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"recipe": "say", "text": "hello", "steps": 1}


def test_a_wrong_config_is_one_message_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "say/tiny", "stepz=2", "steps=x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "hllm validate: the configuration cannot be used, 2 problems:\n"
        "  command line: steps = x: wants an integer, this is text\n"
        "  command line: stepz = 2: unknown key. Did you mean steps?\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("wrong", "text is wrong, say something else"), ("file", "missing.txt: No such file or directory")],
)
def test_a_users_error_has_no_traceback(
    text: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", "say/tiny", f"text={text}"]) == 2
    assert capsys.readouterr().err == f"recipe: say\ntext: {text}\nsteps: 1\nhllm train: {message}\n"
    monkeypatch.setenv("HLLM_DEBUG", "1")
    with pytest.raises((ValueError, OSError)):
        main(["train", "say/tiny", f"text={text}"])


def test_interrupt_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "say/tiny", "text=interrupt"]) == 130
    assert capsys.readouterr() == ("", "recipe: say\ntext: interrupt\nsteps: 1\n")


def test_json_is_alone_on_stdout(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(args: argparse.Namespace) -> dict[str, object]:
        print("progress")
        subprocess.run(["echo", "from below"], check=True)
        return {
            "loss": math.nan,
            "path": Path("a"),
            "tokens": (np.int32(1), np.float32(0.5)),
            "text": "\u4f60",
        }

    monkeypatch.setattr(machine, "doctor", noisy)
    assert main(["doctor", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"loss": None, "path": "a", "tokens": [1, 0.5], "text": "你"}
    assert set(captured.err.splitlines()) == {"progress", "from below"}


def test_recipes_lists_and_copies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert (
        "say          Says what it was told.\n               configs/say/tiny.yaml\n"
        in capsys.readouterr().out
    )
    assert main(["recipes", "copy", "say", "mine"]) == 0
    assert "mine/say.py\nmine/tiny.yaml\n\nhllm train mine/tiny.yaml\n" in capsys.readouterr().out
    assert main(["train", "mine/tiny.yaml"]) == 0
    assert main(["recipes", "copy", "say", "mine"]) == 2
    assert "not overwriting mine/say.py" in capsys.readouterr().err


def test_recipes_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    (recipe,) = json.loads(capfd.readouterr().out)
    assert (recipe["name"], recipe["configs"]) == ("say", ["configs/say/tiny.yaml"])


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["train"], ["generate", "m"], ["quickstart", "--scale", "huge"]]
)
def test_wrong_usage_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: hllm" in capsys.readouterr().err


def test_every_command_of_the_interface_parses() -> None:
    lines = [
        "quickstart --scale small --out x",
        "train C a.b=1 mesh.data=-1",
        "generate M --prompt T --raw --max-tokens 1 --temperature 0 --top-p 1 --top-k 0 --seed 3",
        "generate M --prompts F.jsonl --stop x --json",
        "chat M",
        "eval M --data D --json",
        "inspect M --json",
        "data list",
        "data prepare NAME",
        "data inspect C",
        "validate C a=1",
        "report R",
        "recipes",
        "recipes copy NAME DIR",
        "doctor --json",
        "bench",
        "bench train --json",
    ]
    for line in lines:
        assert callable(entry.build_parser().parse_args(line.split()).run)


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom hllm_jax.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'pydantic', 'rich', 'yaml', 'flax'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
