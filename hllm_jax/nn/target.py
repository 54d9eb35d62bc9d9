"""Which platform a program is traced for: kernels, the form of products and the default dtype follow it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Generator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`: what `compiling_for` says, else JAX's default backend (this starts it)."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Generator[None]:
    """While tracing in here, the program is for devices of this platform, which need not be there.

    What `jax.jit` has traced before for the same shapes it does not trace again: make a new jitted function
    for another platform.
    """
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)
