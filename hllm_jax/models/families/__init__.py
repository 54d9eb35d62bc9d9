"""Published families: one page each, and one line in this registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from hllm_jax.models.config import DecoderConfig
    from hllm_jax.models.families.table import Table


class Family(Protocol):
    """What a page offers; see `families/llama.py`."""

    @property
    def HF_TYPE(self) -> str: ...
    @property
    def GGUF_ARCHITECTURE(self) -> str: ...
    @property
    def HF_NAMES(self) -> Table: ...
    @property
    def GGUF_NAMES(self) -> Table: ...
    @property
    def PRESETS(self) -> dict[str, DecoderConfig]: ...

    def from_hf(self, published: Mapping[str, Any]) -> DecoderConfig:
        """config.json -> spec."""
        ...

    def to_hf(self, spec: DecoderConfig) -> dict[str, Any]:
        """Spec -> config.json."""
        ...

    def from_gguf(self, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
        """GGUF metadata -> spec."""
        ...


def families() -> dict[str, Family]:
    """Name of each family and its page."""
    from hllm_jax.models.families import llama

    return {"llama": llama}


def presets() -> dict[str, DecoderConfig]:
    """All published sizes of all families by name."""
    return {name: spec for family in families().values() for name, spec in family.PRESETS.items()}
