"""The `tokenizers` library as a codec: our own byte-level BPE and the `tokenizer.json` of others."""

from __future__ import annotations

import functools
import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import tokenizers

from hllm_jax.tokenizers.codec import SpecialToken
from hllm_jax.tokenizers.errors import TokenizerError, refuse
from hllm_jax.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SPACE = "\u2581"


class TokenizersCodec:
    """A `tokenizer.json`.

    Args:
        definition: the text of the file.

    Raises:
        TokenizerError: it is no tokenizer, or its decoder is of a kind whose bytes are not known.
    """

    FILE = "tokenizer.json"

    def __init__(self, definition: str) -> None:
        try:
            content = json.loads(definition)
            model = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the Rust side raises bare Exception
            raise TokenizerError(f"not a tokenizer.json ({len(definition)} characters): {error}") from None
        model.no_truncation()
        model.no_padding()
        # Not stored in the file: without it a text that spells a special token becomes that token.
        model.encode_special_tokens = True
        self._definition, self._model = definition, model
        added = content.get("added_tokens") or []
        self.special = tuple(
            SpecialToken(t["content"], t["id"], bool(t.get("lstrip")), bool(t.get("rstrip")))
            for t in added
            if t.get("special")
        )
        vocabulary = model.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise TokenizerError("the tokenizer.json has an empty vocabulary")
        self.vocab_size = max(vocabulary.values()) + 1
        spell, self.adds_space = _byte_speller(content)
        before = content.get("pre_tokenizer") or {}
        steps = before.get("pretokenizers", [before]) if before.get("type") == "Sequence" else [before]
        self.adds_space_once = any(step.get("prepend_scheme") == "first" for step in steps)
        pieces = [b""] * self.vocab_size
        for text, token in vocabulary.items():
            pieces[token] = spell(text)
        for token in added:
            pieces[token["id"]] = b"" if token.get("special") else token["content"].encode()
        self.pieces = tuple(pieces)
        unknown = content["model"].get("unk_token")
        self._forbidden = frozenset(t.id for t in self.special if t.text != unknown)
        spelled = "|".join(re.escape(t.text) for t in self.special if len(t.text) > 1) or r"(?!)"
        self._spelling = re.compile(f"(?=(?:{spelled}))", re.DOTALL)
        kind = content["model"].get("type") or "BPE"
        self.kind = "byte_bpe" if spell is _byte_level and kind == "BPE" else kind.lower()

    def encode(self, text: str) -> list[int]:
        """Ids of an ordinary text."""
        try:
            ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            refuse([text])
            raise
        return ids if self._forbidden.isdisjoint(ids) else self._encode_in_parts(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, on all cores."""
        try:
            encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            refuse(list(texts))
            raise
        result: list[list[int]] = [encoding.ids for encoding in encodings]
        for k, ids in enumerate(result):
            if not self._forbidden.isdisjoint(ids):
                result[k] = self._encode_in_parts(texts[k])
        return result

    def _encode_in_parts(self, text: str) -> list[int]:
        """For models whose ordinary pieces include spellings of special tokens (Unigram, WordPiece)."""
        cuts = [0, *(match.start() + 1 for match in self._spelling.finditer(text)), len(text)]
        ids: list[int] = []
        for start, end in itertools.pairwise(cuts):
            ids += self._model.encode(text[start:end], add_special_tokens=False).ids
        return [token for token in ids if token not in self._forbidden]

    def starts_with(self, token: int | None) -> bool:
        """Whether the file's own post-processor puts this id before a text."""
        ids = self._model.encode("a", add_special_tokens=True).ids
        return token is not None and ids[:1] == [token]

    def files(self) -> dict[str, bytes]:
        """The file as it was trained or read."""
        return {self.FILE: self._definition.encode()}


@functools.cache
def byte_alphabet() -> Mapping[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {**{chr(b): b for b in itself}, **{chr(0x100 + k): b for k, b in enumerate(others)}}


def _byte_level(text: str) -> bytes:
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in text) if all(c in alphabet for c in text) else text.encode()


def _sentencepiece(text: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE, " ").encode()


def _wordpiece(text: str) -> bytes:
    return text.removeprefix("##").encode() if text.startswith("##") else b" " + text.encode()


def _byte_speller(content: Mapping[str, Any]) -> tuple[Any, bool]:
    """The function from a vocabulary entry to its bytes, and whether decoding removes a first space."""
    decoder = content.get("decoder") or {}
    steps = decoder.get("decoders", [decoder]) if decoder.get("type") == "Sequence" else [decoder]
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level, False
    if kinds & {"Metaspace", "ByteFallback"} or any(
        SPACE in json.dumps(step, ensure_ascii=False) for step in steps
    ):
        strips = any(step.get("type") == "Strip" and step.get("start", 0) > 0 for step in steps)
        prepends = any(
            step.get("type") == "Metaspace" and (step.get("prepend_scheme") or "always") != "never"
            for step in steps
        )
        return _sentencepiece, strips or prepends
    if "WordPiece" in kinds:
        return _wordpiece, True
    raise TokenizerError(
        f"the decoder {sorted(map(str, kinds))} of this tokenizer.json is not known; "
        "known are ByteLevel, Metaspace, ByteFallback and WordPiece"
    )


def from_tokenizer_json(
    definition: str,
    *,
    bos: str | int | None = None,
    eos: str | int | None = None,
    pad: str | int | None = None,
    stop: Sequence[str | int] = (),
    add_bos: bool | None = None,
    chat_template: str | None = None,
) -> Tokenizer:
    """A tokenizer from the text of a Hugging Face `tokenizer.json`.

    Args:
        definition: the text of the file.
        bos: begin of a document, by spelling or id.
        eos: end of a document, by spelling or id.
        pad: what fills rows; `eos` if there is none, which is harmless.
        stop: further ends of an answer, for example from `generation_config.json`.
        add_bos: None: as the file's post-processor does.
        chat_template: Jinja text.

    Raises:
        TokenizerError: not a tokenizer, no end token, or a token that is not in the vocabulary.
    """
    codec = TokenizersCodec(definition)
    ids = {token.text: token.id for token in codec.special}

    def find(name: str, token: str | int | None) -> int | None:
        if token is None or isinstance(token, int):
            return token
        found = ids.get(token, codec._model.token_to_id(token))
        if found is None:
            raise TokenizerError(f"the {name} token {token!r} is not in the vocabulary of the tokenizer.json")
        return found

    bos_id, eos_id, pad_id = find("bos", bos), find("eos", eos), find("pad", pad)
    if eos_id is None:
        raise TokenizerError(
            "no end-of-document token is known: give `eos`, or an `eos_token` in tokenizer_config.json"
        )
    stops = [found for token in stop if (found := find("stop", token)) is not None]
    return Tokenizer(
        codec,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=eos_id if pad_id is None else pad_id,
        stop_ids=[*stops, *known_ends(ids)],
        add_bos=codec.starts_with(bos_id) if add_bos is None else add_bos,
        chat_template=chat_template,
    )


# Control tokens that end an answer in published models, whatever their config files say or forget.
ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|eot|>",
    "<end_of_turn>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
)


def known_ends(special: Mapping[str, int]) -> list[int]:
    """Ids of the control tokens whose name says that an answer ends."""
    return [special[name] for name in ENDS if name in special]
