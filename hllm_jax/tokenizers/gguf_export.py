"""A tokenizer as the metadata of a GGUF file, so that llama.cpp gives the same ids."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from hllm_jax.tokenizers.cutting import CUTTINGS, cutting_of
from hllm_jax.tokenizers.definitions import Content
from hllm_jax.tokenizers.errors import TokenizerError
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.gguf import KEYS
from hllm_jax.tokenizers.huggingface import TokenizersCodec
from hllm_jax.tokenizers.proto import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Proto
from hllm_jax.tokenizers.sentencepiece import SentencePieceCodec
from hllm_jax.tokenizers.spelling import SPACE, steps_of
from hllm_jax.tokenizers.tokenizer import Tokenizer

# The score of a piece that no merge makes: below all that merges make.
LEAST = -1e9


def to_gguf(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `tokenizer.*` metadata of a GGUF file.

    Text that spells a special token stays text only where llama.cpp is told so (`parse_special` off). Where
    its rules differ from the published ones, its ids do: it brings no text to NFC (Qwen2 does), reads U+2581
    as a space, knows no longest word (WordPiece: 100 characters), drops all kinds of marks with the accents.

    Returns:
        Keys to values: str, bool, int (unsigned 32 bits in the file), list of str, and float32, int32 or
        uint8 arrays. `from_gguf` is the inverse.

    Raises:
        TokenizerError: llama.cpp has no such tokenizer; the message says what it lacks.
    """
    codec = tokenizer.codec
    if isinstance(codec, SentencePieceCodec):
        described = _of_proto(codec.proto)
    elif isinstance(codec, TokenizersCodec):
        described = _of_content(codec, tokenizer)
    else:
        raise TokenizerError(f"a tokenizer of the kind {tokenizer.kind!r} has no form in GGUF")
    ids = {role: getattr(tokenizer, f"{role}_id") for role in KEYS}
    if described["model"] == "bert":
        ids |= {"bos": tokenizer.cls_id, "eos": None, "cls": None}
    described |= {KEYS[role]: i for role, i in ids.items() if i is not None}
    described |= _around(tokenizer)
    further = [i for i in tokenizer.stop_ids if i != tokenizer.eos_id]
    if further and described["model"] != "bert":
        described["eot_token_id"] = further[0]
    metadata = {f"tokenizer.ggml.{key}": value for key, value in described.items()}
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = without_spans(tokenizer.chat_template)
    return metadata


def without_spans(template: str) -> str:
    """A chat template without `{% generation %}`, which other programs do not know; it renders the same."""
    begun = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", begun)


def _around(tokenizer: Tokenizer) -> dict[str, bool]:
    """Whether begin and end stand around a text."""
    frame, template = tokenizer.frame, tokenizer.chat_template or ""
    first, last = frame.begins_with, _ends_with(frame)
    others = {first, last} - {None, tokenizer.bos_id, tokenizer.eos_id, tokenizer.cls_id, tokenizer.sep_id}
    if not others and len(frame.single) <= 3:
        return {"add_bos_token": first is not None, "add_eos_token": last is not None}
    if not all(tokenizer.token_text(i) in template for i in frame.ids):
        shown = " ".join(i if isinstance(i, str) else tokenizer.token_text(i) for i, _ in frame.single)
        raise TokenizerError(
            f'the model sees "{shown}" for a text A; GGUF has place for one begin and one end only, and no '
            "chat template writes the others"
        )
    return {"add_bos_token": False, "add_eos_token": False}


def _ends_with(frame: Frame) -> int | None:
    last = frame.single[-1][0]
    return last if isinstance(last, int) else None


def _listed(tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    return {"tokens": list(tokens), "token_type": np.array(types, np.int32)}


def _of_proto(proto: Proto) -> dict[str, Any]:
    if proto.kind == "unigram" and not proto.byte_fallback:
        return {
            **_unigram(proto.texts, proto.scores, proto.types, proto.charsmap),
            "add_space_prefix": proto.dummy_prefix,
            "remove_extra_whitespaces": proto.remove_extra_whitespaces,
        }
    if proto.kind != "bpe":
        raise TokenizerError(
            f"llama.cpp has no SentencePiece {proto.kind} that falls back to bytes; train the kind bpe"
        )
    if proto.charsmap or proto.remove_extra_whitespaces:
        raise TokenizerError("llama.cpp normalises no text for SentencePiece BPE; this tokenizer does")
    return _spm(proto.texts, proto.scores, proto.types, proto.dummy_prefix)


def _spm(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], space_prefix: bool
) -> dict[str, Any]:
    return {
        "model": "llama",
        "pre": "default",
        **_listed(tokens, types),
        "scores": np.array(scores, np.float32),
        "add_space_prefix": space_prefix,
    }


