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

#: What a model of each architecture can be asked for.
CAN = {
    "decoder": ["pretrain", "fine-tune", "generate", "chat", "score"],
    "encoder": ["pretrain", "fine-tune", "embed"],
    "encoder_decoder": ["pretrain", "fine-tune", "generate"],
}


def inspect(target: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Describe a MODEL, or a configuration (`.yaml`) with overrides.

    Returns:
        `name`, `kind`, `parameters` (a tied embedding counts once), `shapes` and `axes` (parameter path ->
        shape and names of its axes, of the unrolled model), `config` (the resolved configuration, or the
        architecture of a MODEL), the architecture under its kind (`decoder`, `encoder`, `encoder_decoder`),
        `memory` in bytes, activations not included, and `training_flops_per_token` of rows of `max_length`.

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
        **cache_memory(spec),
    }
    return _describe(target, kind, spec, to_dict(spec), memory)


def inspect_sharding(
    target: str, overrides: Iterable[str] = (), devices: int | None = None
) -> dict[str, Any]:
    """How a configuration lays its parameters out; layers are shown as one (`layers_0…31/…`).

    Args:
        target: a configuration.
        overrides: `key=value`.
        devices: how many; None where `mesh` says it.

    Returns:
        `strategy`, `mesh` (sizes above 1), `devices`, `pipeline` (`PipelineConfig.facts`), and `sharding`:
        see `parallel.drawing.draw`. Each stage of a pipeline holds its part of the layers.

    Raises:
        ConfigError, ValueError: it is no configuration with a model, or nothing says how many devices.
        MeshError, LayoutError: the mesh does not fit the devices, or the model the mesh.
    """
    import math

    from hllm_jax.models.layout import parameter_axes, parameter_shapes
    from hllm_jax.parallel.config import PipelineConfig
    from hllm_jax.parallel.drawing import draw
    from hllm_jax.parallel.layout import check_divisible, check_pipeline
    from hllm_jax.parallel.mesh import mesh_shape
    from hllm_jax.parallel.rules import make_rules
    from hllm_jax.recipes import load_run_config

    _, config = load_run_config(target, overrides)
    if not (hasattr(config, "model") and hasattr(config, "mesh")):
        raise ValueError(f"{target} has no sections model and mesh: nothing is laid out")
    given = list(config.mesh.sizes().values())
    if devices is None and (not given or -1 in given):
        raise ValueError("the mesh takes the devices that there are: say how many with --devices N")
    mesh = mesh_shape(config.mesh, config.strategy, devices or math.prod(given))
    spec, rules = spec_of_config(config), make_rules(config.strategy)
    shapes = {path: list(shape) for path, shape in parameter_shapes(spec).items()}
    axes = {path: list(names) for path, names in parameter_axes(spec).items()}
    check_divisible(shapes, axes, rules, mesh)
    pipeline = getattr(config, "pipeline", None) or PipelineConfig()
    check_pipeline(pipeline, mesh["stage"], spec, config.model.execution)
    folded = _folded(shapes)
    names = _folded(axes)
    return {
        "strategy": config.strategy,
        "mesh": {axis: size for axis, size in mesh.items() if size > 1},
        "devices": math.prod(mesh.values()),
        "pipeline": pipeline.facts(mesh["stage"]),
        "sharding": draw(folded, names, rules, mesh),
    }


def list_families() -> list[dict[str, Any]]:
    """Every family: `family, architecture, reads, writes, presets` (name -> parameters)."""
    from hllm_jax.models.families import families

    found: list[dict[str, Any]] = []
    for name, page in families().items():
        formats = ["hf"] + (["gguf"] if getattr(page, "GGUF_ARCHITECTURES", ()) else [])
        found.append(
            {
                "family": name,
                "architecture": next(iter(page.PRESETS.values())).architecture,
                "about": (page.__doc__ or "").splitlines()[0],
                "reads": formats,
                "writes": [form for form in formats if hasattr(page, f"to_{form}")],
                "can": CAN[next(iter(page.PRESETS.values())).architecture],
                "presets": {preset: spec.parameters() for preset, spec in page.PRESETS.items()},
            }
        )
    return found


