"""Files inside archives, read one after the other: wheels and zips, tar files, Debian packages.

Nothing is written to disk, so a member's name is only ever compared and hostile paths do no harm.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60  # bytes: name 16, time 12, owner 6, group 6, mode 8, size 10, end 2
# What Python 3.11 decompresses; newer Debian releases and Ubuntu also write .zst.
DATA_MEMBERS = ("data.tar.xz", "data.tar.gz", "data.tar.bz2", "data.tar")


def members(archive: Path, *patterns: str) -> Iterator[tuple[str, bytes]]:
    """Yield `(name, content)` of the files in an archive that match a pattern, in the archive's order.

    Only these are read, one at a time. Links are passed over: what they point to has a name of its own.

    Args:
        archive: .whl, .zip, .tar with any compression, or .deb (its data; names begin with `./`).
        patterns: as in a shell, but `*` also matches `/`.

    Raises:
        DataError: the archive is damaged or of no known kind.
    """

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as unzipped:
                for name in filter(wanted, unzipped.namelist()):
                    yield name, unzipped.read(name)
            return
        with archive.open("rb") as file:
            start = file.read(len(AR_MAGIC))
            file.seek(0)
            data: IO[bytes] = debian_data(archive, file) if start == AR_MAGIC else file
            # A stream: going back would decompress from the start.
            with tarfile.open(fileobj=data, mode="r|*") as untarred:
                for member in untarred:
                    if member.isfile() and wanted(member.name):
                        content = untarred.extractfile(member)
                        if content is not None:
                            yield member.name, content.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"damaged, or no archive of a known kind: {error}", str(archive)) from error


def debian_data(archive: Path, file: IO[bytes]) -> IO[bytes]:
    """The data of a Debian package as a stream: the member `data.tar…` of an `ar` archive (deb(5)).

    Raises:
        DataError: there is none, it is compressed in a way that Python cannot read, or the file is damaged.
    """
    file.seek(len(AR_MAGIC))
    names: list[str] = []
    while header := file.read(AR_HEADER):
        name = header[:16].decode("ascii", "replace").rstrip().rstrip("/")
        size = header[48:58].strip()
        if len(header) < AR_HEADER or header[58:] != b"`\n" or not size.isdigit():
            raise DataError("damaged: no member begins where one should", str(archive))
        if name in DATA_MEMBERS:
            return io.BufferedReader(Slice(file, int(size)))
        names.append(name)
        file.seek(int(size) + int(size) % 2, io.SEEK_CUR)  # members begin at even positions
    raise DataError(
        f"no Debian package that can be read here: it holds {', '.join(names) or 'nothing'}, "
        f"wanted is one of {', '.join(DATA_MEMBERS)}",
        str(archive),
    )


class Slice(io.RawIOBase):
    """The next `size` bytes of a file, as a file that ends there."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        """It is only for reading."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyrefly: ignore[bad-override]
        """Fill the buffer as far as there are bytes.

        Raises:
            EOFError: the file is shorter than was promised.
        """
        block = self._file.read(min(len(buffer), self._left))
        if not block and self._left and len(buffer):
            raise EOFError(f"the file ends {self._left} bytes too early")
        buffer[: len(block)] = block
        self._left -= len(block)
        return len(block)
