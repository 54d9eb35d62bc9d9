"""What a run's configuration says beyond the defaults of its sections."""

from __future__ import annotations

from typing import Any

from hllm_jax.config import ABSENT, diff, to_dict
from hllm_jax.data.config import DataConfig, SourceConfig
from hllm_jax.models.config import SPELLED, ModelConfig
from hllm_jax.models.spec import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from hllm_jax.parallel.config import MeshConfig
from hllm_jax.tokenizers.config import TokenizerConfig
from hllm_jax.training.config import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)


def changed_settings(config: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The keys that differ from the defaults, as `(key, value, default)`, in the order of the configuration.

    Args:
        config: a resolved configuration as plain values; sections that this package does not know (of a
            user's own recipe) are left out.
    """
    standard = {name: section for name, section in defaults().items() if name in config}
    if isinstance(config.get("model"), dict):
        for kind in SPELLED:
            if config["model"].get(kind) is None:
                standard["model"][kind] = None
    known = {name: value for name, value in config.items() if name in standard}
    return [
        (key, shown(value), shown(default))
        for key, default, value in diff(standard, known)
        if value is not ABSENT
    ]


def defaults() -> dict[str, Any]:
    """Every section with nothing set, as plain values."""
    sections: dict[str, Any] = {
        "run": RunConfig(),
        "model": ModelConfig(decoder=DecoderConfig()),
        "tokenizer": TokenizerConfig(),
        "data": DataConfig(),
        "optimizer": OptimizerConfig(),
        "schedule": ScheduleConfig(),
        "train": TrainConfig(steps=1),
        "checkpoint": CheckpointConfig(),
        "eval": EvalConfig(),
        "log": LogConfig(),
        "mesh": MeshConfig(),
    }
    plain = {name: to_dict(section) for name, section in sections.items()}
    for kind, spec in (("encoder", EncoderConfig()), ("encoder_decoder", EncoderDecoderConfig())):
        plain["model"][kind] = to_dict(spec)
    plain["train"]["steps"] = None  # one of `steps` and `epochs` is always given
    return plain


def shown(value: Any) -> str:
    """A value for a table cell: lists and sections in one line, sources without what they leave open."""
    if value is ABSENT or value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value) or "none"
    if isinstance(value, dict):
        empty = to_dict(SourceConfig(name="x")) | {"name": None}
        parts = {key: part for key, part in value.items() if part != empty.get(key)}
        rest = ", ".join(f"{key} {shown(part)}" for key, part in parts.items() if key != "name")
        name = str(parts.get("name") or "")
        return f"{name} ({rest})" if name and rest else name or rest
    return str(value)