def show_families(found: Iterable[Mapping[str, Any]]) -> None:
    """Print `list_families` for people."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for family in found:
        console.print(f"[bold]{family['family']}[/bold]  {family['about']}")
        console.print(
            f"  {family['architecture'].replace('_', '-')}: {', '.join(family['can'])}; "
            f"reads {', '.join(family['reads'])}; writes {', '.join(family['writes'])}"
        )
        for preset, parameters in family["presets"].items():
            console.print(f"  {preset:28} {parameters:>18,}")


def preset_named(target: str) -> Spec | None:
    """The preset that a name means: ours (`llama-2-7b`), or a hub's (`meta-llama/Llama-2-7b-hf`)."""
    from hllm_jax.models.families import presets

    name = target.rpartition("/")[2].lower().removesuffix("-hf")
    return presets().get(name)


def read_spec(model: str) -> tuple[Spec, str]:
    """The architecture of any MODEL or preset, and what kind it is; weights are not read.

    Raises:
        ValueError: it names no model, or one that cannot be read.
        CheckpointError: the run has no checkpoint, or a damaged one.
    """
    from hllm_jax.interop.models import read_config
    from hllm_jax.interop.registry import resolve

    preset = None if Path(model).expanduser().exists() else preset_named(model)
    if preset is not None:
        return preset, "preset"
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
    """Bytes of keys and values that one written token keeps over all layers; 0 for an encoder."""
    layers = 0 if spec.architecture == "encoder" else getattr(spec, "depth", spec.layers)
    return 2 * layers * spec.kv_heads * spec.head_size * BYTES[dtype]


def cache_memory(spec: Spec) -> dict[str, int]:
    """`cache_bytes` in both dtypes, where the model keeps a cache."""
    sizes = {"f32": "float32", "bf16": "bfloat16"}
    found = {f"kv_cache_per_token_{short}": cache_bytes(spec, dtype) for short, dtype in sizes.items()}
    return {name: size for name, size in found.items() if size}


def show(found: Mapping[str, Any]) -> None:
    """Print what `inspect` found for people."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    console.print(f"[bold]{found['name']}[/bold] ({found['kind']}): {found['parameters']:,} parameters")
    (said,) = (found[kind] for kind in CAN if kind in found)
    console.print(", ".join(f"{name} {value}" for name, value in said.items() if value is not None))
    table = Table(Column("parameter", overflow="fold"), "shape", "axes", box=None, pad_edge=False)
    axes = _folded(found["axes"])
    for path, shape in _folded(found["shapes"]).items():
        table.add_row(path, " x ".join(map(str, shape)), ", ".join(axes[path]))
    console.print(table)
    console.print(f"{'training FLOPs per token':26} {found['training_flops_per_token'] / 1e9:>8.2f} G")
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
    return _describe(target, "config", spec, to_dict(config), memory | cache_memory(spec))


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
    from hllm_jax.models.layout import parameter_axes, parameter_shapes

    resolved: Any = dataclasses.replace(spec, head_dim=spec.head_size, mlp=spec.mlp_size)
    return {
        "name": name,
        "kind": kind,
        "parameters": spec.parameters(),
        "shapes": {path: list(shape) for path, shape in parameter_shapes(spec).items()},
        "axes": {path: list(axes) for path, axes in parameter_axes(spec).items()},
        "config": config,
        resolved.architecture: to_dict(resolved),
        "memory": memory,
        "training_flops_per_token": spec.flops_per_token(spec.max_length),
    }


def _folded(shapes: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """`layers_0 … layers_11` as one line each where all of a side have the same shape."""
    from hllm_jax.models.layout import stacked_path

    alike: dict[str, list[str]] = {}
    for path in shapes:
        alike.setdefault(stacked_path(path)[0], []).append(path)
    folded: dict[str, list[Any]] = {}
    for stacked, paths in alike.items():
        numbers = [index for path in paths if (index := stacked_path(path)[1]) is not None]
        if numbers and all(shapes[path] == shapes[paths[0]] for path in paths):
            folded[stacked.replace("layers/", f"layers_0…{max(numbers)}/", 1)] = shapes[paths[0]]
        else:
            folded |= {path: shapes[path] for path in paths}
    return folded


def _size(count: int) -> str:
    for unit, step in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << step:
            return f"{count / (1 << step):.1f} {unit}"
    return f"{count} B"
