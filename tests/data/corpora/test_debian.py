"""Corpora of Debian packages, read out of packages made here; the real ones are in test_corpora.py."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import random
import re
from pathlib import Path

import pytest

from hllm_jax.data import SourceConfig, corpora, texts
from hllm_jax.data.archives import members
from hllm_jax.data.corpora import gcide, manpages_zh
from hllm_jax.data.packages import PackageUnavailable, fetch_package
from tests.data.made import deb

MAN = "./usr/share/man/"
DOC = "./usr/share/doc/linux-doc-6.1/Documentation/"
DICTD = "./usr/share/dictd/"


def examples(name: str, archive: Path) -> list[tuple[str, str]]:
    return [(split, record["text"]) for split, record in corpora.find(name).examples(archive)]


def gz(text: str) -> bytes:
    return gzip.compress(text.encode())


def test_manual_pages_of_both_scripts(tmp_path: Path) -> None:
    page = ".TH X {n}\n.SH 名称\nx{n} \\- {what}\n.SH 跋\n本页面中文版由中文 man 手册页计划提供。\n"
    simplified = {f"{MAN}zh_CN/man1/x{n}.1.gz": gz(page.format(n=n, what="汉字")) for n in range(300)}
    traditional = {f"{MAN}zh_TW/man1/x{n}.1.gz": gz(page.format(n=n, what="漢字")) for n in range(300)}
    others = {f"{MAN}zh_CN/man3/so.3.gz": gz(".so man3/x.3\n"), f"{MAN}de/man1/x.1.gz": gz(".SH N\nnein")}
    archive = deb(
        tmp_path / "m.deb", simplified | traditional | others, links={f"{MAN}zh_CN/man1/y.1.gz": "x1.1.gz"}
    )
    found = examples("manpages-zh", archive)
    assert [text for _, text in found] == [f"X({n})\n\n名称\nx{n} - 汉字" for n in range(300)]
    assert [split for split, _ in found] == [split for split, _ in examples("manpages-zh-tw", archive)]
    assert examples("manpages-zh-tw", archive)[7][1].endswith("x7 - 漢字")
    assert {split for split, _ in found} == {"train", "validation"}


def test_fortunes_lose_colours_and_repeats(tmp_path: Path) -> None:
    folder = "./usr/share/games/fortunes/"
    archive = deb(
        tmp_path / "f.deb",
        {
            f"{folder}chinese": "一  \n\n    100%\n\x1b[33m  --\x1b[32m《书》\x1b[m\n%\n二\n%\n".encode(),
            f"{folder}chinese.dat": b"\0\0\1",
            f"{folder}tang300": "二\n%\n三\n%\n".encode(),
        },
        links={f"{folder}chinese.u8": "chinese"},
    )
    assert [text for _, text in examples("fortunes-zh", archive)] == [
        "一\n\n    100%\n  --《书》",
        "二",
        "三",
    ]


def dictionary(path: Path, entries: list[str]) -> Path:
    """A package with a dictd dictionary: the entries in a row, and an index in another order."""

    def digits(value: int) -> str:
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        return (digits(value // 64) if value >= 64 else "") + alphabet[value % 64]

    book, lines = b"", []
    for entry in ["about the book\n", *entries]:
        raw = entry.encode("cp1252")
        name = "00-database-info" if not book else entry.split(" ")[0]
        lines.append(f"{name}\t{digits(len(book))}\t{digits(len(raw))}\n")
        book += raw
    lines.append(lines[1].replace("Dim", "Dimmed"))  # a second headword of the same entry
    random.Random(0).shuffle(lines)
    files = {f"{DICTD}gcide.dict.dz": gzip.compress(book), f"{DICTD}gcide.index": "".join(lines).encode()}
    return deb(path, files)


def test_dictionary_entries(tmp_path: Path) -> None:
    archive = dictionary(
        tmp_path / "d.deb",
        [
            "Dim \\Dim\\, a. [AS. dimm; cf. F. d['e]j[`a], [=a], [\"o], [e^], [ae], [add].]\n"
            "   1. Not bright. See {Dark}. [Obs.] --Shak.\n      [1913 Webster]\n\n"
            "            A dim light.\n      [1913 Webster +PJC]\n\n",
            "Word \\Word\\, n.\n   A vocable.\n   [WordNet 1.5] Wordy\n\n",
            "Façade \\Façade\\, n.\n   A front.\n   [PJC]\n",
            "Word \\Word\\, n.\n   A vocable.\n   [1913 Webster]\n\n",
        ],
    )
    assert [text for _, text in examples("dict-gcide", archive)] == [
        "Dim \\Dim\\, a. [AS. dimm; cf. F. déjà, ā, ö, ĕ, æ, [add].]\n"
        "   1. Not bright. See Dark. [Obs.] --Shak.\n\n            A dim light.",
        "Word \\Word\\, n.\n   A vocable.",
        "Façade \\Façade\\, n.\n   A front.",
    ]


def test_numbers_of_a_dictd_index() -> None:
    # dictfmt(1): A is 0, / is 63, the first digit weighs most.
    assert [gcide.number(digits) for digits in ("A", "/", "BA", "Kj", "mS3R")] == [
        0, 63, 64, 10 * 64 + 35, 38 * 64**3 + 18 * 64**2 + 55 * 64 + 17,
    ]  # fmt: skip


def test_translations_stand_beside_their_originals(tmp_path: Path) -> None:
    english = "=====\nTitle\n=====\n\n" + "Some ``text`` of\nthe kernel, number {}. " * 10
    chinese = "=====\n标题\n=====\n\n" + "内核的\n一些文字，第{}篇。" * 30
    files = {f"{DOC}a/{n}.rst.gz": gz(english.format(*[n] * 10)) for n in range(200)}
    files |= {f"{DOC}translations/zh_CN/a/{n}.rst.gz": gz(chinese.format(*[n] * 30)) for n in range(200)}
    files |= {
        f"{DOC}translations/zh_TW/a/7.txt.gz": gz("內核   \n" * 100),
        f"{DOC}translations/it_IT/a/1.rst.gz": gz("Il nocciolo. " * 60),
        f"{DOC}translations/index.rst.gz": gz("All translations. " * 60),
        f"{DOC}again.rst.gz": files[f"{DOC}a/0.rst.gz"],
        f"{DOC}short.rst.gz": gz("Short.\n"),
        f"{DOC}bindings/x.yaml.gz": gz("a: b\n" * 100),
        "./usr/share/doc/linux-doc-6.1/html/a/0.html": b"<p>again</p>" * 50,
    }
    archive = deb(tmp_path / "l.deb", files)
    originals, translations = examples("linux-doc", archive), examples("linux-doc-zh", archive)
    assert len(originals) == 200
    assert len(translations) == 201
    assert originals[3][1].startswith(
        "Documentation/a/3.rst\n\nTitle\n\nSome text of the kernel, number 3. Some text of"
    )
    assert translations[3][1].startswith(
        "Documentation/translations/zh_CN/a/3.rst\n\n标题\n\n内核的一些文字，第3篇。内核的"
    )
    assert translations[200][1].startswith("Documentation/translations/zh_TW/a/7.txt\n\n內核\n內核\n")
    splits = [split for split, _ in originals]
    assert [split for split, _ in translations] == [*splits, splits[7]]
    assert set(splits) == {"train", "validation"}


def test_a_debian_corpus_is_prepared_and_read(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # whatever is needed is in the cache
    (own_cache / "packages").unlink()
    (own_cache / "packages").mkdir()
    (own_cache / "tfds").unlink()
    page = ".SH 名称\n页{}\n"
    archive = deb(
        own_cache / "packages" / manpages_zh.PACKAGE.file,
        {f"{MAN}zh_CN/man1/x{n}.1.gz": gz(page.format(n)) for n in range(100)},
    )
    package = dataclasses.replace(
        manpages_zh.PACKAGE, sha256=hashlib.sha256(archive.read_bytes()).hexdigest()
    )
    held = sum(split == "validation" for split, _ in examples("manpages-zh", archive))
    entry = dataclasses.replace(
        corpora.find("manpages-zh"), package=package, train=100 - held, validation=held
    )
    monkeypatch.setitem(manpages_zh.CORPORA, "manpages-zh", entry)
    corpora.prepare("manpages-zh")
    read = [
        text for split in ("train", "validation") for text in texts(SourceConfig(name="manpages-zh"), split)
    ]
    assert sorted(read) == sorted(f"名称\n页{n}" for n in range(100))
    assert held
    assert capfd.readouterr() == ("", "")  # building a corpus says nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "patterns", "characters", "han"),
    [
        # Characters and Han characters that others counted; None where nobody did. In manual pages they
        # counted what 43 links point to once more: 0.85 M, without that 0.788 M.
        ("manpages-zh", [f"{MAN}zh_CN/*.gz"], None, 0.788e6),
        ("manpages-zh-tw", [f"{MAN}zh_TW/*.gz"], None, None),
        ("fortunes-zh", ["./usr/share/games/fortunes/*[a-z0-9]"], None, None),
        ("dict-gcide", [f"{DICTD}*.dz"], 40e6, 0),
        ("linux-doc", [f"{DOC}[!t]*.rst.gz", f"{DOC}[!t]*.txt.gz"], 25e6, 0),
        ("linux-doc-zh", [f"{DOC}translations/zh_CN/*.gz"], None, 0.35e6),
    ],
)
def test_the_real_packages_hold_what_others_counted(
    name: str, patterns: list[str], characters: float | None, han: float | None
) -> None:
    corpus = corpora.find(name)
    try:
        archive = fetch_package(corpus.package)
    except PackageUnavailable as error:
        pytest.skip(str(error))  # another Debian release, or another system
    raw = [content for file, content in members(archive, *patterns) if not file.endswith(".dat")]
    plain = [gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content for content in raw]
    whole = "".join(content.decode("utf-8", "replace") for content in plain)
    if characters is not None:
        assert len(whole) == pytest.approx(characters, rel=0.03)
    if han is not None:
        assert han_characters(whole) == pytest.approx(han, rel=0.01)
    if not name.startswith("linux-doc"):  # which leaves tables of contents out, and has both scripts
        read = "".join(text for _, text in examples(name, archive))
        assert han_characters(read) >= 0.97 * han_characters(whole)


def han_characters(text: str) -> int:
    return len(re.findall("[\u4e00-\u9fff]", text))
