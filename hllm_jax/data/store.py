"""Tokenized documents on disk: ArrayRecord pieces, a length index beside them, and a small description.

A document of n tokens lies in ceil(n / PIECE) records of at most PIECE tokens, so that reading one row of a
long book does not read the book, while a poem is a single record. A record is its token ids (uint16 while the
vocabulary allows, else uint32, little endian), followed by one mark byte a token where the source has marks:
the weight of the token as a target, whether it begins a word, or what a task says of it.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import hashlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

PIECE = 2048  # tokens
WRITER = "group_size:16,zstd:1"  # sixteen small records compress together; random reads stay cheap
READER = "readahead_buffer_size:0,max_parallelism:0"  # ArrayRecord's own advice for random access
FILES = {
    "records": "tokens.array_record",
    "lengths": "lengths.npy",
    "trained": "trained.npy",
    "first": "first_trained.npy",
    "sentences": "sentences.npy",
    "labels": "labels.npy",
    "sources": "records.jsonl",
    "source_ends": "records.npy",
    "description": "data.json",
}


class TokenWriter:
    """Writes documents into a new folder; `close` completes it.

    Args:
        folder: empty.
        vocab_size: number of ids.
        weighted: documents come with a weight for every token.
        words: documents come with another mark for every token: whether it begins a word, or a task's.
        sentences: documents come with the first tokens of their sentences.
        labels: so many whole numbers come with every document.
        records: every document comes with the record that it was made of; see `keep`.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        weighted: bool,
        words: bool = False,
        sentences: bool = False,
        labels: int = 0,
        records: bool = False,
    ) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        assert not (weighted and words), "one mark a token"
        self.folder, self.weighted, self.words = folder, weighted, words
        self.sentences, self.label_count = sentences, labels
        self.labels = array.array("i")
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.writer = ArrayRecordWriter(str(folder / FILES["records"]), WRITER)
        self.hash = hashlib.blake2b(digest_size=16)
        self.lengths, self.trained, self.first = (array.array("i") for _ in range(3))
        self.ends, self.total = array.array("q"), 0
        self.max_id = -1
        self.sources = (folder / FILES["sources"]).open("wb") if records else None
        self.source_ends = array.array("q")

    def add(
        self,
        tokens: Sequence[int],
        marks: Sequence[int] | np.ndarray | None = None,
        sentence_starts: Sequence[int] | np.ndarray = (),
        labels: Sequence[int] = (),
    ) -> int:
        """Append a document; returns how many of its targets (all tokens but the first) are trained.

        Args:
            tokens: its ids, at least one.
            marks: of each token, its weight or whether it begins a word, as this writer was told.
            sentence_starts: ascending, the first token of each sentence.
            labels: of the document.
        """
        ids = np.asarray(tokens, np.int64)
        self.max_id = max(self.max_id, int(ids.max()))
        stored = ids.astype(self.dtype)
        flags = np.asarray(marks, np.uint8) if self.weighted or self.words else None
        for start in range(0, len(stored), PIECE):
            record = stored[start : start + PIECE].tobytes()
            if flags is not None:
                record += flags[start : start + PIECE].tobytes()
            self.writer.write(record)
            self.hash.update(record)
        self.lengths.append(len(stored))
        if self.sentences:
            self.ends.extend(self.total + int(end) for end in [*sentence_starts[1:], len(stored)])
        self.total += len(stored)
        assert len(labels) == self.label_count, "as many labels as this writer was told"
        self.labels.extend(labels)
        if flags is None or not self.weighted:
            return len(stored) - 1
        learned = np.flatnonzero(flags[1:])
        self.trained.append(len(learned))
        self.first.append(int(learned[0]) + 1 if len(learned) else len(stored))
        return len(learned)

    def keep(self, place: str, record: dict[str, Any]) -> None:
        """The record of the document that was just added, and its place (`file:line`)."""
        assert self.sources is not None, "this writer was told to keep records"
        line = json.dumps([place, record], ensure_ascii=False, default=str) + "\n"
        self.sources.write(line.encode("utf-8", "surrogatepass"))
        self.source_ends.append(self.sources.tell())

    def close(self, description: dict[str, Any]) -> None:
        """Finish the records and write index and description."""
        self.writer.close()
        if self.sources is not None:
            self.sources.close()
            np.save(self.folder / FILES["source_ends"], np.frombuffer(self.source_ends, np.int64))
        np.save(self.folder / FILES["lengths"], np.frombuffer(self.lengths, np.int32))
        if self.weighted:
            np.save(self.folder / FILES["trained"], np.frombuffer(self.trained, np.int32))
            np.save(self.folder / FILES["first"], np.frombuffer(self.first, np.int32))
        if self.label_count:
            labels = np.frombuffer(self.labels, np.int32).reshape(-1, self.label_count)
            np.save(self.folder / FILES["labels"], labels)
        if self.sentences:
            np.save(self.folder / FILES["sentences"], np.frombuffer(self.ends, np.int64))
        description |= {
            "dtype": self.dtype.str,
            "weighted": self.weighted,
            "words": self.words,
            "documents": len(self.lengths),
            "max_id": self.max_id,
            "content": self.hash.hexdigest(),
        }
        (self.folder / FILES["description"]).write_text(json.dumps(description, indent=1, ensure_ascii=False))


