"""The file of a SentencePiece model as plain data, read, written, and said as a tokenizer.json."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from hllm_jax.tokenizers.definitions import HIDDEN, AddedToken, Content, definition, precompiled
from hllm_jax.tokenizers.errors import TokenizerError
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.spelling import SPACE

# Types of pieces; GGUF uses the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclasses.dataclass(frozen=True)
class Proto:
    """What a `tokenizer.model` or `spiece.model` says.

    Attributes:
        kind: "unigram" or "bpe" ("word" and "char" exist too).
        texts, scores, types: of each piece, by id.
        charsmap: compiled normalisation table, empty for none.
        dummy_prefix: a text gets a space before it.
        remove_extra_whitespaces: blanks at the ends and doubled ones are dropped.
        byte_fallback: characters without a piece become their bytes.
    """

    kind: str
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    byte_fallback: bool = False

    @property
    def unknown(self) -> int:
        """The id of the unknown piece.

        Raises:
            TokenizerError: there is none, or more than one.
        """
        found = [i for i, kind in enumerate(self.types) if kind == UNKNOWN]
        if len(found) != 1:
            raise TokenizerError(f"the pieces hold {len(found)} unknown tokens, it must be one")
        return found[0]

    @property
    def exact(self) -> bool:
        """Whether every text survives: nothing is normalised, and what has no piece becomes bytes."""
        plain = not (self.charsmap or self.dummy_prefix or self.remove_extra_whitespaces)
        return plain and self.byte_fallback and self.types.count(BYTE) == 256

    @classmethod
    def read(cls, model: bytes) -> Proto:
        """From the bytes of a file.

        Raises:
            TokenizerError: they are no SentencePiece model.
        """
        if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", model):
            raise TokenizerError(
                "not a SentencePiece model but a list of byte pairs (tiktoken), which leaves out how a text "
                "is cut into words; a tokenizer.json is needed"
            )
        proto = _message()
        try:
            proto.ParseFromString(model)
        except Exception as error:  # the class of the error depends on protobuf's implementation
            raise TokenizerError(f"not a SentencePiece model ({len(model)} bytes): {error}") from None
        if not proto.pieces:
            raise TokenizerError(f"not a SentencePiece model: {len(model)} bytes without a single piece")
        rules = proto.normalizer_spec
        return cls(
            kind=KINDS.get(proto.trainer_spec.model_type, "sentencepiece"),
            texts=tuple(piece.piece for piece in proto.pieces),
            scores=tuple(piece.score for piece in proto.pieces),
            types=tuple(piece.type for piece in proto.pieces),
            charsmap=bytes(rules.precompiled_charsmap),
            dummy_prefix=rules.add_dummy_prefix,
            remove_extra_whitespaces=rules.remove_extra_whitespaces,
            byte_fallback=proto.trainer_spec.byte_fallback,
        )

    def write(self) -> bytes:
        """The bytes of a file."""
        proto = _message()
        for text, score, kind in zip(self.texts, self.scores, self.types, strict=True):
            proto.pieces.add(piece=text, score=score, type=kind)
        trained, rules = proto.trainer_spec, proto.normalizer_spec
        trained.model_type = next(number for number, kind in KINDS.items() if kind == self.kind)
        trained.byte_fallback = self.byte_fallback
        for name in ("bos", "eos", "pad"):
            setattr(trained, f"{name}_id", -1)
        trained.unk_id, trained.unk_piece = self.unknown, self.texts[self.unknown]
        rules.name = "identity"
        rules.precompiled_charsmap = self.charsmap
        rules.add_dummy_prefix = self.dummy_prefix
        rules.remove_extra_whitespaces = self.remove_extra_whitespaces
        return proto.SerializeToString()

    def merges(self) -> list[tuple[str, str]]:
        """What BPE merges, best first: every cut of a piece into two pieces, by the piece's score."""
        usable = (NORMAL, USER_DEFINED, UNUSED)
        pieces = {
            t: s for t, s, kind in zip(self.texts, self.scores, self.types, strict=True) if kind in usable
        }
        best_first = sorted(pieces, key=lambda text: -pieces[text])  # stable: equal scores by id
        return [
            (text[:cut], text[cut:])
            for text in best_first
            for cut in range(1, len(text))
            if text[:cut] in pieces and text[cut:] in pieces
        ]

    def tokenizer_json(self, frame: Frame | None) -> Content:
        """The same tokenizer for the `tokenizers` library.

        Where nothing is normalised, a space is written as itself, so that U+2581 in a text stays what it is.

        Raises:
            TokenizerError: a kind that the library does not have.
        """
        if self.kind not in ("bpe", "unigram"):
            raise TokenizerError(
                f"a SentencePiece model of the kind {self.kind!r} cannot be a tokenizer.json"
            )
        spelled = [
            text.replace(SPACE, " ") if self.exact and kind not in (CONTROL, UNKNOWN) else text
            for text, kind in zip(self.texts, self.types, strict=True)
        ]
        model: Content = {"byte_fallback": self.byte_fallback}
        if self.kind == "bpe":
            merges = self.merges()
            if self.exact:
                merges = [(left.replace(SPACE, " "), right.replace(SPACE, " ")) for left, right in merges]
            vocabulary = {text: i for i, text in enumerate(spelled)}
            model |= {"type": "BPE", "unk_token": self.texts[self.unknown], "fuse_unk": True}
            model |= {"vocab": vocabulary, "merges": [list(pair) for pair in merges]}
        else:
            # Where nothing falls back to bytes the lowest score says what an unknown character costs.
            hidden = (CONTROL, BYTE) if self.byte_fallback else ()
            scores = (
                HIDDEN if kind in hidden else s for s, kind in zip(self.scores, self.types, strict=True)
            )
            model |= {
                "type": "Unigram",
                "unk_id": self.unknown,
                "vocab": [*map(list, zip(spelled, scores, strict=True))],
            }
        return definition(
            model,
            added=[
                AddedToken(i, spelled[i], special=kind != USER_DEFINED)
                for i, kind in enumerate(self.types)
                if kind in (UNKNOWN, CONTROL, USER_DEFINED)
            ],
            normalizer=[] if self.exact else self._normalizer(),
            decoder=self._decoder(),
            frame=frame,
        )

    def _normalizer(self) -> list[Content]:
        steps = [precompiled(self.charsmap)] if self.charsmap else []
        if self.remove_extra_whitespaces:
            steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
            steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        if self.dummy_prefix:
            steps.append({"type": "Prepend", "prepend": SPACE})
        return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]

    def _decoder(self) -> list[Content]:
        steps: list[Content] = []
        if not self.exact:
            steps.append({"type": "Replace", "pattern": {"String": SPACE}, "content": " "})
        steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
        if self.dummy_prefix:
            steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return steps


def _message() -> Any:
    from sentencepiece import sentencepiece_model_pb2  # needs protobuf's Python part

    module: Any = sentencepiece_model_pb2
    return module.ModelProto()
