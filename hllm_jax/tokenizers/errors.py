"""What can be wrong with a tokenizer, a template or a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class TokenizerError(ValueError):
    """A tokenizer cannot be trained, loaded or used as asked; the message says what would be right."""


class TemplateError(TokenizerError):
    """A chat template is malformed, failed on the given messages, or cannot say what is trained."""


class MessageError(TokenizerError):
    """A conversation or its tools are not of the documented form; the message names the index and key."""


def refuse(texts: Sequence[object]) -> None:
    """Raise `TokenizerError` for what a codec did not take: no string, or one with half a surrogate pair."""
    for text in texts:
        if not isinstance(text, str):
            raise TokenizerError(f"a text to encode must be a string, not {type(text).__name__} {text!r:.60}")
        for position, character in enumerate(text):
            if "\ud800" <= character <= "\udfff":
                raise TokenizerError(
                    f"the text holds the lone surrogate U+{ord(character):04X} at character {position}, "
                    "which has no UTF-8 form; repair it with "
                    'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
                )


class NoTokenizer(TokenizerError):
    """A folder that holds no tokenizer at all (a damaged one is a `TokenizerError`)."""
