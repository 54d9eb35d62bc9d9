"""The `tokenizers` library as a codec: our own byte-level BPE and WordPiece, and the files of others."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING

import tokenizers

from hllm_jax.tokenizers.assembly import assemble
from hllm_jax.tokenizers.codec import SpecialToken
from hllm_jax.tokenizers.definitions import HIDDEN, Content
from hllm_jax.tokenizers.errors import TokenizerError, refuse
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.spelling import byte_level, spelling_of, steps_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.tokenizers.tokenizer import Tokenizer


class TokenizersCodec:
    """A `tokenizer.json`.

    Args:
        definition: the text of the file, or its content.

    Raises:
        TokenizerError: it is no tokenizer, or its decoder is of a kind whose bytes are not known.

    Attributes:
        content: of the file.
        frame: what its post-processor writes around a text.
    """

    FILE = "tokenizer.json"

    def __init__(self, definition: str | Content) -> None:
        try:
            content: Content = json.loads(definition) if isinstance(definition, str) else definition
            hidden = _hide_control_pieces(content)
            model = tokenizers.Tokenizer.from_str(
                definition
                if isinstance(definition, str) and not hidden
                else json.dumps(_renamed(content, hidden), ensure_ascii=False)
            )
        except Exception as error:  # the Rust side raises bare Exception
            raise TokenizerError(f"not a tokenizer.json ({len(definition)} characters): {error}") from None
        model.no_truncation()
        model.no_padding()
        # Not stored in the file: without it a text that spells a special token becomes that token.
        model.encode_special_tokens = True
        self._definition, self._model, self.content = definition, model, content
        added = content.get("added_tokens") or []
        self.special = tuple(
            SpecialToken(t["content"], t["id"], bool(t.get("lstrip")), bool(t.get("rstrip")))
            for t in added
            if t.get("special")
        )
        shown = {name: text for text, name in hidden.items()}
        #: Id of every entry.
        self.vocabulary: dict[str, int] = {
            shown.get(text, text): i for text, i in model.get_vocab(with_added_tokens=True).items()
        }
        if not self.vocabulary:
            raise TokenizerError("the tokenizer.json has an empty vocabulary")
        for token in added:
            if self.vocabulary.get(token["content"]) != token["id"]:
                raise TokenizerError(
                    f"the tokenizer.json gives the added token {token['content']!r} the id {token['id']}, "
                    f"its place in the vocabulary is {self.vocabulary.get(token['content'])}"
                )
        self.vocab_size = max(self.vocabulary.values()) + 1
        spelling = spelling_of(content)
        self.adds_space, self.trails_space = spelling.adds_space, spelling.trails_space
        before = steps_of(content.get("pre_tokenizer"), "pretokenizers")
        self.adds_space_once = any(step.get("prepend_scheme") == "first" for step in before)
        pieces = [b""] * self.vocab_size
        for text, token in self.vocabulary.items():
            pieces[token] = spelling.bytes_of(text)
        for token in added:
            pieces[token["id"]] = b"" if token.get("special") else token["content"].encode()
        self.pieces = tuple(pieces)
        details = content["model"]
        unknown = details.get("unk_token")
        self.unk_id: int | None = self.vocabulary.get(unknown) if unknown else details.get("unk_id")
        self._forbidden = frozenset(t.id for t in self.special if t.id != self.unk_id)
        spelled = "|".join(re.escape(t.text) for t in self.special if len(t.text) > 1) or r"(?!)"
        self._spelling = re.compile(f"(?=(?:{spelled}))", re.DOTALL)
        kind = details.get("type") or "BPE"
        of_bytes = spelling.bytes_of is byte_level
        self.kind = "byte_bpe" if of_bytes and kind == "BPE" else kind.lower()
        prefixed = any(step.get("add_prefix_space") or "prepend_scheme" in step for step in before)
        every_byte = of_bytes or bool(details.get("byte_fallback"))
        self.lossless = every_byte and not prefixed and content.get("normalizer") is None
        self.frame = Frame.of_post_processor(content.get("post_processor"))

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
        """For models whose ordinary entries include spellings of special tokens."""
        cuts = [0, *(match.start() + 1 for match in self._spelling.finditer(text)), len(text)]
        ids: list[int] = []
        for start, end in itertools.pairwise(cuts):
            ids += self._model.encode(text[start:end], add_special_tokens=False).ids
        return [token for token in ids if token not in self._forbidden]

    def framed(self, frame: Frame) -> TokenizersCodec:
        """With another post-processor, if its own does something else."""
        if frame == self.frame:
            return self
        names = {i: text for text, i in self.vocabulary.items()}
        return TokenizersCodec({**self.content, "post_processor": frame.post_processor(names)})

    def files(self) -> dict[str, bytes]:
        """The file as it was trained or read."""
        text = self._definition
        return {self.FILE: (text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)).encode()}


def _hide_control_pieces(content: Content) -> dict[str, str]:
    """New names for the control tokens of a Unigram model, which finds all its entries in a text.

    A name with a space is found in no text, because the spaces of texts are spelled U+2581 there. (A model
    that keeps spaces hides these entries by their score.)
    """
    details = content["model"]
    if details.get("type") != "Unigram":
        return {}
    pieces: list[tuple[str, float]] = details["vocab"]
    special = {token["content"] for token in content.get("added_tokens") or [] if token.get("special")}
    special.add(pieces[details["unk_id"]][0] if details.get("unk_id") is not None else "")
    return {text: f" {i}" for i, (text, score) in enumerate(pieces) if text in special and score > HIDDEN}


def _renamed(content: Content, names: dict[str, str]) -> Content:
    if not names:
        return content
    details = content["model"]
    added = [
        {**token, "content": names.get(token["content"], token["content"])}
        for token in content["added_tokens"] or []
    ]
    pieces = [[names.get(text, text), score] for text, score in details["vocab"]]
    return {
        **content,
        "added_tokens": added,
        "post_processor": None,
        "model": {**details, "vocab": pieces},
    }


def from_tokenizer_json(
    definition: str | Content,
    *,
    bos: str | int | None = None,
    eos: str | int | None = None,
    pad: str | int | None = None,
    cls: str | int | None = None,
    sep: str | int | None = None,
    mask: str | int | None = None,
    stop: Sequence[str | int] = (),
    add_bos: bool | None = None,
    add_eos: bool | None = None,
    chat_template: str | None = None,
) -> Tokenizer:
    """A tokenizer from a Hugging Face `tokenizer.json`.

    Args:
        definition: the text of the file, or its content.
        bos: begin of a document, by spelling or id.
        eos: end of a document, by spelling or id; a separator or an end in `stop` serves where there is none.
        pad: what fills rows; `eos` if there is none, which is harmless.
        cls, sep, mask: of encoders; the usual spellings are found by themselves.
        stop: further ends of an answer, for example from `generation_config.json`.
        add_bos, add_eos: None: as the file's post-processor does.
        chat_template: Jinja text.

    Raises:
        TokenizerError: not a tokenizer, no end token, or a token that is not in the vocabulary.
    """
    codec = TokenizersCodec(definition)
    return assemble(
        codec,
        codec.vocabulary,
        {"bos": bos, "eos": eos, "pad": pad, "cls": cls, "sep": sep, "mask": mask},
        frame=codec.frame,
        stop=stop,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=chat_template,
    )
