"""Which bytes of a text an entry of a foreign vocabulary stands for."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hllm_jax.tokenizers.errors import TokenizerError

SPACE = "\u2581"  # how SentencePiece writes a space


class Spelling(NamedTuple):
    """How a vocabulary writes bytes.

    Attributes:
        bytes_of: from an entry to its bytes.
        adds_space: every text begins with a space that was not in it.
        trails_space: an entry that ends a word carries the space after it, so every text ends with one.
    """

    bytes_of: Callable[[str], bytes]
    adds_space: bool = False
    trails_space: bool = False


@functools.cache
def byte_alphabet() -> Mapping[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {**{chr(b): b for b in itself}, **{chr(0x100 + k): b for k, b in enumerate(others)}}


def byte_level(text: str) -> bytes:
    """Of GPT-2's vocabulary and its successors."""
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in text) if all(c in alphabet for c in text) else text.encode()


def sentencepiece(text: str) -> bytes:
    """Of SentencePiece: U+2581 is a space, `<0x0A>` a byte."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE, " ").encode()


def _wordpiece(prefix: str, text: str) -> bytes:
    return text[len(prefix) :].encode() if text.startswith(prefix) else b" " + text.encode()


def _ending(suffix: str, text: str) -> bytes:
    return text[: -len(suffix)].encode() + b" " if text.endswith(suffix) else text.encode()


def steps_of(part: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer, … of a tokenizer.json as a list, whether it is a Sequence or one alone."""
    if not part:
        return []
    return list(part.get(inside, [])) if part.get("type") == "Sequence" else [part]


def spelling_of(content: Mapping[str, Any]) -> Spelling:
    """The spelling of a tokenizer.json, told by its decoder.

    Raises:
        TokenizerError: a decoder whose bytes are not known.
    """
    steps = steps_of(content.get("decoder"), "decoders")
    of_kind = {step.get("type"): step for step in steps}
    if "ByteLevel" in of_kind:
        return Spelling(byte_level)
    if {"Metaspace", "ByteFallback"} & set(of_kind) or any(
        SPACE in json.dumps(step, ensure_ascii=False) for step in steps
    ):
        strips = any(step.get("type") == "Strip" and step.get("start", 0) > 0 for step in steps)
        prepends = any(
            step.get("type") == "Metaspace" and (step.get("prepend_scheme") or "always") != "never"
            for step in steps
        )
        return Spelling(sentencepiece, strips or prepends)
    if "WordPiece" in of_kind:
        prefix = of_kind["WordPiece"].get("prefix", "##")
        return Spelling(functools.partial(_wordpiece, prefix), adds_space=True)
    if "BPEDecoder" in of_kind:
        suffix = of_kind["BPEDecoder"].get("suffix", "</w>")
        return Spelling(functools.partial(_ending, suffix), trails_space=True)
    raise TokenizerError(
        f"the decoder {sorted(map(str, of_kind))} of this tokenizer.json is not known; "
        "known are ByteLevel, Metaspace, ByteFallback, WordPiece and BPEDecoder"
    )
