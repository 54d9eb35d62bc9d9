"""Saved and loaded, a tokenizer is the same; what is damaged or missing is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from hllm_jax.tokenizers import Tokenizer, TokenizerError, load_tokenizer
from tests.tokenizers.foreign import CHATML_DEFAULT, foreign_json

TALK = [{"role": "user", "content": "the king 春风▁"}, {"role": "assistant", "content": "queen"}]


def test_round_trip(tokenizer: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    tokenizer.save(tmp_path / "a" / "tokenizer")
    loaded = load_tokenizer(str(tmp_path / "a" / "tokenizer"))
    copies = [loaded, pickle.loads(pickle.dumps(tokenizer))]
    loaded.save(tmp_path / "b")
    copies.append(load_tokenizer(tmp_path / "b"))
    for copy in copies:
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.encode_batch(corpus[:20]) == tokenizer.encode_batch(corpus[:20])
        assert copy.render(TALK) == tokenizer.render(TALK)
        assert copy.settings == tokenizer.settings
        assert (copy.kind, copy.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
    written = [
        sorted((p.name, p.read_bytes()) for p in (tmp_path / f).iterdir()) for f in ("a/tokenizer", "b")
    ]
    assert written[0] == written[1]
    # Beside SentencePiece's file there is one for programs that read only the other.
    models = ["tokenizer.json"] if tokenizer.kind == "byte_bpe" else ["tokenizer.json", "tokenizer.model"]
    assert [name for name, _ in written[0]] == ["chat_template.jinja", *models, "tokenizer_config.json"]


def test_fingerprints_tell_tokenizers_apart(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    prints = {tokenizer.fingerprint for tokenizer in trained.values()}
    prints.add(trained["bpe"].with_template(CHATML_DEFAULT).fingerprint)
    assert len(prints) == 4
    assert all(len(each) == 64 for each in prints)
    # The template may be changed by hand; then it is another tokenizer.
    trained["bpe"].save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML_DEFAULT)
    assert load_tokenizer(tmp_path).fingerprint == trained["bpe"].with_template(CHATML_DEFAULT).fingerprint


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer in .*nowhere: the folder does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"holds none of tokenizer.json, tokenizer.model, spiece.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "missing"])
def test_damaged_model_file(
    tokenizer: Tokenizer, trained: dict[str, Tokenizer], tmp_path: Path, damage: str
) -> None:
    tokenizer.save(tmp_path)
    model = tmp_path / ("tokenizer.json" if tokenizer.kind == "byte_bpe" else "tokenizer.model")
    content = model.read_bytes()
    if damage == "missing":
        model.unlink()
        (tmp_path / ("tokenizer.model" if model.suffix == ".json" else "tokenizer.json")).write_bytes(content)
    else:
        model.write_bytes({"cut": content[:-100], "empty": b"", "other": content + b" "}[damage])
    with pytest.raises(TokenizerError, match=rf"{tmp_path}.*{model.name} is (damaged|missing)"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_damaged_config(tokenizer: Tokenizer, tmp_path: Path, content: bytes) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json (is damaged|must hold a JSON object)"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\0\1\2 nothing", b"\xff"])
def test_damaged_foreign_model(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=r"not a (tokenizer.json|SentencePiece model)|damaged"):
        load_tokenizer(tmp_path)


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)


def test_folder_of_others(tmp_path: Path, corpus: list[str]) -> None:
    """As `transformers` writes it: tokens as objects, templates by name, ends in generation_config."""
    write(
        tmp_path,
        tokenizer__json=foreign_json(corpus),
        tokenizer_config__json={
            "eos_token": {"content": "<|eot|>", "lstrip": False},
            "chat_template": [
                {"name": "tool_use", "template": "x"},
                {"name": "default", "template": CHATML_DEFAULT},
            ],
        },
        special_tokens_map__json={"bos_token": "<s>", "pad_token": None},
        generation_config__json={"eos_token_id": [3, 9]},
    )
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.special_ids
    assert (tokenizer.bos_id, tokenizer.eos_id) == (ids["<s>"], ids["<|eot|>"])
    assert tokenizer.pad_id == tokenizer.eos_id
    assert not tokenizer.add_bos
    assert tokenizer.encode_document("the")[0] != tokenizer.bos_id
    assert set(tokenizer.stop_ids) == {3, 9, ids["<|eot|>"], ids["<|im_end|>"], ids["<|end|>"]}
    assert tokenizer.chat_template == CHATML_DEFAULT
    tokenizer.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.render(TALK) == tokenizer.render(TALK)


def test_a_template_file_goes_before_the_config(tmp_path: Path, corpus: list[str]) -> None:
    config = {"eos_token": "<|eos|>", "chat_template": "old", "bos_token": "<s>", "add_bos_token": True}
    write(
        tmp_path,
        tokenizer__json=foreign_json(corpus),
        tokenizer_config__json=config,
        chat_template__jinja="new",
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.chat_template == "new"
    assert tokenizer.encode_prompt("the")[0] == tokenizer.bos_id


def test_a_bos_that_the_post_processor_adds(tmp_path: Path, corpus: list[str]) -> None:
    content = json.loads(foreign_json(corpus))
    bos = next(t["id"] for t in content["added_tokens"] if t["content"] == "<s>")
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
    }
    write(
        tmp_path, tokenizer__json=content, tokenizer_config__json={"eos_token": "<|eos|>", "bos_token": "<s>"}
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.add_bos
    assert tokenizer.encode_prompt("the") == [bos, *tokenizer.encode("the")]
    assert bos not in tokenizer.encode("the")


def test_sentencepiece_folder_of_others(tmp_path: Path, corpus: list[str]) -> None:
    """A LLaMA-style model: a space is put before every text, and taken away again."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(corpus).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = load_tokenizer(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.encode_prompt("the king") == [1, *processor.encode("the king")]
    for text in ("the king", " the  king ", "春风 化雨", "\n", "</s><s>", "x" * 3000):
        ids = tokenizer.encode(text)
        assert ids == processor.encode(text)
        assert tokenizer.decode(ids) == text
        stream = tokenizer.stream()
        assert "".join([*(stream.push(i) for i in ids), stream.flush()]) == text
        assert not {0, 1, 2} & set(ids)
    # A span begins inside a text: the space before the whole text is not put there again.
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    tokens, weights = tokenizer.with_template(template).render(TALK * 2)
    question, answer = processor.encode("[INST] the king 春风▁ [/INST]"), processor.encode(" queen ")[1:]
    assert processor.encode("[INST] the king 春风▁ [/INST] queen ") == [*question, *answer]
    assert tokens == [1, *question, *answer, 2] * 2
    assert weights == ([0] * (1 + len(question)) + [1] * (len(answer) + 1)) * 2
    write(tmp_path, tokenizer_config__json={"added_tokens_decoder": {"399": {}, "400": {"content": "<new>"}}})
    with pytest.raises(TokenizerError, match=r"adds tokens from id 400 on to tokenizer.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no end-of-document token is known"),
        ({"eos_token": "<nope>"}, "the eos token '<nope>' is not in the vocabulary"),
        ({"eos_token": "<|eos|>", "chat_template": "{% for"}, "the chat template is no valid Jinja"),
    ],
)
def test_incomplete_folders(tmp_path: Path, corpus: list[str], config: dict[str, Any], message: str) -> None:
    write(tmp_path, tokenizer__json=foreign_json(corpus), tokenizer_config__json=config)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_our_section_must_be_complete(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["hllm"]["stop_ids"]
    path.write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="the section 'hllm' lacks stop_ids"):
        load_tokenizer(tmp_path)
    config["hllm"]["stop_ids"] = [480]
    path.write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="the stop id 480 is outside the vocabulary of 480 ids"):
        load_tokenizer(tmp_path)
