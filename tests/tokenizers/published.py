"""What `scripts/fixtures/record_tokenizers.py` recorded of the published tokenizer classes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from hllm_jax.tokenizers import Tokenizer

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


def compare(tokenizer: Tokenizer, case: Case) -> None:
    """Everything that was recorded."""
    ids = tokenizer.encode_batch(case.texts)
    assert len(ids) == len(case.expected["ids"]) >= 200
    for text, ours, theirs in zip(case.texts, ids, case.expected["ids"], strict=True):
        assert ours == theirs, text
    some = case.texts[:40]
    assert len(case.expected["framed"]) == 40
    for text, framed in zip(some, case.expected["framed"], strict=True):
        assert list(map(list, tokenizer.encode_for_model(text))) == framed, text
    for first, second, framed in zip(some[:-1], some[1:], case.expected["pairs"], strict=True):
        assert list(map(list, tokenizer.encode_for_model(first, second))) == framed, (first, second)
    for role, theirs in case.expected["roles"].items():
        # Where the published class has no end, a separator or the unknown token ends texts here, and pads.
        if theirs is not None:
            assert getattr(tokenizer, f"{role}_id") == theirs, role
    assert list(tokenizer.sentinel_ids) == case.expected["sentinels"]
    assert tokenizer.vocab_size == case.expected["size"]