def _unigram(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], charsmap: bytes
) -> dict[str, Any]:
    described = {"model": "t5", "pre": "default", **_listed(tokens, types)}
    described["scores"] = np.array(scores, np.float32)
    if charsmap:
        described["precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
    return described


def _of_content(codec: TokenizersCodec, tokenizer: Tokenizer) -> dict[str, Any]:
    content = codec.content
    tokens, types = _entries(codec)
    kind = content["model"].get("type") or "BPE"
    if codec.kind == "byte_bpe":
        return _byte_bpe(content, tokens, types, tokenizer)
    if kind == "WordPiece":
        return _wordpiece(content, tokens, types)
    normalizer = steps_of(content.get("normalizer"), "normalizers")
    before = [step.get("type") for step in steps_of(content.get("pre_tokenizer"), "pretokenizers")]
    if kind == "Unigram":
        tables = [step for step in normalizer if step.get("type") == "Precompiled"]
        if len(tables) != len(normalizer) or len(tables) > 1 or before != ["WhitespaceSplit", "Metaspace"]:
            raise TokenizerError(
                f"GGUF has no place for the normalisation {[step.get('type') for step in normalizer]} and "
                f"the cutting {before} of this unigram tokenizer; it has SentencePiece's table of characters"
            )
        scores = [score for _, score in content["model"]["vocab"]]
        scores += [0.0] * (len(tokens) - len(scores))
        charsmap = base64.b64decode(tables[0]["precompiled_charsmap"]) if tables else b""
        described = _unigram(tokens, scores, types, charsmap)
        return {**described, "add_space_prefix": True, "remove_extra_whitespaces": True}
    prefix = _spaces_only(content)
    if kind == "BPE" and content["model"].get("byte_fallback") and prefix is not None:
        unknown = codec.vocabulary.get("<unk>") if codec.unk_id is None else codec.unk_id
        if unknown is None:
            raise TokenizerError(
                "GGUF's SentencePiece needs an unknown token, and the vocabulary has no <unk>"
            )
        types[unknown] = UNKNOWN
        return _spm(tokens, _scores_of_merges(content, tokens), types, prefix)
    raise TokenizerError(f"GGUF has no form for this {codec.kind} tokenizer")


def _entries(codec: TokenizersCodec) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{i}]" for i in range(codec.vocab_size)]
    types = [UNUSED] * codec.vocab_size
    for text, i in codec.vocabulary.items():
        is_byte = codec.kind != "byte_bpe" and re.fullmatch(r"<0x[0-9A-F]{2}>", text)
        tokens[i], types[i] = text, BYTE if is_byte else NORMAL
    for token in codec.content.get("added_tokens") or []:
        types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    if codec.unk_id is not None:
        types[codec.unk_id] = UNKNOWN
    return tokens, types


def _byte_bpe(content: Content, tokens: list[str], types: list[int], tokenizer: Tokenizer) -> dict[str, Any]:
    cutting = cutting_of(content)
    if cutting is None:
        raise TokenizerError(
            "llama.cpp knows no name for the way in which this byte-level tokenizer cuts a text into words; "
            "SentencePiece (kind bpe) goes into GGUF as it is"
        )
    names = [name for name, known in CUTTINGS.items() if known == cutting]
    separated = tokenizer.cls_id is not None and _ends_with(tokenizer.frame) == tokenizer.sep_id
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    return {
        "model": "gpt2",
        "pre": "roberta-bpe" if separated and "roberta-bpe" in names else names[0],
        **_listed(tokens, types),
        "merges": merges,
    }


def _wordpiece(content: Content, tokens: list[str], types: list[int]) -> dict[str, Any]:
    rules = content.get("normalizer") or {}
    prefix = content["model"].get("continuing_subword_prefix", "##")
    before = [step.get("type") for step in steps_of(content.get("pre_tokenizer"), "pretokenizers")]
    if rules.get("type") != "BertNormalizer" or before != ["BertPreTokenizer"] or prefix != "##":
        raise TokenizerError(f"llama.cpp has BERT's WordPiece only, not one that cuts by {before}")
    if not (rules.get("handle_chinese_chars") and rules.get("clean_text")):
        raise TokenizerError("llama.cpp's WordPiece always sets Chinese characters apart; this one does not")

    def phantom(text: str, kind: int) -> str:
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            return text
        return text.removeprefix(prefix) if text.startswith(prefix) else SPACE + text

    lowercase, accents = bool(rules.get("lowercase")), rules.get("strip_accents")
    shown = [phantom(text, kind) for text, kind in zip(tokens, types, strict=True)]
    # There the unknown token is a control token like the others.
    return {
        "model": "bert",
        "pre": "default",
        **_listed(shown, [CONTROL if kind == UNKNOWN else kind for kind in types]),
        "normalizer.lowercase": lowercase,
        "normalizer.strip_accents": lowercase if accents is None else bool(accents),
    }


def _spaces_only(content: Content) -> bool | None:
    """Whether a space is put before texts; None where more than that and the spelling of spaces happens."""
    steps = steps_of(content.get("normalizer"), "normalizers")
    steps += steps_of(content.get("pre_tokenizer"), "pretokenizers")
    prefix = False
    for step in steps:
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif step.get("type") == "Metaspace" and not step.get("split", True):
            prefix = prefix or step.get("prepend_scheme", "always") != "never"
        elif step.get("type") != "Replace" or step.get("pattern") != {"String": " "}:
            return None
    return prefix


def _scores_of_merges(content: Content, tokens: list[str]) -> list[float]:
    """Scores in the order of the merges, which is all that matters of them."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(content["model"]["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    return [-float(ranks[text]) if text in ranks else LEAST for text in tokens]
