"""Where records come from: registered corpora, TFDS data sets, files; and which of them are held out."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources.abc
import importlib.util
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from etils import epath

from hllm_jax.config import cache_dir
from hllm_jax.data.errors import DataError
from hllm_jax.data.files import match_files, read_file
from hllm_jax.data.prompts import parse_prompt
from hllm_jax.data.records import ACCEPTED, Record, held_out, keys_of, parse_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hllm_jax.data.config import DataConfig, SourceConfig
    from hllm_jax.data.prompts import PromptConfig
    from hllm_jax.data.tokenization import RecordTask

SPLITS = ("train", "validation")
TFDS_PREFIX = "tfds:"
TFDS_BLOCK = 1024  # records decoded at once
HASH_BLOCK = 2**20  # bytes


@dataclasses.dataclass
class Counts:
    """What happened to the records of one source and split."""

    read: int = 0
    """Records seen, of both splits where they stand in one file."""
    other_split: int = 0
    malformed: int = 0
    too_short: int = 0
    too_long: int = 0
    repeated: int = 0
    untrained: int = 0
    """Conversations without a token to learn."""
    records: int = 0
    """Records kept."""
    characters: int = 0
    bytes: int = 0
    """Length of the kept texts in UTF-8."""
    tokens: int = 0
    trained_tokens: int = 0
    """Targets with a weight above 0: for a document all its tokens but the first."""

    def as_dict(self) -> dict[str, int]:
        """All counts by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source that was found: its values one by one, and what identifies its content."""

    label: str
    fingerprint: str
    licence: str
    values: Callable[[], Iterator[tuple[str, Any]]]
    """Yields `(place, value)`; the value is a decoded record, or the `DataError` that reading it gave."""
    share: tuple[float, bool]
    """(share, wanted): yield records whose content hash is held out at `share` exactly if `wanted`."""


def open_source(source: SourceConfig, split: str, holdout: float) -> Opened:
    """Find a source and what it is made of; reads nothing but fingerprints yet.

    Args:
        split: "train" or "validation".
        holdout: share held out by content hash where the source has no validation split of its own.

    Raises:
        DataError: no such corpus, data set or file; a glob that matches nothing; no held-out records.
    """
    if split not in SPLITS:
        raise DataError(f"split is train or validation, not {split!r}", source.label)
    if source.path is not None:
        return open_files(source, split, holdout)
    if (source.name or "").startswith(TFDS_PREFIX):
        return open_tfds(source, split, holdout)
    return open_corpus(source, split)


def by_hash(source: SourceConfig, split: str, holdout: float) -> tuple[float, bool]:
    """The rule for sources without a validation split of their own."""
    if split == "validation" and holdout == 0:
        raise DataError(
            "nothing is held out: set data.holdout above 0 or name a validation_split", source.label
        )
    return holdout, split == "validation"


EVERYTHING = (0.0, False)


def open_files(source: SourceConfig, split: str, holdout: float) -> Opened:
    """A file or a glob of files."""
    assert source.path is not None
    if source.split != "train" or source.validation_split is not None:
        raise DataError(
            "files have no named splits; held-out records are chosen by data.holdout", source.path
        )
    files = match_files(source.path)

    def values() -> Iterator[tuple[str, Any]]:
        for file in files:
            yield from read_file(file, source.documents)

    fingerprint = digest(*(part for file in files for part in (file.name, file_fingerprint(file))))
    return Opened(source.path, fingerprint, "the user's own files", values, by_hash(source, split, holdout))


def open_corpus(source: SourceConfig, split: str) -> Opened:
    """A registered corpus; it has both splits."""
    from hllm_jax.data.corpora.registry import find_corpus

    corpus = find_corpus(source.name or "")
    expression = source.split if split == "train" else source.validation_split or "validation"

    def values() -> Iterator[tuple[str, Any]]:
        from hllm_jax.data.corpora.builder import built

        return tfds_values(built(corpus), expression, corpus.name)

    return Opened(corpus.name, digest(corpus.fingerprint, expression), corpus.licence, values, EVERYTHING)


def open_tfds(source: SourceConfig, split: str, holdout: float) -> Opened:
    """Any TFDS name, stored as ArrayRecord (never Parquet: TFDS 4.9.10 silently loses rows there)."""
    import tensorflow_datasets as tfds

    stand_in_for_importlib_resources()
    name = (source.name or "").removeprefix(TFDS_PREFIX)

    def make() -> tfds.core.DatasetBuilder:
        return tfds.builder(name, data_dir=str(cache_dir() / "tfds"), file_format="array_record")

    try:
        builder = make()
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise DataError(f"TFDS cannot open it: {error}", source.label) from error
    is_prepared = False

    def prepare_builder() -> None:
        from hllm_jax.data.corpora.builder import prepared

        nonlocal builder, is_prepared
        if not is_prepared:
            try:
                builder = prepared(make)  # says how much it will download, and shows bars
            except Exception as error:  # whatever a data set's own download code raises
                raise DataError(f"TFDS cannot prepare it: {error}", source.label) from error
            is_prepared = True

    expression, share = source.split, EVERYTHING
    own = source.validation_split
    if own is None:
        prepare_builder()
        own = "validation" if "validation" in builder.info.splits else None
    if own is None:
        share = by_hash(source, split, holdout)
    elif split == "validation":
        expression = own

    def values() -> Iterator[tuple[str, Any]]:
        prepare_builder()
        return tfds_values(builder, expression, source.label)

    fingerprint = digest(str(builder.info.full_name), expression)
    licence = str(builder.info.redistribution_info.license or "see the data set's page")
    return Opened(source.label, fingerprint, licence, values, share)


def stand_in_for_importlib_resources() -> None:
    """TFDS 4.9.10 imports a backport that it does not ask for when a builder lives in a package.

    On Python 3.11 and newer the standard library has all of it.
    """
    if importlib.util.find_spec("importlib_resources") is None:
        sys.modules["importlib_resources"] = importlib.resources


def tfds_values(builder: Any, expression: str, label: str) -> Iterator[tuple[str, Any]]:
    """The examples of a split as plain Python values."""
    from hllm_jax.data.corpora.builder import data_source

    try:
        examples = data_source(builder, expression)
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits)
        raise DataError(f"no split {expression!r}; there are {known} ({error})", label) from error
    for start in range(0, len(examples), TFDS_BLOCK):
        numbers = range(start, min(start + TFDS_BLOCK, len(examples)))
        for number, example in zip(numbers, examples.__getitems__(numbers), strict=True):
            yield f"{label}:{expression}: record {number}", plain(example)


def plain(value: Any) -> Any:
    """TFDS's NumPy values as strings, numbers, lists and dicts."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value


