"""The one tokenizer interface: text and conversations to ids, and ids to text."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm_jax.tokenizers.errors import TemplateError, TokenizerError
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.messages import check_messages, check_tools
from hllm_jax.tokenizers.stream import StreamDecoder
from hllm_jax.tokenizers.template import BEGIN, END, ChatTemplate, Mark

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from hllm_jax.tokenizers.codec import Codec
    from hllm_jax.tokenizers.messages import Message

ADVICE = (
    "the trained part of this template cannot be found from its text; mark it in the template with "
    "{% generation %}…{% endgeneration %} around what the assistant writes, its end token included"
)


class Tokenizer:
    """Text and conversations to ids and back.

    Nothing is ever derived by searching ids: special tokens come from the functions here and from templates,
    training weights from the spans of the template. A foreign tokenizer may therefore use one id for several
    purposes (pad and end, begin and start of turn).

    Args:
        codec: ordinary text to ids, and the bytes of each id.
        bos_id: begin of a document; None where there is none.
        eos_id: end of a document.
        pad_id: fills rows; its positions carry weight 0 wherever they come from.
        cls_id: begins what an encoder reads; None where there is none, as for the next two.
        sep_id: separates texts that an encoder reads together.
        mask_id: stands for what an encoder has to guess.
        sentinel_ids: stand for the spans that an encoder-decoder has to guess, `<extra_id_0>` first.
        stop_ids: ends of an answer; `eos_id` and the end of turn that the template writes are added.
        add_bos: documents and prompts begin with `bos_id`.
        frame: the special tokens that the model sees around one and around two texts; None is begin of
            document before each, where `add_bos` says so.
        chat_template: Jinja text; None where the model has none.

    Raises:
        TokenizerError: an id is outside the vocabulary, or the template is no valid Jinja.

    Attributes:
        vocab_size: number of ids, one above the largest.
        kind: of the codec, for display.
        special_ids: spelling to id of every control token.
        unk_id: what stands for characters without a token; None where every text can be said.
        lossless: `decode(encode(text)) == text` for every text. Every tokenizer trained here is, but for kind
            "wordpiece"; a foreign one may change case, blanks or forms of characters.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        bos_id: int | None,
        eos_id: int,
        pad_id: int,
        cls_id: int | None = None,
        sep_id: int | None = None,
        mask_id: int | None = None,
        sentinel_ids: Sequence[int] = (),
        stop_ids: Sequence[int] = (),
        add_bos: bool = True,
        frame: Frame | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.codec = codec
        self.vocab_size, self.kind = codec.vocab_size, codec.kind
        self.unk_id, self.lossless = codec.unk_id, codec.lossless
        self.special_ids: Mapping[str, int] = {token.text: token.id for token in codec.special}
        for name, value in (
            ("bos", bos_id),
            ("eos", eos_id),
            ("pad", pad_id),
            ("cls", cls_id),
            ("sep", sep_id),
            ("mask", mask_id),
            *(("sentinel", i) for i in sentinel_ids),
            *(("stop", i) for i in stop_ids),
            *(("frame's", i) for i in (frame.ids if frame else ())),
        ):
            if value is not None and not 0 <= value < self.vocab_size:
                raise TokenizerError(
                    f"the {name} id {value} is outside the vocabulary of {self.vocab_size} ids"
                )
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.cls_id, self.sep_id, self.mask_id = cls_id, sep_id, mask_id
        self.sentinel_ids = tuple(sentinel_ids)
        self.add_bos = add_bos and bos_id is not None
        self.frame = frame or Frame.plain(bos_id if self.add_bos else None)
        self.chat_template = chat_template
        spelling = {token.id: token.text for token in codec.special}
        self._plain = codec.pieces
        self._spelled = tuple(
            spelling[i].encode() if i in spelling else b for i, b in enumerate(codec.pieces)
        )
        self._template: ChatTemplate | None = None
        if chat_template is not None:
            names = {"bos_token": bos_id, "eos_token": eos_id, "pad_token": pad_id, "unk_token": self.unk_id}
            known = {name: spelling.get(i, "") for name, i in names.items() if i is not None}
            self._template = ChatTemplate(
                chat_template, codec.special, {"bos_token": "", "unk_token": "", **known}
            )
        turn_end = self._end_of_turn()
        self.stop_ids = tuple(dict.fromkeys([*turn_end, *stop_ids, eos_id]))

    # Plain text

    def encode(self, text: str) -> list[int]:
        """Ids of a text, never a special one; no begin, no end."""
        return self.codec.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in parallel: the fast path."""
        if isinstance(texts, str):
            raise TokenizerError("encode_batch takes a list of texts; for one text there is encode")
        return self.codec.encode_batch(texts)

    def encode_document(self, text: str) -> list[int]:
        """`[bos] + ids + [eos]`: what pretraining sees (without bos where the model has none)."""
        return [*self.encode_prompt(text), self.eos_id]

    def encode_prompt(self, text: str) -> list[int]:
        """`[bos] + ids`: the beginning of a document to be continued."""
        ids = self.codec.encode(text)
        return [self.bos_id, *ids] if self.add_bos and self.bos_id is not None else ids

    def encode_for_model(self, text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
        """One text, or two that belong together, as the model was trained to see them.

        BERT: `[CLS] text [SEP] pair [SEP]`; RoBERTa: `<s> text </s></s> pair </s>`; T5: `text </s>`; a
        decoder: `bos text`. Which, is what the tokenizer's own file says.

        Args:
            text: the first, or only, text.
            pair: the second.

        Returns:
            `(ids, token_types)` of equal length. A type is what indexes BERT's segment embedding, 0 or 1.
        """
        return self.frame(self.codec.encode(text), None if pair is None else self.codec.encode(pair))

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = False) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: integers, a list or any one-dimensional array.
            skip_special: leave special tokens out instead of spelling them.

        Raises:
            IndexError: an id is outside the vocabulary.
        """
        numbers = [int(i) for i in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.vocab_size:
            wrong = next(i for i in numbers if not 0 <= i < self.vocab_size)
            raise IndexError(f"id {wrong} is outside the vocabulary of {self.vocab_size}")
        table = self._plain if skip_special else self._spelled
        data = b"".join([table[i] for i in numbers])
        data = data.removeprefix(b" ") if self.codec.adds_space else data
        return (data.removesuffix(b" ") if self.codec.trails_space else data).decode("utf-8", "replace")

    def stream(self, skip_special: bool = False) -> StreamDecoder:
        """A decoder of one id at a time; see `decode`."""
        table = self._plain if skip_special else self._spelled
        return StreamDecoder(table, self.codec.adds_space, self.codec.trails_space)

    def answer_stream(self) -> StreamDecoder:
        """`stream` of what a model says: without special tokens, but for sentinels, which tell one answer of
        an encoder-decoder from the next."""
        return StreamDecoder(self._said, self.codec.adds_space, self.codec.trails_space)

    @functools.cached_property
    def _said(self) -> tuple[bytes, ...]:
        said = list(self._plain)
        for i in self.sentinel_ids:
            said[i] = self._spelled[i]
        return tuple(said)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token, `b""` for special tokens."""
        if not 0 <= token < self.vocab_size:
            raise IndexError(f"id {token} is outside the vocabulary of {self.vocab_size}")
        return self._plain[token]

    def token_text(self, token: int) -> str:
        """A token for people: bytes that are no character appear as `<0xE4>`."""
        if not 0 <= token < self.vocab_size:
            raise IndexError(f"id {token} is outside the vocabulary of {self.vocab_size}")
        piece = self._spelled[token]
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in piece)
        return "".join(c if c.isprintable() else f"<0x{ord(c):02X}>" for c in text)

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """int32 [vocab_size]: bytes of text that each token stands for, 0 for special tokens."""
        return np.array([len(piece) for piece in self._plain], np.int32)

    @functools.cached_property
    def continues_word(self) -> np.ndarray:
        """bool [vocab_size]: tokens that belong to the word of the token before them, for whole-word masking.

        WordPiece marks them (`##`); elsewhere they are those that do not begin with a blank. False for
        special tokens. Chinese has no blanks: mask its words by a segmentation.

        Raises:
            TokenizerError: a vocabulary that marks where words end, not where they begin (GPT-1).
        """
        if self.codec.trails_space:
            raise TokenizerError(
                f"this {self.kind} vocabulary marks the ends of words, so whether a token continues a word "
                "depends on the one before it; whole-word masking needs WordPiece, SentencePiece or bytes"
            )
        return np.array([piece != b"" and not piece[:1].isspace() for piece in self._plain], np.bool_)

    # Conversations

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> tuple[list[int], list[int]]:
        """A conversation as ids, with the weight of each as a training target.

        The weights are 1 inside the template's `{% generation %}` spans. For a template without spans they
        are found by rendering: the text up to an assistant message, with the prompt for it, must begin the
        text that includes it; the rest, up to and including its end token, is trained. The text is cut at
        the start of a span before it is encoded, so that training sees the ids that generation starts from.

        Args:
            messages: see `messages.check_messages`.
            tools: function definitions as JSON schema.
            add_generation_prompt: end with the beginning of an assistant message. This is serving: the end of
                turn is then not checked, and a template without spans gives weights of 0.

        Returns:
            `(tokens, weights)` of equal length. The last trained token of an assistant turn is in `stop_ids`.

        Raises:
            MessageError: the conversation is not of the documented form.
            TemplateError: there is no template, it fails, or it cannot say what is trained.
        """
        template = self._template
        if template is None:
            raise TemplateError(
                "this tokenizer has no chat template; give plain text (`--raw`, `raw=True`) or save a "
                "chat_template.jinja beside it"
            )
        checked = template.escape(check_messages(messages))
        definitions = template.escape(check_tools(tools))
        rendered = template.render(checked, definitions, add_generation_prompt)
        if not template.has_spans and not add_generation_prompt:
            rendered = self._mark_answers(template, checked, definitions, rendered)
        tokens: list[int] = []
        spans: list[tuple[int, int]] = []
        begin, inside = 0, False
        for part in template.split(rendered):
            if isinstance(part, str):
                tokens.extend(self._continued(part) if inside else self.codec.encode(part))
                inside = True
            elif part is Mark.BEGIN:
                begin = len(tokens)
            elif part is Mark.END:
                spans.append((begin, len(tokens)))
            else:
                tokens.append(part.id)
                inside = self.codec.adds_space_once
        if self.bos_id is not None and tokens[:2] == [self.bos_id] * 2:
            raise TemplateError("the chat template writes two begin-of-document tokens; take one of them out")
        return tokens, self._weights(tokens, spans, serving=add_generation_prompt)

    def _continued(self, text: str) -> list[int]:
        """Ids of a text that follows another: without the space that some codecs put before a text."""
        if not self.codec.adds_space:
            return self.codec.encode(text)
        line = self.codec.encode("\n")
        ids = self.codec.encode("\n" + text)
        return ids[len(line) :] if ids[: len(line)] == line else self.codec.encode(text)

    def _weights(self, tokens: list[int], spans: list[tuple[int, int]], serving: bool) -> list[int]:
        weights = [0] * len(tokens)
        stops = set(self.stop_ids)
        for k, (begin, end) in enumerate(spans):
            if (
                tokens[end : end + 1]
                and tokens[end] in stops
                and not (end > begin and tokens[end - 1] in stops)
            ):
                end += 1  # the template closes its span before the end token: the model must still learn it
            weights[begin:end] = [1] * (end - begin)
            following = spans[k + 1][0] if k + 1 < len(spans) else len(tokens)
            same_turn = k + 1 < len(spans) and stops.isdisjoint(tokens[end:following])
            if not serving and not same_turn and not (end > begin and tokens[end - 1] in stops):
                shown = self.token_text(tokens[end - 1]) if end else "nothing"
                raise TemplateError(
                    f"answer {k} ends with the token {shown!r}, which is no stop token "
                    f"({', '.join(map(self.token_text, self.stop_ids))}): a model trained on it would never "
                    "stop. Put the end token inside {% generation %}…{% endgeneration %}"
                )
        return weights

    def _mark_answers(
        self,
        template: ChatTemplate,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        rendered: str,
    ) -> str:
        """Set the span marks into the output of a template that has none, by rendering its beginnings."""
        marked, done = "", 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before = template.render(messages[:i], tools, True)
                after = template.render(messages[: i + 1], tools, False)
            except TemplateError as error:
                raise TemplateError(f"message {i}: {error}; {ADVICE}") from error
            if not (rendered.startswith(after) and after.startswith(before) and len(before) >= done):
                raise TemplateError(
                    f"message {i}: the template rewrites earlier text when more follows; {ADVICE}"
                )
            end = len(before) + template.after_last(after[len(before) :], self.stop_ids)
            marked += rendered[done : len(before)] + BEGIN + rendered[len(before) : end] + END
            done = end
        return marked + rendered[done:]

    def _end_of_turn(self) -> list[int]:
        """The control token that the template writes after an answer, if it can be seen."""
        probe = "answer"
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": probe}]
        if self._template is None:
            return []
        try:
            parts = self._template.split(self._template.render(messages, None, False))
        except TemplateError:
            return []
        seen = False
        for part in parts:
            if isinstance(part, str):
                seen = seen or part.endswith(probe)
            elif seen and not isinstance(part, Mark):
                return [part.id]
        return []

    # Identity

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What besides the codec's files determines ids and rendering; JSON-able, for `of_settings`."""
        begin = self.bos_id if self.add_bos else None
        more = {
            "cls_id": self.cls_id,
            "sep_id": self.sep_id,
            "mask_id": self.mask_id,
            "sentinel_ids": list(self.sentinel_ids) or None,
            "frame": None if self.frame == Frame.plain(begin) else self.frame.to_json(),
        }
        return {
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "stop_ids": list(self.stop_ids),
            "add_bos": self.add_bos,
            **{name: value for name, value in more.items() if value is not None},
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that determines ids and rendering; the same after saving and loading."""
        digest = hashlib.sha256()
        template = (self.chat_template or "").encode()
        files = {**self.codec.files(), "settings": json.dumps(self.settings, sort_keys=True).encode()}
        for name, content in sorted({**files, "template": template}.items()):
            digest.update(f"{name}:{len(content)}:".encode() + content)
        return digest.hexdigest()

    @classmethod
    def of_settings(cls, codec: Codec, settings: Mapping[str, Any], chat_template: str | None) -> Tokenizer:
        """The tokenizer whose `settings` these are."""
        given: dict[str, Any] = dict(settings)
        given["frame"] = Frame.from_json(given["frame"]) if given.get("frame") else None
        return cls(codec, **given, chat_template=chat_template)

    def with_template(self, chat_template: str | None) -> Tokenizer:
        """The same tokenizer with another chat template, or with none."""
        return Tokenizer.of_settings(self.codec, self.settings, chat_template)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer into a folder, made if missing; see `folder.save_tokenizer`."""
        from hllm_jax.tokenizers.folder import save_tokenizer

        save_tokenizer(self, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        from hllm_jax.tokenizers.folder import files_of, tokenizer_of

        return tokenizer_of, (files_of(self), "a pickled tokenizer")

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"
