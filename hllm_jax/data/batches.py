"""Global batch n as a pure function of (config, seed, n), read by random access."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm_jax.data.errors import DataError
from hllm_jax.data.mixture import Mixture
from hllm_jax.data.preparation import TokenizedData, check_ids
from hllm_jax.data.sources import digest
from hllm_jax.data.stream import Stream
from hllm_jax.data.transforms.causal import CausalRows

if TYPE_CHECKING:
    from hllm_jax.data.items import Segment
    from hllm_jax.data.store import Span, TokenStore
    from hllm_jax.data.transforms.piece import Batch, Transform

PLAN = 1  # raise it when the same (config, seed, n) would give another batch


class Batches(Sequence["Batch"]):
    """The batches of a training run or an evaluation: `batches[n]` is the global batch of step n.

    Rows go on from one epoch into the next. With `epochs`, the last batch is filled up with rows of weight 0
    and segment 0, so that every batch has the same shape; of prompts, with the first ones of the next epoch.
    Sources with weights are mixed row by row (`mixture`), each going through its own epochs; then an epoch of
    the whole is as many rows as the sources have together.

    What a row looks like is the transform's: `LMBatch` for causal language models, others of `data.batch`
    for other objectives.

    Args:
        data: what `prepare` returned; packing, overlong policy and shuffling are those of its config.
        batch_size: B, rows in the global batch.
        sequence_length: L, positions in a row.
        seed: of the order of documents and rows, and of what a transform draws.
        epochs: how often everything is read; None: without end.
        vocab_size: of the model that will read the batches; checked against the largest id.
        transform: from pieces of documents to a row; None: causal language models.
        settings: of the transform, for the fingerprint.

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
        transform: Transform | None = None,
        settings: str = "",
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
        self.seed, self.epochs, self.settings = seed, epochs, settings
        self.transform = CausalRows(sequence_length, data.pad_id) if transform is None else transform
        weights = [source.weight for source in data.config.sources]
        shares = [weight for weight in weights if weight is not None]
        self.mixture = Mixture(shares) if len(shares) == len(weights) and len(shares) > 1 else None
        groups = [[store] for store in data.stores] if self.mixture else [list(data.stores)]
        # Every source of a mixture has an order of its own.
        self.ends = np.cumsum([len(store) for store in data.stores]).tolist()
        self.streams = [
            Stream(group, data.config, self.transform, seed + i, self.ends[i - 1] if i else 0)
            for i, group in enumerate(groups)
        ]
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
        settings = [self.settings] if self.settings else []
        return digest(self.data.fingerprint, *map(str, parts), str(config.shuffle), *mixed, *settings)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions of a row: L, for encoder–decoders T too, and for pairs those of both sides."""
        row = self.transform.empty(0)
        return tuple(array.shape[1] for name, array in row.items() if name.endswith("tokens"))

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

    def __getitem__(self, n: int) -> Batch:  # pyrefly: ignore[bad-override]
        """Global batch n (NumPy); slices are not supported.

        Raises:
            IndexError: n is negative or past the last epoch.
        """
        return self.rows(n, 0, self.batch_size)

    def rows(self, n: int, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of global batch n: what one host reads of it."""
        if n < 0 or (self.steps is not None and n >= self.steps):
            raise IndexError(f"batch {n} of {self.steps}")
        if not 0 <= start <= stop <= self.batch_size:
            raise IndexError(f"rows {start} to {stop} of a batch of {self.batch_size}")
        batch = self.transform.empty(stop - start)
        lines = [self.segments(n * self.batch_size + number) for number in range(start, stop)]
        spans = [stream.span(segment) for stream, _, segments in lines for segment in segments]
        texts = iter(read_spans(spans))
        for line, (stream, epoch, segments) in enumerate(lines):
            pieces = [stream.piece(segment, epoch, *next(texts)) for segment in segments]
            self.transform.write(batch, line, pieces)
        return batch

    def record(self, number: int) -> dict[str, Any]:
        """The record that a prompt was made of.

        Args:
            number: as it stands in `records` of a batch.

        Raises:
            IndexError: there is no such record.
            DataError: these are no prompts.
        """
        if not 0 <= number < self.ends[-1]:
            raise IndexError(f"record {number} of {self.ends[-1]}")
        source = bisect.bisect_right(self.ends, number)
        store = self.data.stores[source]
        if not store.has_records:
            raise DataError("only prompts keep the records that they were made of")
        return store.record(number - (self.ends[source - 1] if source else 0))[1]

    def segments(self, row: int) -> tuple[Stream, int, Sequence[Segment]]:
        """The stream, its epoch and the segments of row number `row`, counted from the start of training."""
        asked = self.transform.form.prompts is not None  # an empty prompt cannot be answered
        if self.total_rows is not None and row >= self.total_rows and not asked:
            return self.streams[0], 0, []
        source, number = self.mixture.locate(row) if self.mixture else (0, row)
        stream = self.streams[source]
        epoch, place = divmod(number, stream.plan.rows)
        return stream, epoch, stream.plan.segments(epoch, place)


def read_spans(spans: Sequence[tuple[TokenStore, Span]]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Tokens and marks of every span, in order; each store is read once."""
    places: dict[TokenStore, list[int]] = {}
    for place, (store, _) in enumerate(spans):
        places.setdefault(store, []).append(place)
    found: list[tuple[np.ndarray, np.ndarray | None]] = [(np.zeros(0, np.int32), None)] * len(spans)
    for store, numbers in places.items():
        for place, text in zip(numbers, store.read([spans[i][1] for i in numbers]), strict=True):
            found[place] = text
    return found
