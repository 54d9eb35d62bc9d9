"""What training sees of a corpus: a fair sample of bounded size, and the characters worth a piece."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import TYPE_CHECKING

from hllm_jax.tokenizers.errors import TokenizerError, refuse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hllm_jax.tokenizers.config import TokenizerConfig

CHUNK = (
    2000  # characters: SentencePiece trains on "sentences", and the regular expressions like short strings
)

# What means something else to the SentencePiece trainer: its space, its unknown mark, its piece boundary.
RESERVED = "\u2581\u2585\t\0"


def sample(texts: Iterable[str], limit: int) -> tuple[list[str], int]:
    """Chunks of at most `CHUNK` characters, about `limit` bytes of them, and the number of texts read.

    Every chunk of the stream has the same chance: it is kept while its hash lies below a threshold, which is
    lowered whenever the kept ones exceed the limit.
    """
    kept: list[tuple[int, int, str]] = []
    size, threshold, number, count = 0, 1 << 32, 0, 0
    for text in texts:
        if not isinstance(text, str):
            raise TokenizerError(f"text {count} is a {type(text).__name__}, not a string")
        count += 1
        for chunk in _chunks(text):
            if chunk.isspace():
                continue
            try:
                data = chunk.encode()
            except UnicodeEncodeError:
                refuse([chunk])
                raise
            number += 1
            key = zlib.crc32(data, number & 0xFFFFFFFF)
            if key < threshold:
                kept.append((key, len(data), chunk))
                size += len(data)
                while size > limit and len(kept) > 1:
                    threshold = threshold * 9 // 10
                    kept = [entry for entry in kept if entry[0] < threshold] or kept[:1]
                    size = sum(entry[1] for entry in kept)
    return [chunk for _, _, chunk in kept], count


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > CHUNK:
        cut = text.rfind("\n", start, start + CHUNK) + 1 or text.rfind(" ", start + 1, start + CHUNK)
        if cut <= start:
            cut = start + CHUNK
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def alphabet_of(chunks: Iterable[str], config: TokenizerConfig) -> set[str]:
    """The characters that get a piece: the most frequent, up to the coverage and their room."""
    counts: Counter[str] = Counter()
    for chunk in chunks:
        counts.update(chunk)
    for character in RESERVED + " ":
        del counts[character]
    free = config.vocab_size - len(config.control_tokens) - config.byte_count
    room = int(config.alphabet_share * (free - 1))  # in SentencePiece the space is a piece of its own
    wanted = config.character_coverage * counts.total()
    kept: set[str] = set()
    covered = 0
    for character, times in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= wanted or len(kept) >= room:
            break
        kept.add(character)
        covered += times
    return kept


def too_large(config: TokenizerConfig, largest: int) -> TokenizerError:
    return TokenizerError(
        f"tokenizer.vocab_size={config.vocab_size} is more than this text supports: the largest possible is "
        f"{largest} ({config.kind}); lower it or give more text"
    )
