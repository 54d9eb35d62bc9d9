"""Tokenize once: sources in, a cached folder of ArrayRecord tokens with a length index out.

The cache key is made of what determines the tokens: the content of the source, the tokenizer, the filters and
the format. A folder appears under its key by one rename, complete, or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hllm_jax.config import cache_dir
from hllm_jax.data.errors import DataError
from hllm_jax.data.rendering import rendered_chunks
from hllm_jax.data.sources import Counts, Opened, digest, open_source, records
from hllm_jax.data.store import FILES, TokenStore, TokenWriter
from hllm_jax.data.tokenization import Tokenization, label_columns
from hllm_jax.data.writing import (
    add_conversations,
    add_documents,
    add_examples,
    add_pairs,
    add_preferences,
    add_prompts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hllm_jax.data.config import DataConfig, SourceConfig
    from hllm_jax.data.records import Record
    from hllm_jax.tokenizers.tokenizer import Tokenizer

FORMAT = 1  # raise it when the same input would give other tokens or another layout
CHUNK_RECORDS = 1024
CHUNK_CHARACTERS = 2**21
PLAIN = Tokenization()


@dataclasses.dataclass(frozen=True)
class TokenizedData:
    """All sources of a data section, tokenized, for one split."""

    config: DataConfig
    split: str
    stores: tuple[TokenStore, ...]
    """One per source, in the order of the config."""
    pad_id: int
    vocab_size: int

    @property
    def counts(self) -> dict[str, int]:
        """Sums over the sources: records kept and dropped by reason, characters, bytes, tokens."""
        total = Counts().as_dict()
        for store in self.stores:
            for name, number in store.description["counts"].items():
                total[name] += number
        return total

    @property
    def sources(self) -> list[dict[str, object]]:
        """One dict per source: label, licence, fingerprint, counts."""
        return [
            {key: store.description[key] for key in ("label", "licence", "fingerprint", "counts")}
            for store in self.stores
        ]

    @property
    def licences(self) -> dict[str, str]:
        """Licence by source."""
        return {store.description["label"]: store.description["licence"] for store in self.stores}

    @property
    def max_id(self) -> int:
        """The largest token id in it."""
        return max(store.description["max_id"] for store in self.stores)

    @property
    def fingerprint(self) -> str:
        """Of the tokens and of the tokenizer that made them."""
        return digest(self.split, *(store.description["fingerprint"] for store in self.stores))


def prepare(
    config: DataConfig,
    tokenizer: Tokenizer,
    split: str = "train",
    progress: Callable[[str, int], None] | None = None,
    form: Tokenization = PLAIN,
) -> TokenizedData:
    """Tokenize every source of a data section, or find it done.

    Args:
        config: the data section.
        tokenizer: documents become `encode_document`, conversations `render`.
        split: "train" or "validation" (each source's own, or held out by content hash).
        progress: called now and then with (source, records done).
        form: what else an objective wants of the tokens.

    Raises:
        DataError: bad input (with file and line), no usable record (with the keys seen), no trained token, or
            a vocabulary smaller than the largest id. Nothing half-made is left behind.
    """
    stores = tuple(
        prepare_source(source, config, tokenizer, split, progress, form) for source in config.sources
    )
    return TokenizedData(config, split, stores, tokenizer.pad_id, tokenizer.vocab_size)


def prepare_source(
    source: SourceConfig,
    config: DataConfig,
    tokenizer: Tokenizer,
    split: str,
    progress: Callable[[str, int], None] | None = None,
    form: Tokenization = PLAIN,
) -> TokenStore:
    """Tokenize one source into its folder of the cache, unless it is there."""
    opened = open_source(source, split, config.holdout)
    settings = {
        name: getattr(source, name)
        for name in ("limit", "min_chars", "max_chars", "field", "documents", "deduplicate", "malformed")
    }
    wanted = [] if form == PLAIN else [repr(form)]
    key = digest(
        f"format {FORMAT}",
        opened.fingerprint,
        repr(opened.share),
        repr(settings),
        tokenizer.fingerprint,
        *wanted,
    )
    root = Path(config.cache).expanduser() if config.cache else cache_dir() / "tokens"
    folder = root / key[:32]
    if not (folder / FILES["description"]).exists():
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # without its description it is damaged
        with new_folder(folder) as unfinished:
            tokenize(opened, source, tokenizer, unfinished, key, config.workers, progress, form)
    return TokenStore(folder)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name when the block ends well, else disappears.

    What a killed process of this machine left behind for the same target is removed first.
    """
    host = socket.gethostname()
    for left in target.parent.glob(f".{target.name}.{host}.*"):
        pid = left.name.removeprefix(f".{target.name}.{host}.").split(".")[0]
        if not pid.isdigit() or not process_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f".{target.name}.{host}.{os.getpid()}."
    unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield unfinished
        for file in unfinished.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        try:
            unfinished.rename(target)
        except OSError:
            # Another process was faster: the same key means the same content.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def process_alive(pid: int) -> bool:
    """Whether a process of this number runs here."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def tokenize(
    opened: Opened,
    source: SourceConfig,
    tokenizer: Tokenizer,
    folder: Path,
    key: str,
    workers: int | None,
    progress: Callable[[str, int], None] | None,
    form: Tokenization,
) -> None:
    """Stream the records of one source through the tokenizer into `folder`."""
    counts = Counts()
    stream = records(opened, source, counts, form.task, form.prompts)
    if not form.pairs:
        stream = ((place, record.conversation) for place, record in stream)
    first = next(stream)  # `records` raises when there is none
    kind = form.kind(first[1], first[0])
    writer = TokenWriter(
        folder,
        tokenizer.vocab_size,
        weighted=kind in ("conversation", "pair", "preference"),
        words=form.words is not None or kind == "example",
        sentences=form.sentences,
        labels=label_columns(form),
        records=kind == "prompt",
    )
    alike = chunks(of_one_kind(itertools.chain([first], stream), kind, form))
    if kind == "conversation":
        renderings = rendered_chunks(alike, tokenizer, workers)
    else:
        renderings = ((chunk, None) for chunk in alike)
    with contextlib.closing(renderings):  # ends the workers at once when something goes wrong
        for chunk, rendered in renderings:
            if rendered is not None:
                add_conversations(chunk, rendered, writer, counts, source.malformed)
            elif kind == "pair":
                add_pairs(chunk, tokenizer, writer, counts)
            elif kind == "example":
                add_examples(chunk, tokenizer, writer, counts, form)
            elif kind == "prompt":
                add_prompts(chunk, tokenizer, writer, counts, form, source.malformed)
            elif kind == "preference":
                add_preferences(chunk, tokenizer, writer, counts, form, source.malformed)
            else:
                add_documents(chunk, tokenizer, writer, counts, form)
            check_ids(writer.max_id, tokenizer.vocab_size, opened.label)
            if progress:
                progress(opened.label, counts.records)
    if counts.trained_tokens == 0 and kind != "prompt":
        reason = {
            "text": "no text has two tokens",
            "pair": "no pair has a source and a target that are not empty",
            "example": "no example has a text that is not empty",
            "preference": "the chat template marks no answer as generated",
            "conversation": "no conversation has an assistant turn that the chat template marks as generated",
        }[kind]
        read = counts.records + counts.untrained
        raise DataError(f"0 trained tokens in {read} records: {reason}", opened.label)
    writer.close(
        {
            "label": opened.label,
            "licence": opened.licence,
            "fingerprint": key,
            "tokenizer": tokenizer.fingerprint,
            "counts": counts.as_dict(),
        }
    )


def of_one_kind(
    stream: Iterator[tuple[str, Record]], kind: str, form: Tokenization
) -> Iterator[tuple[str, Record]]:
    """The records, as long as all are of one kind."""
    for place, record in stream:
        if form.kind(record, place) != kind:
            raise DataError(
                "texts and conversations are mixed in one source; make two sources of them", place
            )
        yield place, record


def chunks(stream: Iterator[tuple[str, Record]]) -> Iterator[list[tuple[str, Record]]]:
    """Lists of records, bounded in number and in characters."""
    chunk: list[tuple[str, Record]] = []
    characters = 0
    for item in stream:
        chunk.append(item)
        characters += item[1].characters
        if len(chunk) >= CHUNK_RECORDS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk = []
            characters = 0
    if chunk:
        yield chunk


def check_ids(max_id: int, vocab_size: int, label: str) -> None:
    """An id beyond the vocabulary would be clamped silently by JAX's gathers."""
    if max_id >= vocab_size:
        raise DataError(f"token id {max_id} does not fit a vocabulary of {vocab_size}", label)
