"""What a model wants to see around a text: its special tokens, and the type of every token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hllm_jax.tokenizers.errors import TokenizerError
from hllm_jax.tokenizers.spelling import steps_of

Slot = tuple[int | str, int]  # an id, or "A" or "B" for the ids of a text; and the token type


@dataclasses.dataclass(frozen=True)
class Frame:
    """The special tokens around one text and around two.

    Attributes:
        single: for one text, for example `((101, 0), ("A", 0), (102, 0))`.
        pair: for two texts.
    """

    single: tuple[Slot, ...]
    pair: tuple[Slot, ...]

    def __call__(self, first: Sequence[int], second: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """The ids of the framed texts and their token types, two lists of equal length."""
        ids: list[int] = []
        types: list[int] = []
        texts = {"A": first, "B": second or ()}
        for slot, kind in self.single if second is None else self.pair:
            part = texts[slot] if isinstance(slot, str) else (slot,)
            ids.extend(part)
            types.extend([kind] * len(part))
        return ids, types

    @property
    def begins_with(self) -> int | None:
        """The id before a single text, None if there is none."""
        first = self.single[0][0] if self.single else None
        return first if isinstance(first, int) else None

    @property
    def ids(self) -> set[int]:
        """The special tokens of both forms."""
        return {slot for slot, _ in self.single + self.pair if isinstance(slot, int)}

    def to_json(self) -> list[list[list[int | str]]]:
        """Lists, for `from_json`."""
        return [[list(slot) for slot in form] for form in (self.single, self.pair)]

    @classmethod
    def from_json(cls, content: Iterable[Iterable[Sequence[Any]]]) -> Frame:
        """The inverse of `to_json`."""
        single, pair = (tuple((slot, int(kind)) for slot, kind in form) for form in content)
        return cls(single, pair)

    @classmethod
    def of(cls, single: str, pair: str, ids: Mapping[str, int]) -> Frame:
        """From the notation of published templates: `"[CLS] A [SEP] B:1 [SEP]:1"`, type 0 where none is said.

        Args:
            single: of one text.
            pair: of two texts.
            ids: the id of every name beside A and B.
        """

        def slots(text: str) -> tuple[Slot, ...]:
            parts = (part.rpartition(":") if part[-2:-1] == ":" else (part, "", "0") for part in text.split())
            return tuple((name if name in ("A", "B") else ids[name], int(kind)) for name, _, kind in parts)

        return cls(slots(single), slots(pair))

    @classmethod
    def plain(cls, bos: int | None = None, eos: int | None = None) -> Frame:
        """Begin and end around each text, as decoders have it; None leaves one out."""

        def around(name: str, kind: int) -> tuple[Slot, ...]:
            before, after = ((((i, kind),) if i is not None else ()) for i in (bos, eos))
            return (*before, (name, kind), *after)

        return cls(around("A", 0), around("A", 0) + around("B", 1))

    @classmethod
    def of_post_processor(cls, processor: Mapping[str, Any] | None) -> Frame:
        """From the `post_processor` of a tokenizer.json.

        Raises:
            TokenizerError: one that is not known, or several that add tokens.
        """
        adding = [step for step in steps_of(processor, "processors") if step.get("type") != "ByteLevel"]
        if not adding:
            return cls.plain()
        kind = adding[0].get("type")
        if len(adding) > 1 or kind not in FORMS:
            raise TokenizerError(
                f"the post-processor {[step.get('type') for step in adding]} of this tokenizer.json is not "
                f"known; known is ByteLevel with one of {', '.join(FORMS)}"
            )
        return FORMS[kind](adding[0])

    def post_processor(self, names: Mapping[int, str]) -> dict[str, Any]:
        """As the `post_processor` of a tokenizer.json.

        Args:
            names: the spelling of each special id.
        """

        def pieces(form: tuple[Slot, ...]) -> list[dict[str, Any]]:
            return [
                {"Sequence": {"id": slot, "type_id": kind}}
                if isinstance(slot, str)
                else {"SpecialToken": {"id": names[slot], "type_id": kind}}
                for slot, kind in form
            ]

        special = {names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in sorted(self.ids)}
        return {
            "type": "TemplateProcessing",
            "single": pieces(self.single),
            "pair": pieces(self.pair),
            "special_tokens": special,
        }


def _template(processor: Mapping[str, Any]) -> Frame:
    special: Mapping[str, Any] = processor.get("special_tokens") or {}

    def slots(pieces: Iterable[Mapping[str, Any]]) -> Iterable[Slot]:
        for piece in pieces:
            if "Sequence" in piece:
                yield piece["Sequence"]["id"], piece["Sequence"]["type_id"]
            else:
                name = piece["SpecialToken"]["id"]
                if name not in special:
                    raise TokenizerError(f"the post-processor writes {name!r}, whose ids it does not say")
                for i in special[name]["ids"]:
                    yield i, piece["SpecialToken"]["type_id"]

    return Frame(tuple(slots(processor["single"])), tuple(slots(processor["pair"])))


def _bert(processor: Mapping[str, Any]) -> Frame:
    ids = {"cls": processor["cls"][1], "sep": processor["sep"][1]}
    return Frame.of("cls A sep", "cls A sep B:1 sep:1", ids)


def _roberta(processor: Mapping[str, Any]) -> Frame:
    ids = {"cls": processor["cls"][1], "sep": processor["sep"][1]}
    return Frame.of("cls A sep", "cls A sep sep B sep", ids)


FORMS = {"TemplateProcessing": _template, "BertProcessing": _bert, "RobertaProcessing": _roberta}
