"""How a section of the configuration is declared: a frozen dataclass that refuses unknown keys."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

T = TypeVar("T")


class Invalid(ValueError):
    """Raised in `__post_init__` of a section: fields whose combination is impossible.

    The loader turns each entry into a problem with the file, line and full key of that field.

    Args:
        problems: `(field, message)` pairs; the field is named relative to the section (`"heads"`,
            `"rope.theta"`), the message says the constraint and the remedy.
    """

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{field}: {message}" for field, message in problems))

    @classmethod
    def check(cls, problems: Iterable[tuple[bool, str, str]]) -> None:
        """Raise one `Invalid` with every `(is_wrong, field, message)` whose first entry is true."""
        found = [(field, message) for wrong, field, message in problems if wrong]
        if found:
            raise cls(*found)


Problems = tuple[tuple[str, str], ...]
_known: contextvars.ContextVar[Collection[Problems]] = contextvars.ContextVar("known", default=())


@contextlib.contextmanager
def overlooking(known: Collection[Problems]) -> Iterator[None]:
    """Inside, sections with exactly these problems are built all the same, so that the loader can go on to
    what else is wrong. Such sections are thrown away."""
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def config(cls: type[T]) -> type[T]:
    """Declare a configuration section: `dataclass(frozen=True, kw_only=True)` that refuses unknown keys.

    Sections nest, carry defaults, and check combinations of their own fields in `__post_init__` by raising
    `Invalid`. They import no jax, so that a config can be validated without starting a backend.
    """
    if check := cls.__dict__.get("__post_init__"):

        @functools.wraps(check)
        def post_init(self: T) -> None:
            try:
                check(self)
            except Invalid as error:
                if error.problems not in _known.get():
                    raise

        cls.__post_init__ = post_init
    declared: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    declared.__pydantic_config__ = {"extra": "forbid"}
    return declared
