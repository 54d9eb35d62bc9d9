"""The batches that objectives read: typed dicts of arrays with a leading batch axis.

NumPy on the host, `jax.Array` once they are placed. B rows, L positions of the (encoder's) row, T of the
decoder's. Segments keep what stands in one row apart: 0 is padding, 1, 2, … are the segments in order, and
nothing is seen across them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import jax
    import numpy as np

    Array = np.ndarray | jax.Array


class LMBatch(TypedDict):
    """One batch of B rows of L (input, target) pairs.

    A document of n tokens gives n-1 pairs, so no pair crosses documents: position i of a row holds an input
    token and the token that follows it in the same document.
    """

    tokens: Array
    """int32 [B, L], inputs; the pad id where `segment_ids` is 0."""
    targets: Array
    """int32 [B, L], the next token of the same document; the pad id where `segment_ids` is 0."""
    weights: Array
    """float32 [B, L], weight of predicting the target; 0 on padding and on what is not to be learned."""
    segment_ids: Array
    """int32 [B, L], 0 = padding, 1, 2, … = the documents of this row in order."""
    positions: Array
    """int32 [B, L], 0, 1, … from the start of each segment of the row; 0 on padding. For models with
    two-dimensional positions int32 [B, L, 2]: (place in the corrupted text, place in the filled span)."""


class PrefixBatch(LMBatch):
    """Rows of which a part is read in both directions before the rest is predicted."""

    prefix: Array
    """int32 [B, L], 1 on tokens that every token of their segment sees, else 0."""


class MaskedBatch(LMBatch):
    """Rows in which some tokens were replaced. `tokens` are what the model sees, `targets` what was there;
    `weights` is 1 on the chosen ones."""


class SentencePairBatch(MaskedBatch):
    """Rows `[CLS] A [SEP] B [SEP]`, with the question whether B is what it should be."""

    token_types: Array
    """int32 [B, L], 0 on `[CLS] A [SEP]` and on padding, 1 on `B [SEP]`."""
    pair_labels: Array
    """int32 [B], 0 where B follows A as written, 1 where it does not."""
    pair_weights: Array
    """float32 [B], 0 on empty rows."""


class Seq2SeqBatch(TypedDict):
    """B rows of one or several (source, target) segments; segment i of the decoder sees segment i of the
    encoder."""

    tokens: Array
    """int32 [B, L], what the encoder reads."""
    segment_ids: Array
    """int32 [B, L]."""
    positions: Array
    """int32 [B, L], 0, 1, … from the start of each segment."""
    decoder_tokens: Array
    """int32 [B, T], what the decoder reads: the start token and the target."""
    targets: Array
    """int32 [B, T], what it predicts: the target and the end token."""
    weights: Array
    """float32 [B, T], weight of predicting the target."""
    decoder_segment_ids: Array
    """int32 [B, T]."""
    decoder_positions: Array
    """int32 [B, T]."""


class PromptBatch(TypedDict):
    """Questions that a model is to answer: one a row, W positions wide, padded on the right."""

    tokens: Array
    """int32 [P, W]."""
    lengths: Array
    """int32 [P], tokens of each prompt, at least 1."""
    records: Array
    """int32 [P], numbers of the records: `Batches.record` gives them back."""


class TaskBatch(TypedDict):
    """What an encoder reads of an example: one a row, with the special tokens that it knows."""

    tokens: Array
    """int32 [B, L]."""
    segment_ids: Array
    """int32 [B, L], 1 on the example, 0 on padding."""
    positions: Array
    """int32 [B, L]."""
    token_types: Array
    """int32 [B, L], as the tokenizer's frame says."""


class ClassificationBatch(TaskBatch):
    """A class for every row."""

    labels: Array
    """int32 [B]."""
    weights: Array
    """float32 [B], 0 on empty rows."""


class TaggingBatch(TaskBatch):
    """A class for every word, asked at its first token."""

    targets: Array
    """int32 [B, L], 0 where there is no question."""
    weights: Array
    """float32 [B, L], 1 on the first token of each word."""


class AnswerBatch(TaskBatch):
    """The stretch of each row that answers a question; the first token of the row where there is none."""

    starts: Array
    """int32 [B], the first token of the answer."""
    ends: Array
    """int32 [B], its last token."""
    weights: Array
    """float32 [B], 0 on empty rows."""
    context: Array
    """int32 [B, L], 1 on the tokens of the context, which alone may answer."""


class PairBatch(TypedDict):
    """A chosen and a rejected answer to the same prompt; each side is a row of its own.

    Index t of the weights speaks of token t itself, not of the one after it.
    """

    chosen_tokens: Array
    """int32 [B, L], prompt and answer; the pad id after them."""
    chosen_weights: Array
    """float32 [B, L], 1 on the tokens of the answer."""
    chosen_segment_ids: Array
    """int32 [B, L], 1 on prompt and answer, 0 on padding."""
    chosen_positions: Array
    """int32 [B, L]."""
    rejected_tokens: Array
    """int32 [B, L]; this and the next three as of the chosen one."""
    rejected_weights: Array
    """float32 [B, L]."""
    rejected_segment_ids: Array
    """int32 [B, L]."""
    rejected_positions: Array
    """int32 [B, L]."""
    margins: Array
    """float32 [B], how much better the chosen one is said to be; 0 where nothing is said."""
    pair_weights: Array
    """float32 [B], 1 over the number of pairs of the prompt; 0 on empty rows."""
