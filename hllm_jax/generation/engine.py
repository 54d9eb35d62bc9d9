"""The host half of generation: requests into batches, tokens into text, and when to stop.

The host looks at the tokens only between chunks: every few tokens where somebody watches (a stream, a stop
string), otherwise when a buffer is full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.generation.decode import CHUNK, Rows, Writer, bucket, decode, prefill, room, start
from hllm_jax.generation.request import Completion, Delta, FinishReason, Request, Sampling, check_prompt
from hllm_jax.generation.rows import right_padded
from hllm_jax.generation.sampling import sampling_rows
from hllm_jax.generation.stops import StopStrings

if TYPE_CHECKING:
    from hllm_jax.generation.vocabulary import Vocabulary


class Engine:
    """Runs requests on one model.

    Args:
        model: that writes.
        variables: `{"params": …}`.
        vocabulary: its ids, stop ids and detokeniser: a tokenizer.
        batch_size: most rows that are decoded together; more are done one batch after the other.
        chunk: tokens between two looks of the host where somebody watches.
    """

    def __init__(
        self,
        model: Writer,
        variables: dict[str, Any],
        vocabulary: Vocabulary,
        *,
        batch_size: int = 64,
        chunk: int = 8,
    ) -> None:
        self.model, self.variables, self.vocabulary = model, variables, vocabulary
        self.batch_size, self.chunk = batch_size, min(chunk, CHUNK)

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """All completions: those of the first request, then of the second, and so on.

        Raises:
            ValueError: a prompt has ids outside the vocabulary, or is longer than the model's context.
        """
        watched = any(request.stop for request in requests)
        found = {
            delta.index: delta.completion
            for delta in self._deltas(requests, self.chunk if watched else CHUNK)
            if delta.completion is not None
        }
        return [found[index] for index in sorted(found)]

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """The same as it comes; the texts of an index, joined, are the completion's text.

        Raises:
            ValueError: as `run`, at the call and not at the first piece.
        """
        return self._deltas(requests, self.chunk)

    def _deltas(self, requests: Sequence[Request], chunk: int) -> Iterator[Delta]:
        config = self.model.config
        for request in requests:
            check_prompt(request.tokens, config.vocab_size, config.max_length)
        rows = [(request, sample) for request in requests for sample in range(request.n)]
        growing = [
            _Row(i, request, sample, room(self.model, request.tokens), self.vocabulary)
            for i, (request, sample) in enumerate(rows)
        ]
        return self._batches(growing, chunk)

    def _batches(self, rows: list[_Row], chunk: int) -> Iterator[Delta]:
        for first in range(0, len(rows), self.batch_size):
            yield from self._batch(rows[first : first + self.batch_size], chunk)

    def _batch(self, rows: list[_Row], chunk: int) -> Iterator[Delta]:
        for row in rows:
            if row.room == 0:
                yield row.end("context")
        # Rows of one request read its prompt once.
        requests = list({id(row.request): row.request for row in rows}.values())
        prompt_of = {id(request): i for i, request in enumerate(requests)}
        vocab = min(self.model.config.vocab_size, self.vocabulary.vocab_size)

        tokens, lengths = self._prompts(requests)
        logits, cache, seen = prefill(self.model, self.variables, tokens, lengths, vocab)

        filling = _round_up(len(rows)) - len(rows)
        fixed = Rows(
            sampling=sampling_rows(
                [row.request.sampling for row in rows] + [Sampling(temperature=0.0)] * filling,
                [(row.request.seed, row.request.row, row.sample) for row in rows] + [(0, 0, 0)] * filling,
            ),
            limits=_int32([row.limit for row in rows] + [0] * filling),
            stop_ids=_int32(self.vocabulary.stop_ids),
        )
        prompts = _int32([prompt_of[id(row.request)] for row in rows] + [0] * filling)
        context = self.model.config.max_length
        capacity = bucket(max(context - row.room + row.limit for row in rows), context)
        state, first, logprobs = start(logits, cache, seen, prompts, fixed, capacity)
        del logits, cache, seen
        yield from _take(rows, np.asarray(first)[:, None], np.asarray(logprobs)[:, None])

        while not all(row.done for row in rows):
            stopped = jnp.asarray(np.asarray([row.done for row in rows] + [True] * filling))
            state, made = decode(self.model, self.variables, state, fixed, stopped, np.int32(chunk), vocab)
            yield from _take(rows, *jax.device_get(made))

    def _prompts(self, requests: list[Request]) -> tuple[jax.Array, jax.Array]:
        """Prompts in a bucket: int32 `[P, L]` padded on the right, and lengths `[P]`."""
        P = _round_up(len(requests))
        longest = max(len(request.tokens) for request in requests)
        L = bucket(longest, self.model.config.max_length)
        tokens = right_padded([request.tokens for request in requests], P, L)
        lengths = np.ones(P, np.int32)
        lengths[: len(requests)] = [len(request.tokens) for request in requests]
        return jnp.asarray(tokens), jnp.asarray(lengths)


class _Row:
    """One completion while it grows."""

    def __init__(self, index: int, request: Request, sample: int, space: int, vocabulary: Vocabulary) -> None:
        self.index, self.request, self.sample = index, request, sample
        self.room = space
        self.limit = min(request.max_tokens, self.room)
        self.done = False
        self._stop_ids = frozenset(vocabulary.stop_ids)
        self._characters = vocabulary.answer_stream()
        self._stops = StopStrings(request.stop)
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._texts: list[str] = []

    def push(self, token: int, logprob: float) -> tuple[str, FinishReason | None]:
        """Take one token: the text it lets out, and why the completion ends with it, if it does."""
        self._tokens.append(token)
        self._logprobs.append(logprob)
        if token in self._stop_ids:
            return "", "stop"
        text = self._stops.push(self._characters.push(token))
        if self._stops.found:
            self._texts.append(text)
            return text, "stop"
        reason: FinishReason | None = None
        if len(self._tokens) == self.request.max_tokens:
            reason = "length"
        elif len(self._tokens) == self.room:
            reason = "context"
        self._texts.append(text)
        return text, reason

    def end(self, reason: FinishReason, text: str = "") -> Delta:
        """The last delta: `text`, and what was held back as the beginning of a stop string.

        Bytes of a character that the last token left unfinished are no text, and stay out.
        """
        self.done = True
        rest = self._stops.flush()
        reason = "stop" if self._stops.found else reason
        self._texts.append(rest)
        completion = Completion(
            text="".join(self._texts), tokens=self._tokens, logprobs=self._logprobs, finish_reason=reason
        )
        return Delta(index=self.index, text=text + rest, completion=completion)


def _take(rows: list[_Row], tokens: np.ndarray, logprobs: np.ndarray) -> Iterator[Delta]:
    """Hand the rows their new tokens `[B, any]`, -1 where there is none."""
    for row, row_tokens, row_logprobs in zip(rows, tokens.tolist(), logprobs.tolist(), strict=False):
        text, reason = "", None
        for token, logprob in zip(row_tokens, row_logprobs, strict=True):
            if token < 0 or row.done or reason:
                break
            piece, reason = row.push(token, logprob)
            text += piece
        if reason:
            yield row.end(reason, text)
        elif text:
            yield Delta(index=row.index, text=text)


def _int32(values: Sequence[int]) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.int32))


def _round_up(rows: int) -> int:
    """The next power of two: a batch of 13 runs the program made for 16."""
    return 1 << (rows - 1).bit_length()
