"""Global batch n as a pure function of (config, seed, n), read by random access."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.errors import DataError
from hllm_jax.data.mixture import Mixture
from hllm_jax.data.plan import ConcatPlan, FirstFitPlan, Plan, Segment
from hllm_jax.data.preparation import TokenizedData, check_ids
from hllm_jax.data.sources import digest
from hllm_jax.data.store import Span, TokenStore

if TYPE_CHECKING:
    from hllm_jax.data.batch import LMBatch

PLAN = 1  # raise it when the same (config, seed, n) would give another batch


class Stream:
    """Documents of one or several stores under one numbering, with their plan."""

    def __init__(self, stores: Sequence[TokenStore], data: TokenizedData, length: int, seed: int) -> None:
        self.stores = list(stores)
        self.offsets = np.concatenate([[0], np.cumsum([len(store) for store in stores])])
        lengths = np.concatenate([store.lengths for store in stores])
        trained = np.concatenate([store.trained for store in stores])
        weighted = any(store.weighted for store in stores)
        self.plan: Plan
        if data.config.packing == "concat":
            self.plan = ConcatPlan(
                lengths, length, seed, data.config.shuffle, int(trained.sum(dtype=np.int64))
            )
        else:
            self.plan = FirstFitPlan(
                lengths,
                length,
                seed,
                data.config.overlong,
                data.config.shuffle,
                trained,
                self.weights_of if weighted else None,
            )

    def locate(self, document: int) -> tuple[int, int]:
        """(store, document in it) of a document of the stream."""
        store = int(np.searchsorted(self.offsets, document, "right")) - 1
        return store, document - int(self.offsets[store])

    def weights_of(self, document: int) -> np.ndarray:
        """uint8 [tokens]: the weights of one document."""
        number, local = self.locate(document)
        store = self.stores[number]
        length = int(store.lengths[local])
        ((_, weights),) = store.read([Span(local, 0, length)])
        return np.ones(length, np.uint8) if weights is None else weights


class Batches(Sequence["LMBatch"]):
    """The batches of a training run or an evaluation: `batches[n]` is the global batch of step n.

    Rows go on from one epoch into the next. With `epochs`, the last batch is filled up with rows of weight 0
    and segment 0, so that every batch has the same shape. Sources with weights are mixed row by row
    (`mixture`), each going through its own epochs; then an epoch of the whole is as many rows as the sources
    have together.

    Args:
        data: what `prepare` returned; packing, overlong policy and shuffling are those of its config.
        batch_size: B, rows in the global batch.
        sequence_length: L, (input, target) pairs in a row.
        seed: of the order of documents and rows.
        epochs: how often everything is read; None: without end.
        vocab_size: of the model that will read the batches; checked against the largest id.

    Raises:
        DataError: the vocabulary is too small, a record is longer than a row under `overlong: error`, or no
            record is left.
    """

    def __init__(
        self,
        data: TokenizedData,
        batch_size: int,
        sequence_length: int,
        seed: int,
        epochs: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        for name, number in (
            ("batch_size", batch_size),
            ("sequence_length", sequence_length),
            ("epochs", epochs),
        ):
            if number is not None and number < 1:
                raise DataError(f"{name} is at least 1, not {number}")
        if vocab_size is not None:
            check_ids(data.max_id, vocab_size, "model.vocab_size")
        self.data, self.batch_size, self.sequence_length = data, batch_size, sequence_length
        self.seed, self.epochs = seed, epochs
        weights = [source.weight for source in data.config.sources]
        shares = [weight for weight in weights if weight is not None]
        self.mixture = Mixture(shares) if len(shares) == len(weights) and len(shares) > 1 else None
        groups = [[store] for store in data.stores] if self.mixture else [list(data.stores)]
        # Every source of a mixture has an order of its own.
        self.streams = [Stream(group, data, sequence_length, seed + i) for i, group in enumerate(groups)]
        self.rows_per_epoch = sum(stream.plan.rows for stream in self.streams)

    @property
    def total_rows(self) -> int | None:
        """Rows that hold data, over all epochs; None if endless."""
        return None if self.epochs is None else self.epochs * self.rows_per_epoch

    @property
    def steps(self) -> int | None:
        """Number of batches; None if endless."""
        return None if self.total_rows is None else -(-self.total_rows // self.batch_size)

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("these batches have no end; give `epochs`, or a number of steps to `loader`")
        return self.steps

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal batches for equal n."""
        config = self.data.config
        parts = (
            PLAN,
            self.batch_size,
            self.sequence_length,
            self.seed,
            self.epochs,
            config.packing,
            config.overlong,
        )
        mixed = [str(share) for share in self.mixture.shares] if self.mixture else []
        return digest(self.data.fingerprint, *map(str, parts), str(config.shuffle), *mixed)

    @property
    def stats(self) -> dict[str, float]:
        """Per epoch: rows, pairs, padding, trained tokens, what was truncated, split or dropped.

        `fill` is the part of all positions that holds a pair, `trained_share` the part of the pairs that is
        trained on.
        """
        total: dict[str, float] = {}
        for stream in self.streams:
            for name, number in stream.plan.stats.items():
                total[name] = total.get(name, 0) + number
        pairs = total["pairs"]
        total["fill"] = pairs / (pairs + total["padding"]) if pairs else 0.0
        total["trained_share"] = total["trained_tokens"] / pairs if pairs else 0.0
        return total

    def __getitem__(self, n: int) -> LMBatch:  # pyrefly: ignore[bad-override]
        """Global batch n (NumPy); slices are not supported.

        Raises:
            IndexError: n is negative or past the last epoch.
        """
        return self.rows(n, 0, self.batch_size)

    def rows(self, n: int, start: int, stop: int) -> LMBatch:
        """Rows `start` to `stop` of global batch n: what one host reads of it."""
        if n < 0 or (self.steps is not None and n >= self.steps):
            raise IndexError(f"batch {n} of {self.steps}")
        if not 0 <= start <= stop <= self.batch_size:
            raise IndexError(f"rows {start} to {stop} of a batch of {self.batch_size}")
        shape = (stop - start, self.sequence_length)
        pad = self.data.pad_id
        tokens, targets = np.full(shape, pad, np.int32), np.full(shape, pad, np.int32)
        weights = np.zeros(shape, np.float32)
        segment_ids, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        wanted: dict[TokenStore, list[tuple[Span, int, int]]] = {}
        for line in range(shape[0]):
            column = 0
            stream, segments = self.segments(n * self.batch_size + start + line)
            for number, segment in enumerate(segments, start=1):
                which, document = stream.locate(segment.document)
                span = Span(document, segment.start, segment.start + segment.count + 1)
                wanted.setdefault(stream.stores[which], []).append((span, line, column))
                end = column + segment.count
                segment_ids[line, column:end] = number
                positions[line, column:end] = np.arange(segment.count)
                column = end
        for store, places in wanted.items():
            for (span, line, column), (ids, marks) in zip(
                places, store.read([span for span, _, _ in places]), strict=True
            ):
                end = column + span.stop - span.start - 1
                tokens[line, column:end] = ids[:-1]
                targets[line, column:end] = ids[1:]
                weights[line, column:end] = 1.0 if marks is None else marks[1:]
        return {
            "tokens": tokens,
            "targets": targets,
            "weights": weights,
            "segment_ids": segment_ids,
            "positions": positions,
        }

    def segments(self, row: int) -> tuple[Stream, list[Segment]]:
        """The stream and the segments of row number `row`, counted from the start of training."""
        if self.total_rows is not None and row >= self.total_rows:
            return self.streams[0], []
        source, number = self.mixture.locate(row) if self.mixture else (0, row)
        stream = self.streams[source]
        epoch, place = divmod(number, stream.plan.rows)
        return stream, stream.plan.segments(epoch, place)
