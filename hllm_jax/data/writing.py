"""Records of one kind into a store, a chunk at a time; what cannot be learned from is dropped and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hllm_jax.data.errors import DataError
from hllm_jax.data.prompts import tokenize_prompt
from hllm_jax.data.tokenization import (
    tokenize_example,
    tokenize_pairs,
    tokenize_preference,
    tokenize_texts,
)
from hllm_jax.tokenizers.errors import MessageError

if TYPE_CHECKING:
    from hllm_jax.data.records import Record
    from hllm_jax.data.rendering import Rendered
    from hllm_jax.data.sources import Counts
    from hllm_jax.data.store import TokenWriter
    from hllm_jax.data.tokenization import Tokenization
    from hllm_jax.tokenizers.tokenizer import Tokenizer


def add_documents(
    chunk: list[tuple[str, Record]],
    tokenizer: Tokenizer,
    writer: TokenWriter,
    counts: Counts,
    form: Tokenization,
) -> None:
    """Encode texts as documents; one without any token (white space, for some tokenizers) is dropped."""
    texts = [record.text or "" for _, record in chunk]
    for ids, words, sentences in tokenize_texts(texts, tokenizer, form):
        if not ids:
            counts.too_short += 1
            counts.records -= 1
            continue
        counts.trained_tokens += writer.add(ids, words, sentences)
        counts.tokens += len(ids)


def add_pairs(
    chunk: list[tuple[str, Record]], tokenizer: Tokenizer, writer: TokenWriter, counts: Counts
) -> None:
    """Store pairs of texts; those with an empty side are dropped and counted."""
    pairs = [record.pair or ("", "") for _, record in chunk]
    for tokens, weights in tokenize_pairs(pairs, tokenizer):
        if not tokens or weights[0] == 1 or weights[-1] == 0:
            counts.untrained += 1
            counts.records -= 1
            continue
        counts.trained_tokens += writer.add(tokens, weights)
        counts.tokens += len(tokens)


def add_examples(
    chunk: list[tuple[str, Record]],
    tokenizer: Tokenizer,
    writer: TokenWriter,
    counts: Counts,
    form: Tokenization,
) -> None:
    """Store examples of a task; those without a token are dropped and counted."""
    for place, record in chunk:
        assert record.example is not None
        made = tokenize_example(record.example, tokenizer, form, place)
        if made is None:
            counts.untrained += 1
            counts.records -= 1
            continue
        ids, marks, labels = made
        writer.add(ids, marks, labels=labels)
        counts.trained_tokens += len(ids)
        counts.tokens += len(ids)


def add_preferences(
    chunk: list[tuple[str, Record]],
    tokenizer: Tokenizer,
    writer: TokenWriter,
    counts: Counts,
    form: Tokenization,
    malformed: str,
) -> None:
    """Store the pairs of preferences; one that the template or the tokenizer refuses is malformed."""
    for place, record in chunk:
        assert record.preference is not None
        try:
            made = list(tokenize_preference(record.preference, tokenizer, form, place))
        except (MessageError, DataError) as error:
            if malformed == "error":
                raise error if isinstance(error, DataError) else DataError(str(error), place) from error
            counts.malformed += 1
            counts.records -= 1
            continue
        for ids, weights, numbers in made:
            counts.trained_tokens += writer.add(ids, weights, labels=numbers)
            counts.tokens += len(ids)


def add_conversations(
    chunk: list[tuple[str, Record]],
    renderings: list[Rendered],
    writer: TokenWriter,
    counts: Counts,
    malformed: str,
) -> None:
    """Store rendered conversations; those without a trained token are dropped and counted."""
    for (place, _), rendering in zip(chunk, renderings, strict=True):
        if isinstance(rendering, MessageError):
            if malformed == "error":
                raise DataError(str(rendering), place) from rendering
            counts.malformed += 1
            counts.records -= 1
            continue
        tokens, weights = rendering
        if not any(weights[1:]):
            counts.untrained += 1
            counts.records -= 1
            continue
        counts.trained_tokens += writer.add(tokens, weights)
        counts.tokens += len(tokens)


def add_prompts(
    chunk: list[tuple[str, Record]],
    tokenizer: Tokenizer,
    writer: TokenWriter,
    counts: Counts,
    form: Tokenization,
    malformed: str,
) -> None:
    """Store prompts with the whole records that they were made of; no token of them is trained."""
    for place, record in chunk:
        assert record.asked is not None
        assert form.prompts is not None
        try:
            ids = tokenize_prompt(record, tokenizer, form.prompts)
        except MessageError as error:
            if malformed == "error":
                raise DataError(str(error), place) from error
            counts.malformed += 1
            counts.records -= 1
            continue
        if not ids:
            counts.too_short += 1
            counts.records -= 1
            continue
        writer.add(ids)
        writer.keep(place, record.asked.record)
        counts.tokens += len(ids)
