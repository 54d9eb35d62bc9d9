"""A tokenizer for tests: one token a byte, ChatML rendering, nothing to train."""

from __future__ import annotations

import codecs
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
PAD, BOS, EOS, IM_START, IM_END = range(len(SPECIAL))
FIRST_BYTE = len(SPECIAL)


class ByteTokenizer:
    """The whole tokenizer contract over bytes: ids 0 to 4 are special, 5 + b is byte b.

    Args:
        vocab_size: may be set below 261 to play a tokenizer whose vocabulary is too small.
    """

    def __init__(self, vocab_size: int = FIRST_BYTE + 256) -> None:
        self.vocab_size = vocab_size
        self.pad_id, self.eos_id = PAD, EOS
        self.bos_id: int | None = BOS
        self.cls_id = self.sep_id = self.mask_id = self.unk_id = None
        self.sentinel_ids: tuple[int, ...] = ()
        self.lossless = True
        self.add_bos = True
        self.stop_ids = (IM_END, EOS)
        self.chat_template: str | None = "chatml"

    @property
    def fingerprint(self) -> str:
        """Of everything that determines ids and rendering."""
        return hashlib.sha256(f"byte tokenizer {self.vocab_size}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Bytes as ids, never a special one."""
        return [FIRST_BYTE + byte for byte in text.encode()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def encode_document(self, text: str) -> list[int]:
        """`[bos] + ids + [eos]`."""
        return [BOS, *self.encode(text), EOS]

    def encode_prompt(self, text: str) -> list[int]:
        """`[bos] + ids`."""
        return [BOS, *self.encode(text)]

    def encode_for_model(self, text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
        """`[bos] + ids` of one text or of two, with their token types."""
        ids, types = self.encode_prompt(text), [0] * (1 + len(text.encode()))
        if pair is not None:
            ids, types = ids + self.encode_prompt(pair), types + [1] * (1 + len(pair.encode()))
        return ids, types

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of the ids; special tokens by name unless skipped; broken UTF-8 becomes U+FFFD."""
        return b"".join(
            self.token_bytes(i) if i >= FIRST_BYTE else b"" if skip_special else SPECIAL[i].encode()
            for i in ids
        ).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The byte of a token; nothing for special tokens."""
        return bytes([token - FIRST_BYTE]) if token >= FIRST_BYTE else b""

    def token_text(self, token: int) -> str:
        """A token for display."""
        if token < FIRST_BYTE:
            return SPECIAL[token]
        byte = token - FIRST_BYTE
        return chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>"

    @property
    def byte_lengths(self) -> np.ndarray:
        """int32 [vocab]: bytes per token."""
        return np.array([len(self.token_bytes(i)) for i in range(self.vocab_size)], np.int32)

    @property
    def continues_word(self) -> np.ndarray:
        """bool [vocab]: every byte but a blank."""
        pieces = (self.token_bytes(i) for i in range(self.vocab_size))
        return np.array([piece != b"" and not piece.isspace() for piece in pieces], np.bool_)

    def stream(self, skip_special: bool = True) -> ByteStream:
        """A decoder that never emits half a character; special tokens have no bytes."""
        return ByteStream(self)

    def answer_stream(self) -> ByteStream:
        """`stream` of what a model says."""
        return ByteStream(self)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> tuple[list[int], list[int]]:
        """ChatML; weight 1 on the assistant's content and the `<|im_end|>` that closes it."""
        tokens, weights = [BOS], [0]

        def add(ids: list[int], weight: int) -> None:
            tokens.extend(ids)
            weights.extend([weight] * len(ids))

        if tools:
            add([IM_START, *self.encode("tools\n" + json.dumps(list(tools))), IM_END, *self.encode("\n")], 0)
        for message in messages:
            learned = int(message["role"] == "assistant")
            add([IM_START, *self.encode(f"{message['role']}\n")], 0)
            add([*self.encode(message["content"] or ""), IM_END], learned)
            add(self.encode("\n"), 0)
        if add_generation_prompt:
            add([IM_START, *self.encode("assistant\n")], 0)
        return tokens, weights

    def save(self, folder: str | Path) -> None:
        """Writes the little there is."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "byte_tokenizer.json").write_text(json.dumps({"vocab_size": self.vocab_size}))


class ByteStream:
    """Gathers bytes until they are whole characters."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes."""
        return self.decoder.decode(self.tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What is left; an incomplete character becomes U+FFFD."""
        return self.decoder.decode(b"", True)


class SpecialByteTokenizer(ByteTokenizer):
    """Bytes, and after them the special tokens of BERT, T5 and GLM: `special_ids` has their spellings.

    A byte continues a word unless it is a blank, ASCII punctuation, or the first of a character of several.

    Args:
        sentinels: how many `<extra_id_…>` there are.
    """

    def __init__(self, sentinels: int = 100) -> None:
        super().__init__()
        names = ["[CLS]", "[SEP]", "[MASK]", "[sMASK]", "[gMASK]", "<|startofpiece|>", "<|endofpiece|>"]
        names += [f"<extra_id_{number}>" for number in range(sentinels)]
        added = {name: self.vocab_size + number for number, name in enumerate(names)}
        self.special_ids = {**{name: number for number, name in enumerate(SPECIAL)}, **added}
        self.spellings = {number: name for name, number in self.special_ids.items()}
        self.vocab_size += len(names)
        self.cls_id, self.sep_id, self.mask_id = (added[name] for name in ("[CLS]", "[SEP]", "[MASK]"))
        self.sentinel_ids = tuple(added[name] for name in names if name.startswith("<extra_id_"))

    def frame(self, first: Sequence[int], second: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """`[CLS] first [SEP]`, or `[CLS] first [SEP] second [SEP]`, and the types of the tokens."""
        ids = [self.cls_id, *first, self.sep_id]
        types = [0] * len(ids)
        if second is not None:
            ids += [*second, self.sep_id]
            types += [1] * (len(second) + 1)
        return ids, types

    def encode_for_model(self, text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
        """The framed ids of one text or two, and their types."""
        return self.frame(self.encode(text), None if pair is None else self.encode(pair))

    @property
    def continues_word(self) -> np.ndarray:
        """bool [vocab_size]."""
        continues = np.zeros(self.vocab_size, bool)
        for byte in range(256):
            begins = byte >= 0xC0 or (byte < 0x80 and not chr(byte).isalnum())
            continues[FIRST_BYTE + byte] = not begins
        return continues

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of the ids; special tokens by name unless skipped; broken UTF-8 becomes U+FFFD."""
        return b"".join(
            (b"" if skip_special else self.spellings[i].encode())
            if i in self.spellings
            else self.token_bytes(i)
            for i in map(int, ids)
        ).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The byte of a token; nothing for special tokens."""
        return b"" if token in self.spellings else super().token_bytes(token)

    def token_text(self, token: int) -> str:
        """A token for display."""
        return self.spellings[token] if token in self.spellings else super().token_text(token)
