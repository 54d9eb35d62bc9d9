"""What a model or a configuration is, before any weight is read: parameters, shapes, memory, tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm_jax.config.convert import to_dict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hllm_jax.models.spec import Spec
    from hllm_jax.tokenizers.tokenizer import Tokenizer

BYTES = {"float32": 4, "bfloat16": 2}


def inspect(target: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Describe a MODEL, or a configuration (`.yaml`) with overrides.

    Returns:
        `name`, `kind`, `parameters` (a tied embedding counts once), `shapes` (parameter path -> shape, of
        the unrolled model), `config` (the resolved configuration, or the architecture of a MODEL),
        the architecture under its kind (`decoder`, `encoder`, `encoder_decoder`), and `memory` in bytes,
        activations not included.

    Raises:
        ConfigError, ValueError: the target is neither, or cannot be read.
    """
    if target.endswith((".yaml", ".yml")):
        return _of_config(target, overrides)
    if given := list(overrides):
        raise ValueError(f"{given[0]} changes a configuration (.yaml); {target} is taken for a MODEL")
    spec, kind = read_spec(target)
    memory = {
        "parameters_f32": spec.parameters() * 4,
        "parameters_bf16": spec.parameters() * 2,
        "kv_cache_per_token_f32": cache_bytes(spec, "float32"),
        "kv_cache_per_token_bf16": cache_bytes(spec, "bfloat16"),
    }
    return _describe(target, kind, spec, to_dict(spec), memory)


def read_spec(model: str) -> tuple[Spec, str]:
    """The architecture of any MODEL, and what kind of MODEL it is; weights are not read.

    Raises:
        ValueError: it names no model, or one that cannot be read.
        CheckpointError: the run has no checkpoint, or a damaged one.
    """
    from hllm_jax.interop.models import read_config
    from hllm_jax.interop.registry import resolve

    source = resolve(model)
    if source.run is None:
        return read_config(source), source.kind

    from hllm_jax.training.checkpoints import read_manifest
    from hllm_jax.training.pretrained import checkpoint_of, spec_of

    folder = checkpoint_of(source)
    return spec_of(folder, read_manifest(folder)), source.kind


def read_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of any MODEL; weights are not read. Errors as `read_spec`."""
    from hllm_jax.interop import models
    from hllm_jax.interop.registry import resolve
    from hllm_jax.tokenizers import load_tokenizer

    source = resolve(model)
    return models.read_tokenizer(source) if source.run is None else load_tokenizer(source.run / "tokenizer")


def tokenizer_of(config: Any) -> Tokenizer:
    """The tokenizer that a run of this configuration uses; trained and cached where it is not there yet.

    It is the one of `model.load`; where that run is still to be made from the configuration `base`, the one
    that this would make.
    """
    base = unmade_base(config)
    if base is not None:
        return tokenizer_of(base)
    if hasattr(config, "model") and config.model.load is not None:
        return read_tokenizer(config.model.load)
    from hllm_jax.data.vocabulary import tokenizer_for

    return tokenizer_for(config.tokenizer, config.data)


def spec_of_config(config: Any) -> Spec:
    """The architecture that a run of this configuration has, a base that is still to be made included."""
    base, model = unmade_base(config), config.model
    loaded = None
    if base is not None:
        loaded = spec_of_config(base)
    elif model.load is not None:
        loaded = read_spec(model.load)[0]
    return model.spec(None if loaded else _vocab_size(config), loaded)


def unmade_base(config: Any) -> Any | None:
    """The configuration `base`, where `model.load` is a run folder that this is to make first."""
    base = getattr(config, "base", None)
    if base is None or Path(config.model.load).expanduser().exists():
        return None
    from hllm_jax.recipes import load_run_config

    return load_run_config(base)[1]


def cache_bytes(spec: Spec, dtype: str) -> int:
    """Bytes of keys and values that one token keeps over all layers."""
    return 2 * spec.layers * spec.kv_heads * spec.head_size * BYTES[dtype]


def show(found: Mapping[str, Any]) -> None:
    """Print what `inspect` found for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{found['name']}[/bold] ({found['kind']}): {found['parameters']:,} parameters")
    console.print(
        ", ".join(f"{name} {value}" for name, value in found["decoder"].items() if value is not None)
    )
    table = Table("parameter", "shape", box=None, pad_edge=False)
    for path, shape in _folded(found["shapes"]).items():
        table.add_row(path, " x ".join(map(str, shape)))
    console.print(table)
    for name, size in found["memory"].items():
        console.print(f"{name.replace('_', ' '):26} {_size(size):>10}")


