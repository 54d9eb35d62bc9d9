"""SentencePiece models (unigram and BPE) as a codec, which loses nothing where the model does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sentencepiece

from hllm_jax.tokenizers.codec import SpecialToken
from hllm_jax.tokenizers.errors import TokenizerError, refuse
from hllm_jax.tokenizers.proto import Proto
from hllm_jax.tokenizers.spelling import SPACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hllm_jax.tokenizers.frame import Frame

WINDOW = 1000  # characters encoded at once: BPE over a whole book is three times slower


class SentencePieceCodec:
    """A SentencePiece model.

    Where the model loses nothing itself (identity normalisation, byte fallback, no dummy prefix), two things
    are added: U+2581 in a text is emitted as its three byte pieces, because the model would read it as a
    space; and long texts are encoded in windows, cut only between two characters that no piece joins, so
    that the ids are those of the whole text.

    Args:
        model: the serialised model, the content of a `tokenizer.model`.

    Raises:
        TokenizerError: the bytes are no SentencePiece model.
    """

    FILE = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        self.proto = Proto.read(model)
        try:
            processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise TokenizerError(f"not a SentencePiece model ({len(model)} bytes): {error}") from None
        size: int = processor.vocab_size()
        self._model, self._processor = model, processor
        self.vocab_size = size
        texts = [processor.id_to_piece(i) for i in range(size)]
        self.special = tuple(
            SpecialToken(texts[i], i)
            for i in range(size)
            if processor.is_control(i) or processor.is_unknown(i)
        )
        self.pieces = tuple(self._bytes(i, text) for i, text in enumerate(texts))
        self.adds_space: bool = processor.normalize("a") == SPACE + "a"
        self.adds_space_once = self.trails_space = False
        self.unk_id: int | None = processor.unk_id()
        bytes_of = {self.pieces[i]: i for i in range(size) if processor.is_byte(i)}
        self._space_ids = [bytes_of[bytes([b])] for b in SPACE.encode()] if len(bytes_of) == 256 else []
        self._exact = bool(self._space_ids) and processor.normalize(" a  b\n") == "\u2581a\u2581\u2581b\n"
        self.lossless = self._exact
        self.kind = self.proto.kind
        ordinary = [
            piece.decode() for i, piece in enumerate(self.pieces) if piece and not processor.is_byte(i)
        ]
        self._joined = {piece[k : k + 2] for piece in ordinary for k in range(len(piece) - 1)}

    def _bytes(self, token: int, text: str) -> bytes:
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        if self._processor.is_byte(token):
            return bytes([int(text[3:5], 16)])
        return text.replace(SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Ids of an ordinary text."""
        if not isinstance(text, str):  # the library also takes bytes and lists
            refuse([text])
        if len(text) > WINDOW or SPACE in text:
            return self.encode_batch([text])[0]
        try:
            return self._processor.encode(text)
        except (RuntimeError, UnicodeEncodeError, TypeError):
            refuse([text])
            raise

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, on all cores."""
        windows: list[str] = []
        ends: list[int] = []
        after_bar: set[int] = set()
        for text in texts:
            if not isinstance(text, str):
                refuse([text])
            if not self._exact:
                windows.append(text)
            else:
                for k, part in enumerate(text.split(SPACE)):
                    if k:
                        after_bar.add(len(windows))
                    windows.extend(self._cut(part))
            ends.append(len(windows))
        try:
            encoded: list[list[int]] = self._processor.encode(windows) if windows else []
        except (RuntimeError, UnicodeEncodeError, TypeError):
            refuse(list(texts))
            raise
        start = 0
        result: list[list[int]] = []
        for end in ends:
            if end - start == 1 and start not in after_bar:
                result.append(encoded[start])
            else:
                ids: list[int] = []
                for k in range(start, end):
                    if k in after_bar:
                        ids += self._space_ids
                    ids += encoded[k]
                result.append(ids)
            start = end
        return result

    def _cut(self, text: str) -> Iterator[str]:
        """Windows of about `WINDOW` characters whose encodings concatenate to the encoding of the text."""
        start, size, joined = 0, len(text), self._joined
        while size - start > WINDOW:
            cut = start + WINDOW
            while cut > start and text[cut - 1 : cut + 1] in joined:
                cut -= 1
            if cut == start:
                cut = start + WINDOW + 1
                while cut < size and text[cut - 1 : cut + 1] in joined:
                    cut += 1
            yield text[start:cut]
            start = cut
        yield text[start:]

    def framed(self, frame: Frame) -> SentencePieceCodec:
        """Itself: the model says nothing of what stands around texts."""
        return self

    def files(self) -> dict[str, bytes]:
        """The model as it was trained or read."""
        return {self.FILE: self._model}
