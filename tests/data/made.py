"""Archives made for tests: as Debian and PyPI have them, with a few files of our own."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def tar(files: dict[str, bytes], compression: str, links: dict[str, str] | None = None) -> bytes:
    """A tar archive in memory: names with contents, and links with their targets."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return buffer.getvalue()


def ar(members: dict[str, bytes]) -> bytes:
    """An `ar` archive, written by hand from ar(5)."""
    whole = b"!<arch>\n"
    for name, content in members.items():
        whole += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        whole += content + b"\n" * (len(content) % 2)
    return whole


def deb(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """A Debian package with these files."""
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar({"./control": b"Package: x\n"}, "xz"),  # of odd length or even, as it comes
        "data.tar.xz": tar(files, "xz", links),
    }
    path.write_bytes(ar(parts))
    return path
