"""Which source row number r of a weighted mixture comes from, and which of that source's rows it is.

A pure function with random access: the sources are split off one by one, and of the first n rows of a
remainder exactly round(n p) go to the source with share p of it. So after any number of rows every source has
its share to within a row per level, and none of it depends on what was read before.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Mixture:
    """Deals rows to sources by weight.

    Args:
        weights: one positive weight per source; only their ratios count. A float is taken as the decimal
            number that it prints as, so 0.1 is a tenth.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(str(weight)) for weight in weights]
        if not exact or min(exact) <= 0:
            raise ValueError(f"mixture weights are above 0, not {list(weights)}")
        self.shares = [weight / sum(exact) for weight in exact]
        # Share of source i in what the sources before it leave over.
        self.splits = [exact[i] / sum(exact[i:]) for i in range(len(exact))]

    def locate(self, row: int) -> tuple[int, int]:
        """(source, how many rows of this source came before) of the mixture's row `row`."""
        for source, share in enumerate(self.splits[:-1]):
            before = rounded(row, share)
            if rounded(row + 1, share) > before:
                return source, before
            row -= before
        return len(self.splits) - 1, row


def rounded(count: int, share: Fraction) -> int:
    """round(count · share), halves up, in exact integers."""
    return (2 * count * share.numerator + share.denominator) // (2 * share.denominator)
