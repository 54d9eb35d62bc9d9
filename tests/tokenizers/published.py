"""What `scripts/fixtures/record_tokenizers.py` recorded of the published tokenizer classes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "tokenizers.zip"


class Case(NamedTuple):
    """A folder and what the published class makes of texts.

    Attributes:
        files: name to content, as the hub has them.
        expected: ids of all texts; of some with special tokens, alone and in pairs; ids of special tokens.
        texts: the texts.
    """

    files: dict[str, bytes]
    expected: dict[str, Any]
    texts: list[str]

    def write(self, folder: Path) -> Path:
        """Lay the files into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder


def names(path: Path = FIXTURE) -> list[str]:
    """Of all cases."""
    with zipfile.ZipFile(path) as archive:
        return sorted({name.split("/")[0] for name in archive.namelist() if "/" in name})


def read(name: str, path: Path = FIXTURE) -> Case:
    """One case."""
    with zipfile.ZipFile(path) as archive:
        files = {
            each.removeprefix(f"{name}/"): archive.read(each)
            for each in archive.namelist()
            if each.startswith(f"{name}/")
        }
        texts = json.loads(archive.read("texts.json"))
    return Case(files, json.loads(files.pop("expected.json")), texts)
