"""XLM-R (Conneau et al. 2020): RoBERTa in a hundred languages, with a larger vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import roberta
from hllm_jax.models.spec import EncoderConfig

HF_TYPES = ("xlm-roberta",)
HF_HEADS = roberta.HF_HEADS
HF_NAMES = roberta.HF_NAMES

PRESETS: dict[str, EncoderConfig] = {
    "xlm-roberta-base": roberta.size(12, 768, 12, 250002),
    "xlm-roberta-large": roberta.size(24, 1024, 16, 250002),
}


def from_hf(published: Mapping[str, Any]) -> EncoderConfig:
    """As `roberta.from_hf`."""
    return roberta.spec_from_hf(published, "XLMRoberta")


def to_hf(spec: EncoderConfig) -> dict[str, Any]:
    """As `roberta.to_hf`."""
    return roberta.spec_to_hf(spec, "XLMRoberta", HF_TYPES[0])
