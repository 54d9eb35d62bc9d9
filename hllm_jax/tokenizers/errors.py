"""What can be wrong with a tokenizer, a template or a conversation."""

from __future__ import annotations


class TokenizerError(ValueError):
    """A tokenizer cannot be trained, loaded or used as asked; the message says what would be right."""


class TemplateError(TokenizerError):
    """A chat template is malformed, failed on the given messages, or cannot say what is trained."""


class MessageError(TokenizerError):
    """A conversation or its tools are not of the documented form; the message names the index and key."""


def refuse_surrogates(texts: list[str]) -> None:
    """Raise `TokenizerError` for the first text that is no Unicode text because it holds half of a pair."""
    for text in texts:
        for position, character in enumerate(text):
            if "\ud800" <= character <= "\udfff":
                raise TokenizerError(
                    f"the text holds the lone surrogate U+{ord(character):04X} at character {position}, "
                    "which has no UTF-8 form; repair it with "
                    'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
                )
