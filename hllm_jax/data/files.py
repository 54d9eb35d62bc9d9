"""Reading data files as streams of (place, value): JSON lines, JSON, plain text, Parquet, each also gzipped.

A file is never held in memory whole; a line, a JSON value, a document or a Parquet batch is the largest unit.
Paths are whatever `etils.epath` reads (local, `gs://…`).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from etils import epath

from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".parquet")
WILDCARDS = frozenset("*?[")
LARGEST_DOCUMENT = 64 * 2**20  # characters of a .txt file read as one document
PARQUET_ROWS = 1024
JSON_BLOCK = 2**20  # characters


def match_files(pattern: str) -> list[epath.Path]:
    """The files that a path or glob names, sorted.

    Raises:
        DataError: there is no such file, the glob matches nothing, or a file has an unknown ending.
    """
    parts = epath.Path(pattern).expanduser().parts
    wild = next((i for i, part in enumerate(parts) if WILDCARDS & set(part)), None)
    if wild is None:
        path = epath.Path(pattern).expanduser()
        if path.is_dir():
            raise DataError(
                f"is a folder; name its files, for example {pattern.rstrip('/')}/*.jsonl", pattern
            )
        if not path.exists():
            raise DataError("no such file", pattern)
        files = [path]
    else:
        root = epath.Path(*parts[:wild]) if wild else epath.Path(".")
        files = sorted((f for f in glob(root, "/".join(parts[wild:])) if f.is_file()), key=str)
        if not files:
            raise DataError(
                f"the glob matches no file (looked in {root}, which {describe_folder(root)})", pattern
            )
    for file in files:
        if kind_of(file) is None:
            raise DataError(
                f"unknown ending; files end in {', '.join(SUFFIXES)}, or one of them + .gz", str(file)
            )
    return files


def glob(root: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Files under `root`; `**` works on local disks only (a bucket would be asked once for each folder)."""
    if "://" not in str(root):
        return (epath.Path(path) for path in Path(root).glob(pattern))
    if "**" in pattern:
        raise DataError(
            "`**` is not understood in buckets; write one `*` for each folder", f"{root}/{pattern}"
        )
    return root.glob(pattern)


def describe_folder(folder: epath.Path) -> str:
    """What a folder holds, for an error message."""
    if not folder.is_dir():
        return "does not exist"
    names = sorted(child.name for child in folder.iterdir())
    return f"holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "is empty"


