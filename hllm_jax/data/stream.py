"""Documents of one or several stores under one numbering, with the plan of their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hllm_jax.data.documents import Arrangement, Documents
from hllm_jax.data.plan import pass_of
from hllm_jax.data.store import Span
from hllm_jax.data.transforms.piece import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hllm_jax.data.config import DataConfig
    from hllm_jax.data.items import Segment
    from hllm_jax.data.store import TokenStore
    from hllm_jax.data.transforms.piece import Transform

NONE = np.zeros(0, np.int64)


class Stream:
    """See the head of this file.

    Args:
        stores: one or several.
        config: packing, overlong policy and shuffling are its.
        transform: what its rows are for.
        seed: of the plan and of what the transform draws.
        before: documents of the streams before this one.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        config: DataConfig,
        transform: Transform,
        seed: int,
        before: int = 0,
    ) -> None:
        self.stores, self.before = list(stores), before
        self.transform, self.seed = transform, seed
        self.offsets = np.concatenate([[0], np.cumsum([len(store) for store in stores])])
        self.documents = self.gather()
        self.begins = np.cumsum(self.documents.lengths, dtype=np.int64) - self.documents.lengths
        arrangement = Arrangement(config.packing, config.overlong, config.shuffle, seed, transform.passes)
        self.plan = transform.plan(self.documents, arrangement)

    def gather(self) -> Documents:
        """The documents of all stores."""
        stores = self.stores
        ends: list[np.ndarray] = []
        if self.transform.form.sentences:
            tokens = [int(store.lengths.sum(dtype=np.int64)) for store in stores]
            before = np.cumsum([0, *tokens[:-1]])
            ends = [store.sentence_ends + shift for store, shift in zip(stores, before, strict=True)]
        return Documents(
            lengths=np.concatenate([store.lengths for store in stores]),
            trained=np.concatenate([store.trained for store in stores]),
            first_trained=np.concatenate([store.first_trained for store in stores]),
            weights_of=self.weights_of if any(store.weighted for store in stores) else None,
            sentence_ends=np.concatenate(ends) if ends else np.zeros(0, np.int64),
            place_of=self.place_of if all(store.has_records for store in stores) else None,
            labels=np.concatenate([store.labels for store in stores]),
        )

    def locate(self, document: int) -> tuple[int, int]:
        """(store, document in it) of a document of the stream."""
        store = int(np.searchsorted(self.offsets, document, "right")) - 1
        return store, document - int(self.offsets[store])

    def place_of(self, document: int) -> str:
        """Where the record of a document was read."""
        number, local = self.locate(document)
        return self.stores[number].record(local)[0]

    def weights_of(self, document: int) -> np.ndarray:
        """uint8 [tokens]: the weights of one document."""
        number, local = self.locate(document)
        store = self.stores[number]
        length = int(store.lengths[local])
        ((_, weights),) = store.read([Span(local, 0, length)])
        return np.ones(length, np.uint8) if weights is None else weights

    def span(self, segment: Segment) -> tuple[TokenStore, Span]:
        """Where the tokens of a segment are."""
        number, document = self.locate(segment.document)
        stop = segment.start + segment.count + self.transform.overlap
        return self.stores[number], Span(document, segment.start, stop)

    def piece(self, segment: Segment, epoch: int, tokens: np.ndarray, marks: np.ndarray | None) -> Piece:
        """A segment with its tokens, as a transform gets it."""
        number, document = self.locate(segment.document)
        store = self.stores[number]
        inside = NONE
        if self.transform.form.sentences:
            begin, ends = int(self.begins[segment.document]) + segment.start, self.documents.sentence_ends
            first, last = np.searchsorted(ends, [begin + 1, begin + segment.count], "left")
            inside = ends[first:last] - begin
        return Piece(
            tokens=tokens.astype(np.int32),
            marks=marks,
            document=segment.document,
            start=segment.start,
            key=(self.seed, pass_of(epoch, self.transform.passes)),
            sentence_ends=inside,
            labels=store.labels[document],
            number=self.before + segment.document,
        )
