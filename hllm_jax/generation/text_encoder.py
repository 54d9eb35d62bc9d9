"""`TextEncoder`: an encoder with its weights and its tokenizer, ready to say what tokens and texts are."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.generation.decode import TRACES
from hllm_jax.generation.rows import padded_rows
from hllm_jax.interop.sentence_transformers import Kind, Pooling
from hllm_jax.models.encoder import Encoder, EncoderOutput
from hllm_jax.models.layout import Model

if TYPE_CHECKING:
    from hllm_jax.tokenizers import Tokenizer

log = logging.getLogger(__name__)

#: Lengths that rows of `embed` are padded to; longer ones are multiples of the last.
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)

#: Tokens of a batch of `embed`, padding included: two cores are busy with fewer, and more only pads more.
BATCH_TOKENS = 1024


class TextEncoder:
    """What `hllm_jax.load` returns for an encoder.

    Attributes:
        config: the architecture.
        model: the Linen module.
        variables: `{"params": …}`, in the layout of `model`.
        tokenizer: text to ids, with the special tokens around texts; None where the folder holds none.
        pooling: how `embed` makes a vector of a text.
    """

    def __init__(
        self,
        model: Model,
        variables: dict[str, Any],
        tokenizer: Tokenizer | None,
        pooling: Pooling | None = None,
    ) -> None:
        if not isinstance(model, Encoder):
            raise ValueError(f"a {model.config.architecture} embeds no text: an encoder is needed")
        self.config, self.model, self.variables, self.tokenizer = model.config, model, variables, tokenizer
        self.pooling = pooling or Pooling()

    def hidden(
        self, tokens: Any, segment_ids: Any = None, positions: Any = None, token_types: Any = None
    ) -> jax.Array:
        """The last hidden state.

        Args:
            tokens: int `[B, L]`, a list or an array.
            segment_ids: int `[B, L]`: documents of packed rows, 0 = padding (on either side).
            positions: int `[B, L]`; None: from 0 in each document.
            token_types: int `[B, L]`, 1 in the second of two texts; None: all 0.

        Returns:
            float32 `[B, L, D]`; what stands at padding has no meaning.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, rows longer than `max_length`, positions or
                types outside their tables.
        """
        return self._say(tokens, segment_ids, positions, token_types).hidden.astype(jnp.float32)

    def logits(
        self, tokens: Any, segment_ids: Any = None, positions: Any = None, token_types: Any = None
    ) -> jax.Array:
        """What could stand at every place, by the head of masked language modelling.

        Arguments and errors as `hidden`.

        Returns:
            float32 `[B, L, V]`.

        Raises:
            ValueError: the model has no such head.
        """
        if not self.config.masked_head:
            raise ValueError(
                f"this model has {' and '.join(self._heads()) or 'no head at all'}, but none of masked "
                "language modelling: load a checkpoint of a class ...ForMaskedLM or ...ForPreTraining"
            )
        logits = self._say(tokens, segment_ids, positions, token_types).logits
        assert logits is not None
        return logits

    def embed(self, texts: str | Sequence[str]) -> np.ndarray:
        """A vector for each text, whatever stands beside it.

        Texts of like length are computed together, in a few shapes that are compiled once.

        Args:
            texts: any number; one text is a list of one.

        Returns:
            float32 `[N, D]`, pooled as `pooling` says. Of texts that are too long the beginning counts, and
            a warning says how many they are.

        Raises:
            ValueError: the model has no tokenizer.
        """
        rows = self._framed([texts] if isinstance(texts, str) else list(texts))
        out = np.zeros((len(rows), self.config.embed), np.float32)
        lengths = np.array([len(row) for row in rows], np.int32)
        waiting: list[tuple[np.ndarray, jax.Array]] = []
        for chosen, shape in batches(lengths, self.config.max_length):
            tokens, sizes = np.zeros(shape, np.int32), np.zeros(shape[:1], np.int32)
            for row, i in enumerate(chosen):
                tokens[row, : lengths[i]] = rows[i]
            sizes[: len(chosen)] = lengths[chosen]
            vectors = _embed(
                self.model, self.variables, tokens, sizes, self.pooling.kind, self.pooling.normalize
            )
            waiting.append((chosen, vectors))
        for chosen, vectors in waiting:
            out[chosen] = np.asarray(vectors)[: len(chosen)]
        return out

    def _say(self, tokens: Any, segment_ids: Any, positions: Any, token_types: Any) -> EncoderOutput:
        rows, length = padded_rows(
            tokens,
            vocab_size=self.config.vocab_size,
            max_length=self.config.max_length,
            limits={"token_types": max(1, self.config.token_types)},
            segment_ids=segment_ids,
            positions=positions,
            token_types=token_types,
        )
        # These are the numbers that are compared with other implementations.
        with jax.default_matmul_precision("highest"):
            out = _say(self.model, self.variables, **rows)
        return EncoderOutput(*(x if x is None or x.ndim < 3 else x[:, :length] for x in out))

    def _framed(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts with the special tokens around them, none longer than the limit."""
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer: pass ids to hidden, or load a folder that has one")
        frame = self.tokenizer.frame
        limit = min(self.pooling.max_length or self.config.max_length, self.config.max_length)
        room = limit - len(frame((), None)[0])
        if self.pooling.lowercase:
            texts = [text.lower() for text in texts]
        ids = self.tokenizer.encode_batch(texts)
        cut = sum(len(row) > room for row in ids)
        if cut:
            log.warning("%d of %d texts are longer than %d tokens and were cut there", cut, len(ids), limit)
        return [frame(row[:room], None)[0] for row in ids]

    def _heads(self) -> list[str]:
        heads = {"a pooler": self.config.pooler, "a head for pairs": self.config.pair_head}
        heads["a head for a task"] = self.config.task is not None
        return [name for name, there in heads.items() if there]


