"""From the `objective:` section to the transform that makes its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.errors import DataError
from hllm_jax.data.transforms.blanks import BlankRows, BlankShares
from hllm_jax.data.transforms.causal import CausalRows, PrefixRows
from hllm_jax.data.transforms.masked import MaskedRows, SentencePairRows
from hllm_jax.data.transforms.masking import Masking
from hllm_jax.data.transforms.seq2seq import Seq2SeqLayout, Seq2SeqRows
from hllm_jax.data.transforms.spans import SpanRows, noise_counts, row_lengths
from hllm_jax.data.transforms.special import (
    blank_ids,
    encoder_ids,
    ordinary_ids,
    sentinel_ids,
)

if TYPE_CHECKING:
    from hllm_jax.data.objective import (
        BlankInfillingConfig,
        MaskedLMConfig,
        ObjectiveConfig,
        Seq2SeqConfig,
        SpanCorruptionConfig,
    )
    from hllm_jax.data.transforms.piece import Transform
    from hllm_jax.tokenizers.tokenizer import Tokenizer

SHORTEST = 8  # positions: with fewer no row holds a text and the special tokens around it


def build_transform(
    objective: ObjectiveConfig, tokenizer: Tokenizer, length: int, decoder_start: int | None = None
) -> Transform:
    """See `ObjectiveConfig.transform`."""
    if objective.kind not in ("causal", "prefix_lm") and length < SHORTEST:
        raise DataError(
            f"train.sequence_length={length} is too short for objective.kind={objective.kind}: "
            f"at least {SHORTEST}"
        )
    settings = objective.settings()
    match objective.kind:
        case "causal":
            return CausalRows(length, tokenizer.pad_id)
        case "prefix_lm":
            return PrefixRows(length, tokenizer.pad_id)
        case "masked_lm":
            return masked_lm(settings, tokenizer, length)
        case "span_corruption":
            return span_corruption(settings, tokenizer, length, decoder_start)
        case "blank_infilling":
            return blank_infilling(settings, tokenizer, length)
        case "seq2seq":
            return seq2seq(settings, tokenizer, length, decoder_start)


def masked_lm(settings: MaskedLMConfig, tokenizer: Tokenizer, length: int) -> Transform:
    """BERT, RoBERTa, ALBERT."""
    cls_id, sep_id, mask_id = encoder_ids(tokenizer)
    special = (tokenizer.pad_id, cls_id, sep_id)
    masking = Masking(
        mask_id, ordinary_ids(tokenizer), settings.share, settings.mask, settings.random, settings.ngram
    )
    table = np.asarray(tokenizer.continues_word) if settings.whole_words == "pieces" else None
    segmenter = None if settings.whole_words in (None, "pieces") else settings.whole_words
    passes = settings.duplicates if settings.masks == "static" else None
    if settings.rows in ("nsp", "sop"):
        return SentencePairRows(
            length, special, masking, settings.rows, settings.short, table, segmenter, passes
        )
    return MaskedRows(length, special, masking, settings.rows, table, segmenter, passes)


def span_corruption(
    settings: SpanCorruptionConfig, tokenizer: Tokenizer, length: int, start: int | None
) -> Transform:
    """T5."""
    tokens, targets = row_lengths(length, settings.density, settings.mean_span)
    most = int(noise_counts(np.arange(1, tokens + 1), settings.density, settings.mean_span)[1].max())
    layout = sides(tokenizer, length, targets, start)
    return SpanRows(layout, sentinel_ids(tokenizer, most), settings.density, settings.mean_span)


def blank_infilling(settings: BlankInfillingConfig, tokenizer: Tokenizer, length: int) -> Transform:
    """GLM."""
    ids = blank_ids(tokenizer, settings.sentence > 0, settings.document > 0)
    shares = BlankShares(settings.share, settings.mean_span, settings.sentence, settings.document)
    return BlankRows(length, ids, shares, settings.positions == "pairs")


def seq2seq(settings: Seq2SeqConfig, tokenizer: Tokenizer, length: int, start: int | None) -> Transform:
    """Records of two texts."""
    targets = length if settings.target_length is None else settings.target_length
    return Seq2SeqRows(sides(tokenizer, length, targets, start))


def sides(tokenizer: Tokenizer, length: int, targets: int, start: int | None) -> Seq2SeqLayout:
    """The rows of encoder and decoder; the decoder starts with the pad token if nothing else is said."""
    first = tokenizer.pad_id if start is None else start
    return Seq2SeqLayout(length, targets, tokenizer.pad_id, tokenizer.eos_id, first)
