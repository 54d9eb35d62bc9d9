"""Every code block of README.md and docs/ runs, unless the page says why not.

A block is fenced with ```bash or ```python. The comment `<!-- not run: reason -->` on the line before a block
leaves it out; `<!-- slow: reason -->` leaves it to the slow tests, which run the whole page. The blocks of a
page run in order, in one empty folder. A page that names `runs/quickstart` finds a small trained run there,
and is slow.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>not run|slow): (?P<reason>[^\n]+?) -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
RUNNABLE = ("bash", "python")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the line it starts at and what the page says of it."""

    page: Path
    line: int
    language: str
    code: str
    mark: str | None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            code=found["code"],
            mark=found["mark"],
        )
        for found in FENCE.finditer(text)
    ]


def to_run(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in RUNNABLE and block.mark != "not run"]


def wants_run(page: Path) -> bool:
    return any("runs/quickstart" in block.code for block in to_run(page))


def is_slow(page: Path) -> bool:
    return wants_run(page) or any(block.mark == "slow" for block in to_run(page))


def run(blocks: list[Block], folder: Path) -> None:
    """Run blocks in `folder`; the shell finds `hllm` and `python` of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    for block in blocks:
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, block.code],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block.where} fails:\n{block.code}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/quickstart/pretrain` and `runs/quickstart/sft`, a few steps each."""
    folder = tmp_path_factory.mktemp("trained")
    hllm = [sys.executable, "-m", "hllm_jax"]
    for stage, load in (("pretrain", []), ("sft", ["model.load=runs/quickstart/pretrain"])):
        settings = ["train.steps=2", "train.batch_size=8", "eval.batches=1", *load]
        command = [
            *hllm,
            "train",
            f"configs/{stage}/tiny.yaml",
            f"run.dir=runs/quickstart/{stage}",
            *settings,
        ]
        subprocess.run(command, cwd=folder, check=True)
    return folder / "runs"


@pytest.mark.parametrize("page", [p for p in PAGES if not wants_run(p)], ids=lambda page: page.name)
def test_page(page: Path, tmp_path: Path) -> None:
    run([block for block in to_run(page) if block.mark != "slow"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if is_slow(p)], ids=lambda page: page.name)
def test_slow_page(page: Path, tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "runs")
    run(to_run(page), tmp_path)


def test_the_sweep_saw_the_pages() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    fences = sum(len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(found), "a fence that is not closed, or nested"
    assert [block.where for block in found if not block.language] == [], "name the language of each fence"
    assert len(PAGES) >= 2
    assert sum(len(to_run(page)) for page in PAGES) >= 5


def test_links_to_files_lead_somewhere() -> None:
    wrong: list[str] = []
    links = 0
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            links += 1
            if not (page.parent / target).exists():
                wrong.append(f"{page.relative_to(ROOT)}: {target}")
    assert wrong == []
    assert links >= 1
