"""Batches of an objective over a few texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hllm_jax.data import Batches, DataConfig, SourceConfig
from hllm_jax.data.objective import (
    BlankInfillingConfig,
    MaskedLMConfig,
    ObjectiveConfig,
    Seq2SeqConfig,
    SpanCorruptionConfig,
)
from hllm_jax.testing.corpora import write_jsonl
from hllm_jax.testing.tokenizer import SpecialByteTokenizer

TOKENIZER = SpecialByteTokenizer()
IDS = TOKENIZER.special_ids
PAD, CLS, SEP, MASK = (IDS[name] for name in ("<|pad|>", "[CLS]", "[SEP]", "[MASK]"))


def texts(count: int = 60) -> list[str]:
    """Texts of several sentences, English and Chinese, of different lengths, no two alike."""
    parts = (
        "Sentence {n} is here. ",
        "第{n}个文档的这一句话！",
        "And what of this one, number {n}? ",
        "好。",
    )
    return [
        "".join(parts[(n + k) % len(parts)].format(n=n) for k in range(1 + n % 13)).strip()
        for n in range(count)
    ]


def section(kind: str, **settings: Any) -> ObjectiveConfig:
    """An `objective:` section."""
    sections = {
        "masked_lm": MaskedLMConfig,
        "span_corruption": SpanCorruptionConfig,
        "blank_infilling": BlankInfillingConfig,
        "seq2seq": Seq2SeqConfig,
    }
    own = {kind: sections[kind](**settings)} if kind in sections else {}
    return ObjectiveConfig(kind=kind, **own)


def batches_of(
    folder: Path,
    kind: str,
    records: list[Any] | None = None,
    *,
    packing: str = "concat",
    overlong: str = "truncate",
    batch_size: int = 8,
    length: int = 64,
    seed: int = 0,
    epochs: int | None = 1,
    tokenizer: SpecialByteTokenizer = TOKENIZER,
    **settings: Any,
) -> Batches:
    """The batches of an objective; records are texts or whole records."""
    given = texts() if records is None else records
    lines = [{"text": each} if isinstance(each, str) else each for each in given]
    path = write_jsonl(folder / "records.jsonl", lines)
    config = DataConfig(
        sources=(SourceConfig(path=str(path)),), packing=packing, overlong=overlong, holdout=0.0
    )
    return config.build(
        tokenizer,
        batch_size=batch_size,
        sequence_length=length,
        seed=seed,
        epochs=epochs,
        objective=section(kind, **settings),
    )


def rows_of(batches: Batches, epoch: int = 0) -> list[dict[str, np.ndarray]]:
    """The rows of one epoch, each as arrays without a batch axis; those that only fill up are left out."""
    count, size = batches.rows_per_epoch, batches.batch_size
    found = []
    for number in range(epoch * count, (epoch + 1) * count):
        batch = batches.rows(number // size, number % size, number % size + 1)
        found.append({name: values[0] for name, values in batch.items()})
    return found


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether two batches hold the same."""
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