@dataclasses.dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` (exclusive) of one document of a store."""

    document: int
    start: int
    stop: int


class TokenStore:
    """Random access to the documents of one prepared source; threads share it, it pickles by its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description: dict[str, Any] = json.loads((folder / FILES["description"]).read_text())
        self.weighted: bool = self.description["weighted"]
        self.words: bool = self.description.get("words", False)
        self.marked = self.weighted or self.words
        self.dtype = np.dtype(self.description["dtype"])
        self.lengths: np.ndarray = np.load(folder / FILES["lengths"], mmap_mode="r")
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def trained(self) -> np.ndarray:
        """int32 [documents]: targets with a weight above 0."""
        return np.load(self.folder / FILES["trained"], mmap_mode="r") if self.weighted else self.lengths - 1

    @functools.cached_property
    def first_trained(self) -> np.ndarray:
        """int32 [documents]: position of the first trained target."""
        if self.weighted:
            return np.load(self.folder / FILES["first"], mmap_mode="r")
        return np.ones(len(self.lengths), np.int32)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [documents, labels]: what was given with each document; no columns if nothing was."""
        path = self.folder / FILES["labels"]
        return np.load(path, mmap_mode="r") if path.exists() else np.zeros((len(self.lengths), 0), np.int32)

    @functools.cached_property
    def has_records(self) -> bool:
        """Whether the documents come with the records that they were made of."""
        return (self.folder / FILES["source_ends"]).exists()

    @functools.cached_property
    def source_ends(self) -> np.ndarray:
        """int64 [documents]: where the line of each record ends in the file of records."""
        return np.load(self.folder / FILES["source_ends"], mmap_mode="r")

    def record(self, document: int) -> tuple[str, dict[str, Any]]:
        """(place, record) that a document was made of."""
        start = int(self.source_ends[document - 1]) if document else 0
        with (self.folder / FILES["sources"]).open("rb") as file:
            file.seek(start)
            line = file.read(int(self.source_ends[document]) - start)
        place, record = json.loads(line.decode("utf-8", "surrogatepass"))
        return place, record

    @functools.cached_property
    def sentence_ends(self) -> np.ndarray:
        """int64 [sentences]: where each sentence ends in the tokens of all documents joined.

        A store that was prepared without sentences has one sentence a document.
        """
        path = self.folder / FILES["sentences"]
        return np.load(path, mmap_mode="r") if path.exists() else np.cumsum(self.lengths, dtype=np.int64)

    @functools.cached_property
    def first_piece(self) -> np.ndarray:
        """int64 [documents]: number of each document's first record."""
        pieces = -(-self.lengths // PIECE)
        return np.cumsum(pieces, dtype=np.int64) - pieces

    @functools.cached_property
    def reader(self) -> Any:
        """The open ArrayRecord file."""
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(str(self.folder / FILES["records"]), READER)
        expected = int((-(-self.lengths // PIECE)).sum(dtype=np.int64))
        if reader.num_records() != expected:
            raise OSError(
                f"{self.folder} holds {reader.num_records()} records where its index says {expected}; "
                "delete the folder, it will be prepared again"
            )
        return reader

    def read(self, spans: Sequence[Span]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Tokens (the stored dtype) of each span, and their marks (uint8) where the source has any."""
        with self.lock:
            reader = self.reader
        wanted: dict[int, int] = {}
        for span in spans:
            first = int(self.first_piece[span.document])
            for piece in range(first + span.start // PIECE, first + (span.stop - 1) // PIECE + 1):
                wanted.setdefault(piece, len(wanted))
        records = reader.read(list(wanted))
        width = self.dtype.itemsize
        found = []
        for span in spans:
            first = int(self.first_piece[span.document])
            tokens: list[np.ndarray] = []
            marks: list[np.ndarray] = []
            for number in range(span.start // PIECE, (span.stop - 1) // PIECE + 1):
                record = records[wanted[first + number]]
                count = len(record) // (width + self.marked)
                low, high = max(0, span.start - number * PIECE), min(count, span.stop - number * PIECE)
                tokens.append(np.frombuffer(record, self.dtype, high - low, low * width))
                if self.marked:
                    marks.append(np.frombuffer(record, np.uint8, high - low, count * width + low))
            joined = tokens[0] if len(tokens) == 1 else np.concatenate(tokens)
            flags = marks[0] if len(marks) == 1 else np.concatenate(marks) if marks else None
            found.append((joined, flags))
        return found
