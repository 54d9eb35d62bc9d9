"""Files inside archives: only those asked for, in order, and nothing on disk."""

from __future__ import annotations

import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from hllm_jax.data import DataError
from hllm_jax.data.archives import members
from tests.data.made import ar, deb, tar


def test_members_of_archives(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name)
    with (
        zipfile.ZipFile(tmp_path / "x.whl", "w") as zipped,
        tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tarred,
    ):
        for name in ("b.txt", "a.txt", "c.md"):
            zipped.write(tmp_path / name, f"in/{name}")
            tarred.add(tmp_path / name, f"in/{name}")
    deb(tmp_path / "x.deb", {f"in/{name}": name.encode() for name in ("b.txt", "a.txt", "c.md")})
    for archive in ("x.whl", "x.tar.gz", "x.deb"):
        found = list(members(tmp_path / archive, "in/*.txt"))
        assert found == [("in/b.txt", b"b.txt"), ("in/a.txt", b"a.txt")]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_members_of_ar_begin_at_even_positions(tmp_path: Path, length: int) -> None:
    parts = {
        "debian-binary": b"2" * length,
        "control.tar": b"x" * (length + 1),
        "data.tar.gz": tar({"./a": b"1"}, "gz"),
    }
    (tmp_path / "x.deb").write_bytes(ar(parts) + b"trailing, not ours")
    assert list(members(tmp_path / "x.deb", "*")) == [("./a", b"1")]


@pytest.mark.skipif(
    not Path("/usr/bin/dpkg-deb").exists(), reason="dpkg-deb, which makes real packages, is not here"
)
@pytest.mark.parametrize("compression", ["xz", "gzip"])
def test_what_dpkg_builds_is_read(tmp_path: Path, compression: str) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b.invalid>\nDescription: none\n"
    )
    (tree / "usr/share").mkdir(parents=True)
    (tree / "usr/share/文.txt").write_bytes("内容".encode() * 5000)
    subprocess.run(
        ["dpkg-deb", f"-Z{compression}", "--build", "--root-owner-group", tree, tmp_path / "x.deb"],
        check=True,
        capture_output=True,
    )
    assert list(members(tmp_path / "x.deb", "./usr/*")) == [("./usr/share/文.txt", "内容".encode() * 5000)]


def test_hostile_names_and_links_touch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    secret = tmp_path / "secret"
    secret.write_text("not for the archive")
    deb(
        tmp_path / "x.deb",
        {"../../escaped": b"1", "/tmp/absolute-of-a-test": b"2", "./fine": b"3"},
        links={"./link": str(secret), "./up": "../secret"},
    )
    before = sorted(tmp_path.rglob("*"))
    assert [content for _, content in members(tmp_path / "x.deb", "*")] == [b"1", b"2", b"3"]
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/absolute-of-a-test").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or no archive of a known kind"),
        (b"neither of them, but long enough to look at" * 20, "damaged, or no archive of a known kind"),
        (ar({"debian-binary": b"2.0\n"}), "holds debian-binary, wanted is one of data.tar.xz"),
        (ar({"data.tar.zst": b"12"}), "holds data.tar.zst, wanted is one of data.tar.xz"),
        (ar({"debian-binary": b"2.0\n"}) + b"no header here" * 9, "no member begins where one should"),
        (ar({"data.tar.xz": tar({"a": os.urandom(9999)}, "xz")})[:5000], "the file ends .* bytes too early"),
        (ar({"data.tar": b"no tar" * 999}), "damaged, or no archive of a known kind"),
    ],
)
def test_damaged_archives_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.deb").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(members(tmp_path / "x.deb", "*"))
    assert "x.deb" in str(error.value)
