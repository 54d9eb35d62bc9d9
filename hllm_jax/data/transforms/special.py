"""The special tokens that an objective needs: found in a tokenizer, or all that are missing in one error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.errors import DataError
from hllm_jax.data.transforms.blanks import BlankIds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hllm_jax.tokenizers.tokenizer import Tokenizer

#: Spellings of GLM's tokens, the older first.
START, END = ("<|startofpiece|>", "<sop>"), ("<|endofpiece|>", "<eop>")
SENTENCE_MASK, DOCUMENT_MASK = ("[sMASK]",), ("[gMASK]",)


def check_special(kind: str, found: Mapping[str, object]) -> None:
    """Refuse a tokenizer that lacks tokens of an objective.

    Args:
        kind: of the objective.
        found: what the token is called, and its id or None.

    Raises:
        DataError: names all that are missing.
    """
    missing = [name for name, token in found.items() if token is None]
    if missing:
        raise DataError(
            f"objective.kind={kind} needs special tokens that the tokenizer does not have: "
            f"{', '.join(missing)}. Take a tokenizer of this kind of model, or train one with them "
            "(tokenizer.special_tokens)"
        )


def encoder_ids(tokenizer: Tokenizer) -> tuple[int, int, int, int]:
    """Pad, `[CLS]`, `[SEP]` and `[MASK]` of a tokenizer."""
    cls_id, sep_id, mask_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
    check_special("masked_lm", {"[CLS]": cls_id, "[SEP]": sep_id, "[MASK]": mask_id})
    assert cls_id is not None
    assert sep_id is not None
    assert mask_id is not None
    return tokenizer.pad_id, cls_id, sep_id, mask_id


def sentinel_ids(tokenizer: Tokenizer, count: int) -> tuple[int, ...]:
    """The first `count` sentinels of a tokenizer."""
    sentinels = tuple(tokenizer.sentinel_ids)
    if len(sentinels) < count:
        raise DataError(
            f"objective.kind=span_corruption needs {count} sentinels (<extra_id_0>, …) for rows of this "
            f"length, and the tokenizer has {len(sentinels)}: shorten train.sequence_length, lengthen "
            "objective.span_corruption.mean_span, or take a tokenizer with more (T5's have 100)"
        )
    return sentinels[:count]


def blank_ids(tokenizer: Tokenizer, sentences: bool, documents: bool) -> BlankIds:
    """GLM's tokens; the masks of sentences and documents only where they are wanted."""
    known = tokenizer.special_ids

    def spelled(names: tuple[str, ...]) -> int | None:
        return next((known[name] for name in names if name in known), None)

    start, end = spelled(START), spelled(END)
    sentence, document = spelled(SENTENCE_MASK), spelled(DOCUMENT_MASK)
    needed = {"[MASK]": tokenizer.mask_id, START[0]: start, END[0]: end}
    needed |= {"[sMASK]": sentence} if sentences else {}
    needed |= {"[gMASK]": document} if documents else {}
    check_special("blank_infilling", needed)
    mask = tokenizer.mask_id
    assert mask is not None
    assert start is not None
    assert end is not None
    return BlankIds(
        pad=tokenizer.pad_id,
        begin=tokenizer.cls_id,
        mask=mask,
        sentence_mask=mask if sentence is None else sentence,
        document_mask=mask if document is None else document,
        start=start,
        end=end,
    )


def decoder_start(tokenizer: Tokenizer) -> int:
    """What a decoder reads first: the begin token, or the pad token where there is none (T5)."""
    return tokenizer.pad_id if tokenizer.bos_id is None else tokenizer.bos_id


def ordinary_ids(tokenizer: Tokenizer) -> np.ndarray:
    """int32: all ids but those of special tokens."""
    return np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids.values())).astype(
        np.int32
    )
