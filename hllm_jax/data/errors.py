"""The one error of this room: what is wrong with the data, where, and what would be right."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used: the message names the place (file and line), what stands there, the remedy.

    Args:
        message: what is wrong and what would be right.
        where: `file:line`, `file:row` or a corpus name; put before the message.
    """

    def __init__(self, message: str, where: str | None = None) -> None:
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)
