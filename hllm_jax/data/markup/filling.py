"""Joining the lines of a paragraph."""

from __future__ import annotations

SIGNS = set("“”‘’…—·")


def joined(before: str, after: str) -> str:
    """Two pieces of running text, with a space between them unless both sides are written without."""
    if not before or not after:
        return before or after
    space = "" if is_wide(before[-1]) and is_wide(after[0]) else " "
    return f"{before}{space}{after}"


def is_wide(character: str) -> bool:
    """Whether this is Chinese, Japanese or Korean: ideographs, kana, full-width signs, and shared signs."""
    return (
        "\u2e80" <= character <= "\u9fff"
        or "\uf900" <= character <= "\ufaff"
        or "\uff00" <= character <= "\uffef"
        or "\U00020000" <= character <= "\U0003ffff"
        or character in SIGNS
    )
