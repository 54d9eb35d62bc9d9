"""Loss, perplexity and bits per byte of a model on text that it has not been trained on."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.data.batches import Batches
from hllm_jax.data.config import DataConfig, SourceConfig
from hllm_jax.data.preparation import TokenizedData, prepare
from hllm_jax.generation.vocabulary import need_tokenizer
from hllm_jax.objectives.language_model import cross_entropy

if TYPE_CHECKING:
    from hllm_jax.generation.language_model import LanguageModel
    from hllm_jax.models.decoder import Decoder

#: Tokens that pass the model at once: enough to keep a device busy, few enough for its memory.
BATCH_TOKENS = 4096


def evaluate(
    model: LanguageModel,
    data: str | DataConfig,
    split: str = "validation",
    limit: int | None = None,
    sequence_length: int | None = None,
) -> dict[str, Any]:
    """Score every held-out token once.

        loss          = Σ w·nll / Σ w                        nats per trained token
        bits_per_byte = Σ w·nll / (ln 2 · bytes of the targets with w > 0)

    Documents are cut at row ends and every piece starts without a memory of the last, as in training; ends of
    documents are predicted too and count bits but no bytes. Of a conversation only what the assistant says
    counts.

    Args:
        model: what `hllm_jax.load` returns.
        data: a `DataConfig`; or a corpus or TFDS name, of which `split` is read; or a file or glob,
            all of which is read.
        split: "train" or "validation".
        limit: only the first so many records of each source.
        sequence_length: tokens in a row; None: as many as the model was made for, at most 2,048.

    Returns:
        `loss, perplexity, bits_per_byte, accuracy`, and the counts `tokens` (trained), `bytes`, `records`.

    Raises:
        DataError: no such data, no usable record.
    """
    length = min(model.config.max_length, sequence_length or 2048)
    prepared = prepare_heldout(model, data, split, limit)
    rows = max(1, BATCH_TOKENS // length)
    batches = Batches(prepared, rows, length, seed=0, epochs=1, vocab_size=model.config.vocab_size)
    sizes = np.asarray(need_tokenizer(model.tokenizer).byte_lengths, np.float32)
    byte_lengths = jnp.asarray(np.pad(sizes, (0, max(0, model.config.vocab_size - len(sizes)))))
    total = np.zeros(4)
    for n in range(len(batches)):
        batch = {name: jnp.asarray(value) for name, value in batches[n].items()}
        # Sums of one batch are float32; over many batches they are added in float64.
        total += np.asarray(_sums(model.model, model.variables, batch, byte_lengths), np.float64)
    nll, weight, hits, size = (float(value) for value in total)
    loss = nll / weight if weight else math.nan
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nll / math.log(2) / size if size else math.nan,
        "accuracy": hits / weight if weight else math.nan,
        "tokens": round(weight),
        "bytes": round(size),
        "records": prepared.counts["records"],
    }


def prepare_heldout(
    model: LanguageModel, data: str | DataConfig, split: str, limit: int | None
) -> TokenizedData:
    """Tokenize what `evaluate` reads with the model's tokenizer (cached)."""
    if isinstance(data, str):
        # A registered name wins over a file that happens to be called the same; `./name` is the file.
        is_file = "/" in data or Path(data).suffix or "*" in data or Path(data).exists()
        source = (
            SourceConfig(path=data) if is_file and not data.startswith("tfds:") else SourceConfig(name=data)
        )
        # Files given to be evaluated are evaluated whole: nothing of them is training text.
        data, split = (
            DataConfig(sources=(source,), holdout=0.0 if source.path else 0.01, shuffle=False),
            ("train" if source.path else split),
        )
    sources = tuple(
        dataclasses.replace(source, limit=source.limit if limit is None else limit, weight=None)
        for source in data.sources
    )
    tokenizer = need_tokenizer(model.tokenizer)
    prepared = prepare(dataclasses.replace(data, sources=sources, shuffle=False), tokenizer, split)
    if any(store.weighted for store in prepared.stores):
        # Conversations are rows of their own; cutting one would take the question from the answer.
        config = dataclasses.replace(prepared.config, packing="first_fit", overlong="split")
        prepared = dataclasses.replace(prepared, config=config)
    return prepared


@functools.partial(jax.jit, static_argnames=("model",))
def _sums(
    model: Decoder, variables: dict[str, Any], batch: dict[str, jax.Array], byte_lengths: jax.Array
) -> jax.Array:
    """Σ w·nll, Σ w, Σ w·[the target is the most probable token], bytes of the targets with w > 0."""
    logits, _ = model.apply(
        variables, batch["tokens"], segment_ids=batch["segment_ids"], positions=batch["positions"]
    )
    logits = logits.astype(jnp.float32)
    weights = batch["weights"].astype(jnp.float32)
    nll, _ = cross_entropy(logits, batch["targets"])
    hits = (jnp.argmax(logits, axis=-1) == batch["targets"]).astype(jnp.float32)
    sizes = jnp.where(weights > 0, jnp.take(byte_lengths, batch["targets"], axis=0), 0.0)
    return jnp.stack([jnp.sum(weights * nll), jnp.sum(weights), jnp.sum(weights * hits), jnp.sum(sizes)])