def batches(lengths: np.ndarray, longest: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Which rows are computed together, and the shape that they are padded to.

    From the longest down, each batch takes the rows that come next as long as there is room, so that none but
    the last has empty rows. Sizes come from a short list, so that few programs are compiled.

    Args:
        lengths: int `[N]`.
        longest: most tokens of a row.
    """
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        longer = int(lengths[order[start]])
        length = next((each for each in LENGTHS if each >= longer), -(-longer // LENGTHS[-1]) * LENGTHS[-1])
        length = min(length, max(longest, longer))
        rows = max(1, BATCH_TOKENS // length)
        left = len(order) - start
        rows = min(rows, 1 << (left - 1).bit_length())
        yield order[start : start + rows], (rows, length)
        start += rows


@functools.partial(jax.jit, static_argnames=("model",))
def _say(
    model: Encoder,
    variables: dict[str, Any],
    tokens: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array | None = None,
    token_types: jax.Array | None = None,
) -> EncoderOutput:
    TRACES["say"] += 1
    out: Any = model.apply(variables, tokens, segment_ids, positions, token_types)
    return out


@functools.partial(jax.jit, static_argnames=("model", "kind", "normalize"))
def _embed(
    model: Encoder,
    variables: dict[str, Any],
    tokens: jax.Array,
    lengths: jax.Array,
    kind: Kind,
    normalize: bool,
) -> jax.Array:
    """tokens int32 `[B, L]` padded on the right, lengths int32 `[B]` (0: no text) -> float32 `[B, D]`."""
    TRACES["embed"] += 1
    real = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :] < lengths[:, None]
    hidden: Any = model.apply(variables, tokens, real.astype(jnp.int32), method="hidden")
    pooled = pool(hidden.astype(jnp.float32), real, kind)
    if normalize:
        length = jnp.sqrt(jnp.sum(jnp.square(pooled), axis=-1, keepdims=True))
        pooled = pooled / jnp.maximum(length, 1e-12)
    return pooled


def pool(hidden: jax.Array, real: jax.Array, kind: Kind) -> jax.Array:
    """One vector of many: hidden float32 `[B, L, D]`, real bool `[B, L]` -> `[B, D]`; see `Pooling`."""
    if kind == "first":
        return hidden[:, 0]
    weights = real[:, :, None]
    if kind == "max":
        return jnp.max(jnp.where(weights, hidden, -jnp.inf), axis=1)
    count = jnp.maximum(jnp.sum(weights, axis=1), 1).astype(jnp.float32)
    total = jnp.sum(jnp.where(weights, hidden, 0.0), axis=1)
    return total / (count if kind == "mean" else jnp.sqrt(count))
