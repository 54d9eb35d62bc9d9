"""Stop strings do not depend on how the text is cut into pieces."""

from __future__ import annotations

import itertools

import pytest

from hllm_jax.generation.stops import StopStrings


def passed(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """What comes out, and whether a stop string ended it."""
    matcher = StopStrings(stops)
    out = "".join(matcher.push(piece) for piece in pieces)
    return out + matcher.flush(), matcher.found


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("hello world", ["wor"], "hello "),
        ("hello world", ["xyz"], "hello world"),
        ("aaab", ["aab"], "a"),
        ("xabd", ["ab", "xabc"], "x"),
        ("xabc", ["ab", "xabc"], ""),
        ("ends with wo", ["wor"], "ends with wo"),
        ("你好，再见。", ["再见"], "你好，"),
        ("", ["a"], ""),
        ("no stops", [], "no stops"),
    ],
)
def test_text_ends_before_the_first_stop_string_wherever_it_is_cut(text, stops, expected):
    cuts = itertools.product([False, True], repeat=max(len(text) - 1, 0))
    for cut in itertools.islice(cuts, 256):
        pieces, piece = [], text[:1]
        for character, here in zip(text[1:], cut, strict=True):
            if here:
                pieces.append(piece)
                piece = ""
            piece += character
        assert passed([*pieces, piece], stops) == (expected, expected != text)


def test_nothing_of_a_stop_string_comes_out_early():
    matcher = StopStrings(["</end>"])
    assert [matcher.push(c) for c in "a</en"] == ["a", "", "", "", ""]
    assert matcher.push("x") == "</enx"
    assert matcher.push("y</end>z") == "y"
    assert matcher.push("more") == ""