def records(
    opened: Opened,
    source: SourceConfig,
    counts: Counts,
    task: RecordTask | None = None,
    prompts: PromptConfig | None = None,
) -> Iterator[tuple[str, Record]]:
    """Yield `(place, record)` of the wanted split: validated, filtered, and counted.

    With `task`, records are examples of this kind of task, or preferences; with `prompts`, what they ask is
    wanted.

    Raises:
        DataError: a malformed record (unless `source.malformed` is "skip"), or no usable record at all.
    """
    share, wanted = opened.share
    seen = set[bytes]()
    keys: dict[str, None] = {}
    first_problem: DataError | None = None
    kept = 0
    for place, value in opened.values():
        if source.limit is not None and kept >= source.limit:
            break
        counts.read += 1
        if isinstance(value, dict) and len(keys) < 20:
            keys.update(dict.fromkeys(map(str, value)))
        try:
            if isinstance(value, DataError):
                raise value
            if prompts is not None:
                record = parse_prompt(value, place, prompts, source.field)
            else:
                record = parse_record(value, place, source.field, task)
            size, octets = record.characters, utf8_length(record, place)
        except DataError as error:
            if source.malformed == "error":
                raise
            counts.malformed += 1
            first_problem = first_problem or error
            continue
        if size < source.min_chars or size == 0:
            counts.too_short += 1
        elif source.max_chars is not None and size > source.max_chars:
            counts.too_long += 1
        else:
            if share or source.deduplicate:
                if share and held_out(record.split_hash(), share) != wanted:
                    counts.other_split += 1
                    continue
                if source.deduplicate:
                    key = record.content_hash()
                    if key in seen:
                        counts.repeated += 1
                        continue
                    seen.add(key)
            kept += 1
            counts.records += 1
            counts.characters += size
            counts.bytes += octets
            yield place, record
    if kept == 0:
        raise DataError(nothing_usable(counts, keys, first_problem, wanted), opened.label)


