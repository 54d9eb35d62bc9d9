"""Published families: one page each, and one line in this registry."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np

    from hllm_jax.models.families.table import Table, Tensors
    from hllm_jax.models.spec import Spec

#: Pages in the order in which an export looks for one that can say a spec.
PAGES = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "phi3",
    "gpt2",
    "gpt_neo",
    "gpt1",
    "gemma2",
    "glm4",
    "chatglm",
    "glm",
    "bert",
    "roberta",
    "albert",
    "xlm_roberta",
    "t5",
    "transformer",
)


class Family(Protocol):
    """What a page offers; see `families/llama.py`. A page without GGUF names no GGUF architecture.

    A page may say by which tensors a file shows that it has a head, `HF_HEADS`; see `families/bert.py`.
    """

    @property
    def HF_TYPES(self) -> tuple[str, ...]: ...
    @property
    def HF_NAMES(self) -> Table: ...
    @property
    def PRESETS(self) -> dict[str, Spec]: ...

    def from_hf(self, published: Mapping[str, Any]) -> Spec:
        """config.json -> spec."""
        ...

    def to_hf(self, spec: Any) -> dict[str, Any]:
        """Spec -> config.json; `ConfigRefused` where the format cannot say it."""
        ...

    @property
    def GGUF_ARCHITECTURES(self) -> tuple[str, ...]: ...
    @property
    def GGUF_NAMES(self) -> Table: ...

    def from_gguf(self, metadata: Mapping[str, Any], tensors: Tensors) -> Spec:
        """GGUF metadata -> spec. Of the tensors it looks at names, and at factors of RoPE."""
        ...

    def to_gguf(self, spec: Any) -> dict[str, Any]:
        """Spec -> GGUF metadata; `ConfigRefused` where the format cannot say it."""
        ...

    def gguf_extra(self, spec: Any) -> dict[str, np.ndarray]:
        """Tensors that follow from the spec and that llama.cpp wants in the file (factors of RoPE).

        A page has it only where there are such tensors.
        """
        ...


def families() -> dict[str, Family]:
    """Name of each family and its page."""
    return {name: cast("Family", importlib.import_module(f"{__name__}.{name}")) for name in PAGES}


def presets() -> dict[str, Spec]:
    """All published sizes of all families by name."""
    return {name: spec for family in families().values() for name, spec in family.PRESETS.items()}
