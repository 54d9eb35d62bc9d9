"""What a transform plans with: the documents of a stream by their lengths, and how they are to be packed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np

from hllm_jax.data.items import Items, Room, whole_documents
from hllm_jax.data.plan import FirstFitPlan

if TYPE_CHECKING:
    from collections.abc import Callable

Packing = Literal["concat", "first_fit", "none"]
Overlong = Literal["error", "truncate", "drop", "split"]


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of one or several stores under one numbering.

    Attributes:
        lengths: int [N], tokens of each.
        trained: int [N], targets of each that carry weight.
        first_trained: int [N], position of the first of them.
        weights_of: weights (uint8 [lengths[i]]) of document i; None: all 1.
        sentence_ends: int [S], ascending: where each sentence ends in the tokens of all documents joined;
            empty if the store has no sentences.
        place_of: where document i was read; None: not known.
        labels: int [N, columns]: what the store keeps of each document; no columns if nothing.
    """

    lengths: np.ndarray
    trained: np.ndarray
    first_trained: np.ndarray
    weights_of: Callable[[int], np.ndarray] | None
    sentence_ends: np.ndarray
    place_of: Callable[[int], str] | None = None
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int32))


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How documents are put into rows: the `data:` section's words, and the seed of the order.

    Attributes:
        packing, overlong, shuffle: see `DataConfig`.
        seed: of the order.
        passes: see `plan`.
    """

    packing: Packing
    overlong: Overlong
    shuffle: bool
    seed: int
    passes: int | None = None

    def pieces(self, documents: Documents, room: Room, trained: np.ndarray) -> Items:
        """Documents as pieces: cut to fill rows under `concat`, else whole, or as `overlong` says."""
        overlong = "split" if self.packing == "concat" else self.overlong
        return whole_documents(documents.lengths, room, overlong, trained, documents.weights_of)

    def pack(
        self, items: Items, sizes: np.ndarray, capacity: int, trained: int | None = None
    ) -> FirstFitPlan:
        """Pieces that take so much room each, packed into rows, or each in a row of its own.

        Args:
            items: the pieces.
            sizes: int [items].
            capacity: of a row.
            trained: targets in all pieces, if it is not `items.stats["trained_tokens"]`.
        """
        room = np.full_like(sizes, capacity) if self.packing == "none" else sizes
        plan = FirstFitPlan(items, capacity, self.seed, self.shuffle, room, self.passes)
        plan.stats["padding"] = plan.rows * capacity - int(sizes.sum())
        if trained is not None:
            plan.stats["trained_tokens"] = trained
        return plan
