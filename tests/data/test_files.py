"""Files of every kind stream as (place, value); what cannot be read says where."""

from __future__ import annotations

import gzip
import json

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from etils import epath

from hllm_jax.data import DataError
from hllm_jax.data import files as files_module
from hllm_jax.data.files import match_files, read_file

ROWS = [{"text": "one"}, {"text": "zwei 二"}, {"text": "three"}]


def read(path, documents="file"):
    return list(read_file(epath.Path(path), documents))


def values(path, documents="file"):
    return [value for _, value in read(path, documents)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_json_lines_with_blank_lines_mark_and_no_last_newline(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:2]).encode() + b"\n\n" + json.dumps(ROWS[2]).encode())
    assert read(path) == [(f"{path}:1", ROWS[0]), (f"{path}:2", ROWS[1]), (f"{path}:5", ROWS[2])]


def test_gzip(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS).encode()))
    assert values(path) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_json_array_streams_in_any_block_size(tmp_path, monkeypatch, indent, block):
    monkeypatch.setattr(files_module, "JSON_BLOCK", block)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=False))
    assert values(path) == ROWS


def test_json_places_count_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n{"text":\n "a"},\n{"text": "b"}\n]')
    assert [place for place, _ in read(path)] == [f"{path}:2", f"{path}:4"]


def test_json_array_of_messages_is_one_conversation(tmp_path):
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(chat) + "\n" + json.dumps(chat))
    assert values(path) == [chat, chat]
    path.write_text(json.dumps([chat, chat]))
    assert values(path) == [chat, chat]


def test_json_values_one_after_the_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(lines(ROWS))
    assert values(path) == ROWS


def test_text_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a\nb\n\n\nc\n")
    assert values(path, "file") == [{"text": "a\nb\n\n\nc"}]
    assert read(path, "blank_line") == [(f"{path}:1", {"text": "a\nb"}), (f"{path}:5", {"text": "c"})]
    assert values(path, "line") == [{"text": "a"}, {"text": "b"}, {"text": "c"}]


def test_huge_text_document_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "LARGEST_DOCUMENT", 100)
    path = tmp_path / "a.txt"
    path.write_text("line\n" * 100)
    with pytest.raises(DataError, match="documents: blank_line"):
        read(path, "file")
    assert len(read(path, "line")) == 100


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    chat = [[{"role": "user", "content": "Q"}], [{"role": "user", "content": "R"}]]
    parquet.write_table(arrow.table({"messages": chat}), path)
    assert read(path) == [(f"{path}: row {i + 1}", {"messages": m}) for i, m in enumerate(chat)]


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_not_utf8_names_line_and_byte(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b'{"text": "ok"}\n{"text": "\xe9t\xe9"}\n')
    problems = [v for v in values(path, "line") if isinstance(v, DataError)]
    assert [f"{path}:2" in str(p) and "not UTF-8" in str(p) and "0xe9" in str(p) for p in problems] == [True]


def test_not_utf8_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"text": "\xe9t\xe9"}]')
    with pytest.raises(DataError, match="not UTF-8"):
        read(path)


def test_malformed_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ok"}\n{"text": \n')
    assert values(path)[0] == {"text": "ok"}
    assert f"{path}:2: not JSON" in str(values(path)[1])


@pytest.mark.parametrize("block", [4, 2**20])
@pytest.mark.parametrize(
    ("text", "line"), [('[{"text": "a"},\n{"text": b}]', 2), ('[{"text": "a"},\n{"te', 2)]
)
def test_malformed_json_is_named(tmp_path, monkeypatch, text, line, block):
    monkeypatch.setattr(files_module, "JSON_BLOCK", block)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read(path)
    assert f"{path}:{line}" in str(error.value)


@pytest.mark.parametrize("ending", ["jsonl", "json", "txt"])
def test_empty_file(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.touch()
    with pytest.raises(DataError, match="the file is empty"):
        read(path)


def test_broken_gzip_and_parquet(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS * 100).encode())[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read(path)
    other = tmp_path / "a.parquet"
    other.write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match="Parquet"):
        read(other)


def test_globs(tmp_path):
    for name in ("b/2.jsonl", "a/1.jsonl", "a/deep/3.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(lines(ROWS))
    found = [str(p.relative_to(tmp_path)) for p in match_files(f"{tmp_path}/**/*.jsonl")]
    assert found == ["a/1.jsonl", "a/deep/3.jsonl", "b/2.jsonl"]
    assert [p.name for p in match_files(f"{tmp_path}/[ab]/*.jsonl")] == ["1.jsonl", "2.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("none.jsonl", "no such file"),
        ("*.txt", "the glob matches no file"),
        ("nowhere/*.txt", "does not exist"),
        ("*.csv", "unknown ending"),
        (".", "is a folder"),
    ],
)
def test_patterns_that_name_nothing(tmp_path, pattern, said):
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=said):
        match_files(str(tmp_path / pattern) if pattern != "." else str(tmp_path))
