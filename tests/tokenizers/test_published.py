"""Folders as the hub has them: the ids of the published classes, on texts made to be difficult."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm_jax.tokenizers import Tokenizer, TokenizerError, from_gguf, load_tokenizer, to_gguf
from tests.tokenizers.published import Case, compare, names, read

NAMES = names()
each_case = pytest.mark.parametrize("name", NAMES)


def loaded(name: str, folder: Path) -> tuple[Tokenizer, Case]:
    case = read(name)
    return load_tokenizer(case.write(folder)), case


def test_the_cases() -> None:
    assert len(NAMES) == 19
    assert {name.removesuffix("-json") for name in NAMES} == {
        *("bert-uncased", "bert-cased", "bert-plain", "roberta", "albert", "t5"),
        *("openai-gpt", "gpt2", "qwen2", "llama2", "llama2-normalized", "llama3", "glm4"),
    }


@each_case
def test_ids_are_those_of_the_published_class(name: str, tmp_path: Path) -> None:
    tokenizer, case = loaded(name, tmp_path / "theirs")
    compare(tokenizer, case)
    # The folder that we write gives them too, and is the same tokenizer.
    tokenizer.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert again.fingerprint == tokenizer.fingerprint
    compare(again, case)
    for text in case.texts[:60]:
        ids = again.encode(text)
        assert again.encode(text) == ids
        stream = again.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == again.decode(ids)
        if again.lossless:
            assert again.decode(ids) == text


@each_case
def test_no_text_becomes_a_control_token(name: str, tmp_path: Path) -> None:
    tokenizer, _ = loaded(name, tmp_path)
    control = set(tokenizer.special_ids.values()) - {tokenizer.unk_id}
    spelled = [*tokenizer.special_ids, "[CLS]", "<extra_id_0>", " 3", "\ufdd0"]
    texts = [f"the {text}random{text}{text} 画蛇" for text in spelled] + spelled + ["".join(spelled)]
    assert len(control) >= 1 or name.startswith("openai-gpt")
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert control.isdisjoint(ids), text
        assert ids == tokenizer.encode(text)


def test_control_tokens_in_a_text_are_sentencepiece_s_pieces(tmp_path: Path) -> None:
    """Unigram in the `tokenizers` library looks for every entry; SentencePiece leaves control pieces out."""
    import sentencepiece

    tokenizer, case = loaded("t5", tmp_path)
    original = sentencepiece.SentencePieceProcessor(model_proto=case.files["spiece.model"])
    for text in (
        "</s>",
        "a </s> b",
        "the<pad></s>",
        "in <unk> out",
        "<extra_id_0> and <extra_id_99>",
        "<<pad>s>",
    ):
        assert tokenizer.encode(text) == original.encode(text), text


LOSSLESS = {"gpt2", "gpt2-json", "roberta", "roberta-json", "llama3", "glm4"}


def test_which_are_lossless(tmp_path: Path) -> None:
    """Bytes without a normaliser; Qwen2 composes characters, SentencePiece and BERT change blanks or case."""
    found = {name for name in NAMES if loaded(name, tmp_path / name)[0].lossless}
    assert found == LOSSLESS
    tokenizer, _ = loaded("qwen2", tmp_path / "again")
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "bert-uncased",
            "Returning random画蛇, sequences",
            ["returning", "random", "画", "蛇", ",", "sequences"],
        ),
        ("gpt2", "returning random sequences\n", ["returning", "random", "sequences", "\n"]),
        ("llama2", "returning random sequences", ["returning", "random", "sequences"]),
        ("t5", "returning random sequences", ["returning", "random", "sequences"]),
    ],
)
def test_words(name: str, text: str, words: list[str], tmp_path: Path) -> None:
    """Tokens joined to those that they continue are the words of the text."""
    tokenizer, _ = loaded(name, tmp_path)
    ids, table = tokenizer.encode(text), tokenizer.continues_word
    assert (table.dtype, table.shape) == (np.bool_, (tokenizer.vocab_size,))
    assert not table[list(tokenizer.special_ids.values())].any()
    groups: list[str] = []
    for k, token in enumerate(ids):
        piece = tokenizer.token_bytes(token).decode()
        groups = [*groups[:-1], groups[-1] + piece] if k and table[token] else [*groups, piece]
    assert [group.strip(" ") for group in groups] == words
    assert len(ids) > len(words)


def test_gpt1_marks_ends_of_words(tmp_path: Path) -> None:
    tokenizer, _ = loaded("openai-gpt", tmp_path)
    assert tokenizer.decode(tokenizer.encode("Return the list, please")) == "return the list , please"
    stream = tokenizer.stream()
    shown = [stream.push(token) for token in tokenizer.encode("return a list")]
    assert "".join(shown) == "return a list"
    assert not any(part.endswith(" ") for part in shown)
    with pytest.raises(TokenizerError, match="marks the ends of words"):
        _ = tokenizer.continues_word


# What llama.cpp has no words for: lower case and accents before unigram, words with marks at their ends.
NOT_IN_GGUF = {
    "albert": "no place for the normalisation",
    "openai-gpt": "no form for this bpe",
    "bert-plain": "always sets Chinese characters apart",
    "glm4": r'sees "\[gMASK\] <sop> A" for a text A',
}


@each_case
def test_gguf_and_back(name: str, tmp_path: Path) -> None:
    tokenizer, case = loaded(name, tmp_path)
    kind = name.removesuffix("-json")
    if kind in NOT_IN_GGUF:
        with pytest.raises(TokenizerError, match=NOT_IN_GGUF[kind]):
            to_gguf(tokenizer)
        return
    metadata = to_gguf(tokenizer)
    again = from_gguf(metadata)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode_batch(case.texts) == tokenizer.encode_batch(case.texts)
    assert set(again.special_ids) == set(tokenizer.special_ids)
    some = case.texts[:30]
    for first, second in itertools.pairwise(some):
        assert again.encode_for_model(first) == tokenizer.encode_for_model(first)
        if kind not in ("gpt2", "qwen2"):
            assert again.encode_for_model(first, second) == tokenizer.encode_for_model(first, second)
    roles = ("eos_id", "pad_id", "cls_id", "sep_id", "mask_id", "sentinel_ids")
    assert [getattr(again, role) for role in roles] == [getattr(tokenizer, role) for role in roles]
    json.dumps({key: np.asarray(value).tolist() for key, value in metadata.items()})


def test_what_a_template_writes_need_not_be_in_gguf(tmp_path: Path) -> None:
    tokenizer, case = loaded("glm4", tmp_path)
    chat = "[gMASK]<sop>{% for m in messages %}<|user|>\n{{ m.content }}{% endfor %}"
    metadata = to_gguf(tokenizer.with_template(chat))
    assert metadata["tokenizer.ggml.pre"] == "chatglm-bpe"
    assert (metadata["tokenizer.ggml.add_bos_token"], metadata["tokenizer.chat_template"]) == (False, chat)
    again = from_gguf(metadata)
    assert again.encode_batch(case.texts) == tokenizer.encode_batch(case.texts)
    assert again.encode_for_model("the") == (tokenizer.encode("the"), [0] * len(tokenizer.encode("the")))


# -- bad folders ----------------------------------------------------------------------------------------


def changed(case: Case, folder: Path, **changes: Any) -> Path:
    """The folder with files replaced (bytes, or JSON-able) or taken away (None); `__` is a dot."""
    case.write(folder)
    for name, content in changes.items():
        path = folder / name.replace("__", ".")
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"merges__txt": None}, "merges.txt is missing, and so is tokenizer.json"),
        (
            "gpt2",
            {"config__json": None},
            "vocab.json is of a class that neither .* name one of BertTokenizer",
        ),
        (
            "gpt2",
            {"tokenizer_config__json": {"tokenizer_class": "BartTokenizer"}},
            "of the class 'BartTokenizer', which is not known without a tokenizer.json",
        ),
        (
            "gpt2",
            {"tokenizer_config__json": {"tokenizer_class": "LlamaTokenizerFast"}},
            "tokenizer.model is missing, and so is tokenizer.json",
        ),
        ("gpt2", {"vocab__json": b"{"}, "vocab.json is damaged: no JSON"),
        ("gpt2", {"vocab__json": ["a"]}, "must give the ids 0, 1, 2"),
        ("gpt2", {"vocab__json": {"a": 0, "b": "c"}}, "must give the ids 0, 1, 2"),
        ("gpt2", {"vocab__json": {"a": 0, "b": 0}}, "must give the ids 0, 1, 2"),
        ("gpt2", {"vocab__json": {"a": 0, "b": 1}}, "merge 0 of merges.txt|lacks its bos token"),
        ("gpt2", {"merges__txt": b"#version: 0.2\na b c\n"}, "merge 0 is 'a b c', not two entries"),
        ("gpt2", {"merges__txt": b"\xff"}, "merges.txt is damaged: no UTF-8"),
        ("gpt2", {"merges__txt": b"q z\n"}, "'qz' is not in vocab.json"),
        (
            "bert-uncased",
            {"vocab__txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n"},
            r"lacks its mask token '\[MASK\]'",
        ),
        ("bert-uncased", {"vocab__txt": b"a\na\n"}, "vocab.txt lists 'a' twice"),
        ("bert-uncased", {"vocab__txt": b""}, "vocab.txt is empty"),
        ("bert-uncased", {"tokenizer_config__json": {"cls_token": "<cls>"}}, "lacks its cls token '<cls>'"),
        (
            "bert-uncased",
            {"added_tokens__json": {"[NEW]": 7}},
            r"added token '\[NEW\]' has the id 7, but its place in the vocabulary of \d+ entries is \d+",
        ),
        ("t5", {"spiece__model": b"\0\1"}, "not a SentencePiece model"),
        ("t5", {"spiece__model": b""}, "not a SentencePiece model: 0 bytes"),
        ("llama2", {"tokenizer__model": b"IQ== 0\nIg== 1\n"}, r"a list of byte pairs \(tiktoken\)"),
        ("llama2", {"tokenizer_config__json": {"eos_token": "<end>"}}, "eos token '<end>' is not in the voc"),
        ("llama3", {"tokenizer_config__json": {}}, "no end-of-document token is known"),
    ],
)
def test_bad_folders(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(changed(read(name), tmp_path, **changes))
    assert str(tmp_path) in str(caught.value)


def test_t5_needs_a_unigram_model(tmp_path: Path) -> None:
    model = read("llama2").files["tokenizer.model"]
    with pytest.raises(TokenizerError, match="of the kind 'bpe', not unigram"):
        load_tokenizer(changed(read("t5"), tmp_path, spiece__model=model))


def test_sentinels_as_many_as_the_config_says(tmp_path: Path) -> None:
    case = read("t5")
    tokenizer = load_tokenizer(changed(case, tmp_path, tokenizer_config__json={"extra_ids": 3}))
    size = case.expected["size"] - 100
    assert tokenizer.sentinel_ids == (size + 2, size + 1, size)
    assert tokenizer.vocab_size == size + 3


def test_a_tokenizer_json_that_contradicts_itself(tmp_path: Path) -> None:
    case = read("llama3")
    content = json.loads(case.files["tokenizer.json"])
    content["added_tokens"][0]["id"] += 50
    with pytest.raises(TokenizerError, match=r"gives the added token '<\|begin_of_text\|>' the id"):
        load_tokenizer(changed(case, tmp_path / "a", tokenizer__json=content))
    content = json.loads(case.files["tokenizer.json"])
    content["post_processor"]["processors"].append(content["post_processor"]["processors"][1])
    with pytest.raises(TokenizerError, match=r"the post-processor .* is not known"):
        load_tokenizer(changed(case, tmp_path / "b", tokenizer__json=content))