def utf8_length(record: Record, place: str) -> int:
    """Bytes of the record's text in UTF-8; JSON can spell half a surrogate pair, which is no text."""
    try:
        return sum(len(part.encode()) for part in record.parts)
    except UnicodeEncodeError as error:
        raise DataError(f"the text holds half of a surrogate pair ({error.reason})", place) from None


def nothing_usable(counts: Counts, keys: dict[str, None], problem: DataError | None, wanted: bool) -> str:
    """Why a source gave no record."""
    if counts.read and counts.other_split and wanted:
        return (
            f"none of {counts.read} records is held out; raise data.holdout, or evaluate on data of its own"
        )
    lost = {k: v for k, v in counts.as_dict().items() if v and k not in ("read", "records")}
    reasons = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in lost.items())
    message = f"no usable record among {counts.read} read"
    if reasons:
        message += f" ({reasons})"
    if keys:
        message += f"; keys seen: {keys_of(keys)}; {ACCEPTED}"
    return f"{message}; the first problem: {problem}" if problem else message


def texts(data: DataConfig | SourceConfig, split: str = "train", holdout: float = 0.01) -> Iterator[str]:
    """The plain texts of a source, or of all sources of a data section, in order.

    Conversations come as their contents joined by newlines. What it yields is what training (or evaluation)
    of the same section reads, so a tokenizer or a baseline trained on it has not seen held-out text.

    Args:
        data: a `DataConfig`, or one source.
        split: "train" or "validation".
        holdout: for one source: the share held out (a `DataConfig` has its own).
    """
    from hllm_jax.data.config import DataConfig

    sources: Sequence[SourceConfig]
    sources, holdout = (data.sources, data.holdout) if isinstance(data, DataConfig) else ((data,), holdout)
    for source in sources:
        for _, record in records(open_source(source, split, holdout), source, Counts()):
            yield record.plain_text


def digest(*parts: str) -> str:
    """Hex digest of several strings, unambiguous in where one ends."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def file_fingerprint(path: epath.Path) -> str:
    """Digest of a file's content, remembered by (path, size, time of change) so that it is read once.

    Remote files are known by path, size and time of change alone.
    """
    if "://" in os.fspath(path):
        stat = path.stat()
        return digest(str(path), str(stat.length), str(stat.mtime))
    absolute = os.path.realpath(path)
    status = os.stat(absolute)
    key = digest(absolute, str(status.st_size), str(status.st_mtime_ns), str(status.st_ino))
    memory = cache_dir() / "fingerprints" / key
    if memory.exists():
        return memory.read_text()
    hashed = hashlib.blake2b(digest_size=32)
    with open(absolute, "rb") as file:
        while block := file.read(HASH_BLOCK):
            hashed.update(block)
    memory.parent.mkdir(parents=True, exist_ok=True)
    temporary = memory.with_name(f"{key}.{os.getpid()}")
    temporary.write_text(hashed.hexdigest())
    os.replace(temporary, memory)
    return hashed.hexdigest()
