"""Which tokens a masked language model has to guess, and what it sees in their place."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hllm_jax.data.order import Draws


@dataclasses.dataclass(frozen=True)
class Masking:
    """How tokens are chosen and replaced (Devlin et al. 2019, section 3.1).

    Attributes:
        mask_id: replaces `mask` of the chosen tokens.
        ordinary: int32 [N], the ids of which one, at random, replaces `random` of them; the others stay.
        share: of the tokens that are chosen.
        mask, random: see above.
        ngram: neighbouring words are chosen together, up to so many (Lan et al. 2020, section 3.1).
    """

    mask_id: int
    ordinary: np.ndarray
    share: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    ngram: int = 1

    def count(self, tokens: np.ndarray) -> np.ndarray:
        """How many of so many tokens are chosen: the share, rounded, but at least one."""
        return np.maximum(np.rint(np.asarray(tokens) * self.share).astype(np.int64), 1)


def choose(count: int, budget: int, draws: Draws) -> np.ndarray:
    """bool [count]: exactly `budget` tokens (all, if there are fewer), every set of them equally likely."""
    chosen = np.zeros(count, bool)
    chosen[draws.permutation(count)[:budget]] = True
    return chosen


def choose_words(begins: np.ndarray, budget: int, ngram: int, draws: Draws) -> np.ndarray:
    """bool [tokens]: whole words, at most `budget` tokens of them.

    Words come in random order. At each, n words from it on are taken, n drawn with p(n) ∝ 1/n up to `ngram`
    (Lan et al. 2020, eq. 1), fewer where they would exceed the budget or the end; none where a word of them
    is taken already, or even one exceeds the budget.

    Args:
        begins: bool [tokens], which tokens begin a word; the first token begins one whatever it says.
        budget: most tokens.
        ngram: most words that are taken together.
        draws: random numbers.
    """
    count = len(begins)
    starts = np.flatnonzero(np.r_[True, begins[1:]]) if count else np.zeros(0, np.int64)
    edges = [*starts.tolist(), count]
    words = len(starts)
    chances = np.cumsum(1.0 / np.arange(1, ngram + 1))
    sizes = 1 + np.searchsorted(chances / chances[-1], draws.uniform(words), "right")
    chosen = np.zeros(count, bool)
    taken = 0
    for word in draws.permutation(words).tolist():
        if taken >= budget:
            break
        size = min(int(sizes[word]), words - word)
        while size and taken + edges[word + size] - edges[word] > budget:
            size -= 1
        if size and not chosen[edges[word] : edges[word + size]].any():
            chosen[edges[word] : edges[word + size]] = True
            taken += edges[word + size] - edges[word]
    return chosen


def replace(tokens: np.ndarray, chosen: np.ndarray, masking: Masking, draws: Draws) -> np.ndarray:
    """int32 [tokens]: what the model sees. Each chosen token on its own becomes the mask, a random one, or
    stays."""
    seen = np.array(tokens, np.int32)
    places = np.flatnonzero(chosen)
    dice = draws.uniform(len(places))
    others = masking.ordinary[draws.integers(len(places), len(masking.ordinary))]
    stays = seen[places]
    seen[places] = np.where(
        dice < masking.mask,
        masking.mask_id,
        np.where(dice < masking.mask + masking.random, others, stays),
    )
    return seen
