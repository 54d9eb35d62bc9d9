"""Published families: one page each, and one line in this registry."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hllm_jax.models.config import DecoderConfig


def families() -> dict[str, ModuleType]:
    """Name of each family and its page."""
    from hllm_jax.models.families import llama

    return {"llama": llama}


def presets() -> dict[str, DecoderConfig]:
    """All published sizes of all families by name."""
    return {name: spec for family in families().values() for name, spec in family.PRESETS.items()}
