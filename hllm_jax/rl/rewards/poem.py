"""Whether a poem is regulated verse: its lines, the tones of its characters, and its rhymes.

The rules of the modern style (近體詩; Wang Li, 詩詞格律, chapter 2), for a quatrain (絕句) or a poem of eight
lines (律詩) of five or seven characters each:

- tones alternate at the even places of a line, are opposite in the two lines of a couplet (對), and the next
  couplet begins as the last one ended (黏), so that one tone settles those of all even places;
- even lines end level (平) and rhyme, other lines oblique (仄); the first may rhyme instead;
- no line ends with three level tones (三平尾), and none that ends level has a single other level tone (孤平);
- one licence: before an oblique end, the two last places that differ may change their tones (平平仄平仄).

By hand, 王之渙's 登鸛雀樓 is 仄仄平平仄，平平仄仄平。平平平仄仄，仄仄仄平平。
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hllm_jax.data.corpora.verse import FORMS, LEVEL, OBLIQUE, Verse, lines_of, verse

SHAPE, TONES, RHYME = 0.25, 0.5, 0.25  # parts of the score


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What is right of a poem, in shares from 0 to 1.

    Attributes:
        shape: lines that have their length, of those that there should be or are.
        tones: rules of tones that are kept; 0 unless the shape is right.
        rhyme: rhymes beyond the first that rhyme with it; 0 unless the shape is right.
    """

    shape: float
    tones: float
    rhyme: float

    @property
    def score(self) -> float:
        """A quarter for the shape, half for the tones, a quarter for the rhyme; 1 is a poem by the rules."""
        return SHAPE * self.shape + TONES * self.tones + RHYME * self.rhyme


def poem(
    prompt: str,
    completion: str,
    record: dict[str, Any],
    *,
    lines: int | None = None,
    characters: int | None = None,
    strict: bool = False,
) -> float:
    """The verifier `poem`: the score of a poem.

    Args:
        lines, characters: of the poem; None: `lines` and `characters` of the record.
        strict: 1 for a poem by the rules, else 0.

    Raises:
        ValueError: it is not said what the poem should be, or there are no rules for such a poem.
    """
    del prompt
    wanted = (lines or record.get("lines"), characters or record.get("characters"))
    if wanted not in FORMS:
        known = ", ".join(f"{count} lines of {size}" for count, size in FORMS)
        raise ValueError(
            f"`lines` and `characters` are {wanted[0]} and {wanted[1]}; there are rules for {known}"
        )
    found = judge(lines_of(completion), *wanted, verse()).score
    return float(found == 1.0) if strict else found


def judge(lines: Sequence[str], count: int, size: int, table: Verse) -> Judgement:
    """Judge a poem that should have `count` lines of `size` characters."""
    right = sum(len(line) == size for line in lines[:count])
    shape = right / max(len(lines), count)
    if shape < 1:
        return Judgement(shape, 0.0, 0.0)
    return Judgement(
        1.0, max(tone_share(lines, tone, table) for tone in (LEVEL, OBLIQUE)), rhyme_share(lines, table)
    )


def tone_share(lines: Sequence[str], first: str, table: Verse) -> float:
    """The share of the rules of tones that are kept, if the second character of the poem is to be `first`."""
    kept: list[bool] = []
    for number, line in enumerate(lines):
        begin = first if number % 4 in (0, 3) else other(first)
        kept += line_rules(line, begin, must_be_level=number % 2 == 1, free=number == 0, table=table)
    return sum(kept) / len(kept)


def line_rules(line: str, begin: str, must_be_level: bool, free: bool, table: Verse) -> list[bool]:
    """Which rules a line keeps.

    Args:
        line: 5 or 7 characters.
        begin: tone of its second character.
        must_be_level: it ends level, else oblique.
        free: it may end either way.
        table: of tones.
    """

    def has(place: int, tone: str) -> bool:
        return table.is_tone(line[place], tone)

    end, last = (LEVEL if must_be_level else OBLIQUE), len(line) - 1
    even = [has(place, begin if place % 4 == 1 else other(begin)) for place in range(1, last, 2)]
    if not must_be_level and has(last, OBLIQUE) and has(last - 1, LEVEL) and has(last - 2, OBLIQUE):
        even[-1] = True  # the licence
    ends = [has(last, LEVEL) or has(last, OBLIQUE) if free else has(last, end)]
    known = all(character in table.tones for character in line)
    three = known and any(has(place, OBLIQUE) for place in range(last - 2, last + 1))
    # Of a line that ends 仄平: the level tone of the pair before needs another beside it.
    pair = last - 3
    alone = has(last, LEVEL) and not any(has(place, LEVEL) for place in (pair - 1, pair + 1))
    lonely = alone and not has(last - 1, LEVEL)
    return [*even, *ends, three, known and not lonely]


def rhyme_share(lines: Sequence[str], table: Verse) -> float:
    """The share of the rhymes beyond the first that are of the most common group; a repeated one is none."""
    ends = [line[-1] for line in lines[1::2]]
    if not table.is_tone(lines[0][-1], OBLIQUE):
        ends.append(lines[0][-1])
    groups = Counter(group for end in set(ends) for group in table.rhymes.get(end, ()))
    return (max(groups.values(), default=1) - 1) / (len(ends) - 1)


def other(tone: str) -> str:
    """Oblique for level, level for oblique."""
    return OBLIQUE if tone == LEVEL else LEVEL
