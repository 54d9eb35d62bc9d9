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
MASK_REMEDY = "tokenizer.mask_token: true"


def needed(kind: str, found: Mapping[str, tuple[int | None, str]]) -> tuple[int, ...]:
    """The ids of the tokens that an objective needs.

    Args:
        kind: of the objective.
        found: what a token is called, its id or None, and how a trained tokenizer gets one.

    Raises:
        DataError: names all that are missing.
    """
    missing = {name: remedy for name, (token, remedy) in found.items() if token is None}
    if missing:
        raise DataError(
            f"objective.kind={kind} needs special tokens that the tokenizer does not have: "
            f"{', '.join(missing)}. Take a tokenizer of this kind of model, or train one with "
            f"{' and '.join(dict.fromkeys(missing.values()))}"
        )
    return tuple(token for token, _ in found.values() if token is not None)


def spelled(tokenizer: Tokenizer, *names: str) -> tuple[int | None, str]:
    """A special token by its spelling, as `needed` wants it."""
    known = tokenizer.special_ids
    token = next((known[name] for name in names if name in known), None)
    return token, f"tokenizer.special_tokens: [{names[0]}]"


def encoder_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """`[CLS]`, `[SEP]` and `[MASK]` of a tokenizer; begin and end of document where it has none of the
    first two (RoBERTa)."""
    cls_id = tokenizer.bos_id if tokenizer.cls_id is None else tokenizer.cls_id
    sep_id = tokenizer.eos_id if tokenizer.sep_id is None else tokenizer.sep_id
    found: dict[str, tuple[int | None, str]] = {
        "[CLS]": (cls_id, "tokenizer.kind: wordpiece"),
        "[SEP]": (sep_id, "tokenizer.kind: wordpiece"),
        "[MASK]": (tokenizer.mask_id, MASK_REMEDY),
    }
    cls_id, sep_id, mask_id = needed("masked_lm", found)
    return cls_id, sep_id, mask_id


def sentinel_ids(tokenizer: Tokenizer, count: int) -> tuple[int, ...]:
    """The first `count` sentinels of a tokenizer."""
    sentinels = tuple(tokenizer.sentinel_ids)
    if len(sentinels) < count:
        raise DataError(
            f"objective.kind=span_corruption needs {count} sentinels (<extra_id_0>, …) for rows of this "
            f"length, and the tokenizer has {len(sentinels)}: shorten train.sequence_length, lengthen "
            "objective.span_corruption.mean_span, or take more (tokenizer.sentinels: 100, as T5's)"
        )
    return sentinels[:count]


def blank_ids(tokenizer: Tokenizer, sentences: bool, documents: bool) -> BlankIds:
    """GLM's tokens; the masks of sentences and documents only where they are wanted."""
    found = {
        "[MASK]": (tokenizer.mask_id, MASK_REMEDY),
        START[0]: spelled(tokenizer, *START),
        END[0]: spelled(tokenizer, *END),
    }
    found |= {"[sMASK]": spelled(tokenizer, "[sMASK]")} if sentences else {}
    found |= {"[gMASK]": spelled(tokenizer, "[gMASK]")} if documents else {}
    mask, start, end, *_ = needed("blank_infilling", found)
    sentence, document = (found.get(name, (mask, ""))[0] for name in ("[sMASK]", "[gMASK]"))
    return BlankIds(
        pad=tokenizer.pad_id,
        begin=tokenizer.cls_id,
        mask=mask,
        sentence_mask=mask if sentence is None else sentence,
        document_mask=mask if document is None else document,
        start=start,
        end=end,
    )


def ordinary_ids(tokenizer: Tokenizer) -> np.ndarray:
    """int32: all ids but those of special tokens."""
    return np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids.values())).astype(
        np.int32
    )