def _of_config(target: str, overrides: Iterable[str]) -> dict[str, Any]:
    from hllm_jax.recipes import load_run_config

    _, config = load_run_config(target, overrides)
    if not hasattr(config, "model"):
        raise ValueError(f"{target} has no model: section; hllm validate {target} prints what it has")
    model, spec = config.model, spec_of_config(config)
    memory = {"parameters": spec.parameters() * BYTES[model.param_dtype]}
    if hasattr(config, "optimizer"):
        memory["gradients"] = memory["parameters"]
        memory["optimizer"] = _optimizer_bytes(config, spec)
        memory["training_without_activations"] = sum(memory.values())
    if hasattr(config, "train"):
        rows = config.train.batch_size // config.train.accumulation
        memory["logits_per_microbatch_f32"] = rows * config.train.sequence_length * spec.vocab_size * 4
    memory["kv_cache_per_token_f32"] = cache_bytes(spec, "float32")
    memory["kv_cache_per_token_bf16"] = cache_bytes(spec, "bfloat16")
    return _describe(target, "config", spec, to_dict(config), memory)


def _vocab_size(config: Any) -> int | None:
    """Of the tokenizer of a run with fresh weights, which is not trained for this; None: the model's own."""
    tokenizer = getattr(config, "tokenizer", None)
    if tokenizer is None:
        return None
    if tokenizer.path is None:
        return tokenizer.vocab_size
    from hllm_jax.tokenizers import load_tokenizer

    return load_tokenizer(Path(tokenizer.path)).vocab_size


def _optimizer_bytes(config: Any, spec: Spec) -> int:
    """Bytes of the optimizer's state, from its shapes."""
    import jax

    from hllm_jax.models.layout import parameter_shapes
    from hllm_jax.training.optimizers import make_optimizer

    shapes: dict[str, Any] = {}
    for path, shape in parameter_shapes(spec).items():
        node = shapes
        *folders, name = path.split("/")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = jax.ShapeDtypeStruct(shape, config.model.param_dtype)
    optimizer = make_optimizer(config.optimizer, config.schedule, config.train.steps or 1)
    state = jax.eval_shape(optimizer.init, {"params": shapes})
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _describe(
    name: str, kind: str, spec: Spec, config: dict[str, Any], memory: dict[str, int]
) -> dict[str, Any]:
    from hllm_jax.models.layout import parameter_shapes

    resolved = dataclasses.replace(spec, head_dim=spec.head_size, mlp=spec.mlp_size)
    return {
        "name": name,
        "kind": kind,
        "parameters": spec.parameters(),
        "shapes": {path: list(shape) for path, shape in parameter_shapes(spec).items()},
        "config": config,
        resolved.architecture: to_dict(resolved),
        "memory": memory,
    }


def _folded(shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """`layers_0 … layers_11` as one line each where all have the same shape."""
    layers = sorted(
        {int(path.split("/")[0].removeprefix("layers_")) for path in shapes if path.startswith("layers_")}
    )
    folded: dict[str, list[int]] = {}
    for path, shape in shapes.items():
        first, _, rest = path.partition("/")
        if first.startswith("layers_") and all(shapes.get(f"layers_{i}/{rest}") == shape for i in layers):
            folded[f"layers_0…{layers[-1]}/{rest}"] = shape
        else:
            folded[path] = shape
    return folded


def _size(count: int) -> str:
    for unit, step in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << step:
            return f"{count / (1 << step):.1f} {unit}"
    return f"{count} B"
