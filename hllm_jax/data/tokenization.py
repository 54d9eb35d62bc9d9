"""How records become the tokens of a store: what an objective wants to find there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.boundaries import Boundaries, Segmenter, join_segmented, word_splitter
from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hllm_jax.data.records import Record
    from hllm_jax.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Tokenization:
    """What an objective wants of its documents. The default is that of causal language models.

    Attributes:
        special: documents are `[bos] + ids + [eos]`; else bare ids, and rows add special tokens themselves.
        sentences: keep where sentences begin.
        words: keep which tokens begin a word, as this segmenter sees it.
        pairs: records are pairs of texts, kept as the tokens of both, with weight 1 on the second.
    """

    special: bool = True
    sentences: bool = False
    words: Segmenter | None = None
    pairs: bool = False

    def kind(self, record: Record, place: str) -> str:
        """ "text", "conversation" or "pair": how this record is tokenized.

        Raises:
            DataError: not at all.
        """
        if self.pairs:
            if record.pair is None:
                raise DataError(
                    'a record of this objective is {"source", "target"} or {"prompt", "response"}', place
                )
            return "pair"
        if record.text is not None:
            return "text"
        if not self.special:
            raise DataError('a record of this objective is a text ({"text"}), not a conversation', place)
        return "conversation"


def tokenize_texts(
    texts: Sequence[str], tokenizer: Tokenizer, form: Tokenization
) -> Iterator[tuple[list[int], np.ndarray | None, np.ndarray | tuple[()]]]:
    """(ids, which of them begin a word, first token of each sentence) of every text; ids may be empty.

    Words and sentences are None and empty where the form does not ask for them.
    """
    before = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    split = word_splitter(form.words) if form.words else None
    written = [join_segmented(text) for text in texts] if form.words == "spaces" else list(texts)
    boundaries = Boundaries(tokenizer) if split or form.sentences else None
    for number, ids in enumerate(tokenizer.encode_batch(written)):
        if form.special:
            yield [*before, *ids, tokenizer.eos_id], None, ()
            continue
        starts: np.ndarray | tuple[()] = ()
        words: np.ndarray | None = None
        if boundaries is not None and ids:
            if form.sentences:
                ids, starts = boundaries.sentences(written[number], ids)
            if split is not None:
                words = boundaries.words(split(texts[number]), ids)
        yield ids, words, starts


def tokenize_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of both texts joined, and their weights: 0 in the first, 1 in the second."""
    sources = tokenizer.encode_batch([source for source, _ in pairs])
    targets = tokenizer.encode_batch([target for _, target in pairs])
    for source, target in zip(sources, targets, strict=True):
        yield [*source, *target], [0] * len(source) + [1] * len(target)