def kind_of(path: epath.Path) -> str | None:
    """The file's kind by its ending (`.jsonl` for `x.jsonl.gz`), or None."""
    name = path.name.removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def read_file(path: epath.Path, documents: str) -> Iterator[tuple[str, Any]]:
    """Yield `(place, value)`, one per record; the value is decoded JSON, a row as a dict, or `{"text": …}`.

    A place that cannot be decoded yields the `DataError` itself as its value, so that the caller decides
    whether to stop or to skip and count.

    Args:
        path: a file with one of the known endings.
        documents: what one document of a .txt file is: "file", "blank_line" or "line".

    Raises:
        DataError: the file is empty, or cannot be read on (broken gzip, text that is not UTF-8 in a .json).
    """
    match kind_of(path):
        case ".parquet":
            return read_parquet(path)
        case ".txt":
            return read_text(path, documents)
        case ".json":
            return read_json(path)
        case _:
            return read_json_lines(path)


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed if it ends in .gz. Read errors become a `DataError` naming the file."""
    try:
        with path.open("rb") as raw:
            if path.name.endswith(".gz"):
                with gzip.open(cast("IO[bytes]", raw)) as unzipped:
                    yield cast("IO[bytes]", unzipped)
            else:
                yield cast("IO[bytes]", raw)
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read: {error}", str(path)) from error


def decoded_lines(path: epath.Path, file: IO[bytes]) -> Iterator[tuple[str, str | DataError]]:
    """Lines with their place; a line that is not UTF-8 comes as an error. A byte order mark is dropped."""
    number = 0
    for number, line in enumerate(file, start=1):
        place = f"{path}:{number}"
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield place, line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield place, DataError(not_utf8(error, line), place)
    if number == 0:
        raise DataError("the file is empty", str(path))


def not_utf8(error: UnicodeDecodeError, line: bytes) -> str:
    """Says which byte is wrong and what to do."""
    return (
        f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}; "
        "convert the file (iconv -f … -t utf-8), or set `malformed: skip`"
    )


def read_json_lines(path: epath.Path) -> Iterator[tuple[str, Any]]:
    """One JSON value a line; blank lines are passed over."""
    with opened(path) as file:
        for place, line in decoded_lines(path, file):
            if isinstance(line, DataError):
                yield place, line
            elif line.strip():
                try:
                    yield place, json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    yield place, DataError(f"not JSON: {error}", place)


def read_text(path: epath.Path, documents: str) -> Iterator[tuple[str, Any]]:
    """Plain text: one document a file, a line, or a stretch between blank lines."""
    with opened(path) as file:
        start, size = f"{path}:1", 0
        block: list[str] = []
        for place, line in decoded_lines(path, file):
            if isinstance(line, DataError):
                yield place, line
                continue
            if documents == "line":
                if line.strip():
                    yield place, {"text": line.rstrip("\r\n")}
                continue
            if documents == "blank_line" and not line.strip():
                if block:
                    yield start, {"text": "".join(block).rstrip("\r\n")}
                block.clear()
                size = 0
                continue
            if not block:
                start = place
            block.append(line)
            size += len(line)
            if size > LARGEST_DOCUMENT:
                raise DataError(
                    f"one document of more than {LARGEST_DOCUMENT >> 20} Mi characters; "
                    "set `documents: blank_line` or `documents: line`",
                    start,
                )
        if block:
            yield start, {"text": "".join(block).rstrip("\r\n")}


def read_json(path: epath.Path) -> Iterator[tuple[str, Any]]:
    """A JSON array of records, or JSON values one after the other.

    An array whose elements have a `role` is itself a conversation. Errors end the file: where a broken value
    stops is unknown.
    """
    with opened(path) as file:
        text = io.TextIOWrapper(cast("io.BufferedReader", file), encoding="utf-8-sig", newline="")
        stream = JsonStream(path, text)
        if stream.skip_space() == "":
            raise DataError("the file is empty", str(path))
        while first := stream.skip_space():
            if first != "[":
                yield stream.place, stream.value()
                continue
            place = stream.place
            stream.take()
            conversation: list[Any] = []
            while (character := stream.skip_space()) != "]":
                if character == "":
                    raise DataError("the file ends inside a JSON array", stream.place)
                element_place, element = stream.place, stream.value()
                if isinstance(element, dict) and "role" in element and "content" in element:
                    conversation.append(element)
                else:
                    yield element_place, element
                if stream.skip_space() == ",":
                    stream.take()
            stream.take()
            if conversation:
                yield place, conversation


class JsonStream:
    """Decodes JSON values one by one from a text that is read in blocks, and knows the line it stands on."""

    def __init__(self, path: epath.Path, text: io.TextIOBase) -> None:
        self.path, self.text = path, text
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False
        self.decoder = json.JSONDecoder()

    @property
    def place(self) -> str:
        """`file:line` of the next character."""
        return f"{self.path}:{self.line}"

    def more(self) -> bool:
        """Read a block; False at the end of the file."""
        try:
            block = self.text.read(max(JSON_BLOCK, len(self.buffer) - self.at))
        except UnicodeDecodeError as error:
            raise DataError(not_utf8(error, cast("bytes", error.object)), self.place) from None
        self.buffer, self.at = self.buffer[self.at :] + block, 0
        self.ended = not block
        return bool(block)

    def skip_space(self) -> str:
        """Move to the next character that is no white space and return it; "" at the end of the file."""
        while True:
            while self.at < len(self.buffer):
                character = self.buffer[self.at]
                if not character.isspace():
                    return character
                self.line += character == "\n"
                self.at += 1
            if not self.more():
                return ""

    def take(self) -> None:
        """Step over one character."""
        self.at += 1

    def value(self) -> Any:
        """Decode the value that starts here, reading on until it is complete."""
        while True:
            start, size = self.at, len(self.buffer)
            try:
                value, end = self.decoder.raw_decode(self.buffer, start)
                # A number at the end of the buffer may go on in the next block.
                if end < size or self.ended:
                    break
                if not self.more():
                    end -= start
                    break
            except json.JSONDecodeError as error:
                # Only a value cut off by the end of the block is worth more text; anything else is wrong now.
                cut_off = error.msg.startswith("Unterminated string") or error.pos >= size - 16
                too_long = size - start > LARGEST_DOCUMENT
                if not cut_off or too_long or not self.more():
                    line = self.line + error.doc.count("\n", start, error.pos)
                    problem = (
                        f"one value of more than {LARGEST_DOCUMENT >> 20} Mi characters"
                        if too_long
                        else error.msg
                    )
                    raise DataError(f"not JSON: {problem}", f"{self.path}:{line}") from None
        self.line += self.buffer.count("\n", self.at, end)
        self.at = end
        return value


def read_parquet(path: epath.Path) -> Iterator[tuple[str, Any]]:
    """Rows of a Parquet file as dicts; the place counts rows from 1."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    with opened(path) as file:
        try:
            table = parquet.ParquetFile(file)
            if table.metadata.num_rows == 0:
                raise DataError("the file has no rows", str(path))
            row = 0
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                for value in batch.to_pylist():
                    row += 1
                    yield f"{path}: row {row}", value
        except arrow.ArrowException as error:
            raise DataError(f"not a readable Parquet file: {error}", str(path)) from error
