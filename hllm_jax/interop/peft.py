"""Adapters as `peft` keeps them: `adapter_config.json` and `adapter_model.safetensors`, both ways.

    base_model.model.<module>.lora_A.weight [r, I]      base_model.model.<module>.lora_B.weight [O, r]
    base_model.model.<module>.lora_magnitude_vector [O]                                  (DoRA)
    base_model.model.<module>.lora_embedding_A [r, V]   base_model.model.<module>.lora_embedding_B [D, r]

`<module>` is what the family of the base calls the weight, without `.weight`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hllm_jax.interop.hf import read_json
from hllm_jax.interop.models import export_page
from hllm_jax.interop.safetensors import Safetensors, write_safetensors
from hllm_jax.models.families.forms import Matrix, Same
from hllm_jax.models.families.table import Row
from hllm_jax.models.layout import parameter_axes, parameter_shapes
from hllm_jax.models.lora import LoRAError
from hllm_jax.models.spec import Spec
from hllm_jax.nn.axes import input_axes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

#: Keys of adapter_config.json that are heeded, or change nothing of what an adapter says.
HEEDED = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size", "loftq_config"),
    *("corda_config", "eva_config", "ensure_weight_tying"),
}

#: Ways to begin that leave the weights of the base as they are published.
BEGUN = (None, True, False, "true", "gaussian", "orthogonal", "eva")

_END = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?"
    r"|lora_embedding_A|lora_embedding_B)"
)


class PeftAdapter(NamedTuple):
    """What `read_peft` returns.

    Attributes:
        tree: the collection `lora`, NumPy arrays, one subtree per layer.
        base: what the file calls its base model.
    """

    tree: dict[str, Any]
    base: str | None


#: Architecture -> what `peft` calls what it does.
TASKS = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder_decoder": "SEQ_2_SEQ_LM"}


def is_peft(folder: Path) -> bool:
    """Whether a folder is an adapter of `peft`."""
    return (folder / CONFIG).is_file()


def read_peft(folder: str | os.PathLike[str], config: Spec, family: str | None = None) -> PeftAdapter:
    """Adapters from a folder of `peft`.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        config: the architecture of the base.
        family: the page whose names its weights have; None: the first that can say the architecture.

    Raises:
        LoRAError: a part without its other half, of a weight the base does not have, of another shape; or
            the file asks for what is not done here.
    """
    folder = Path(folder)
    said = read_json(folder / CONFIG)
    _check(said, folder)
    if not (folder / WEIGHTS).is_file():
        raise LoRAError(f"{folder} has no {WEIGHTS}: save the adapter with safe_serialization")
    tensors = Safetensors(folder / WEIGHTS)
    ours = _ours(config, family)
    found: dict[str, dict[str, np.ndarray]] = {}
    # Of an embedding or a head that has adapters, `peft` also saves the weight itself.
    for name in (n for n in tensors.shapes if not n.endswith(".base_layer.weight")):
        match = _END.fullmatch(name.removeprefix(PREFIX))
        if match is None or match["module"] not in ours:
            raise LoRAError(f"{folder / WEIGHTS}: {name} is not an adapter of a weight of this base")
        part = match["part"].removesuffix(".weight").rsplit("_", 1)[-1]
        found.setdefault(match["module"], {})[part] = np.asarray(tensors.read(name), np.float32)
    if missing := sorted(_expected(said, ours) - found.keys()) or (not found and [WEIGHTS]):
        raise LoRAError(f"{folder} says that it has adapters which are not in it: {', '.join(missing[:5])}")
    leaves: dict[str, np.ndarray] = {}
    for module, parts in found.items():
        path, row, (rows, outputs) = ours[module]
        if not {"A", "B"} <= parts.keys():
            raise LoRAError(f"{folder / WEIGHTS}: {module} has only {', '.join(sorted(parts))}, not A and B")
        a, b = parts["A"].T, parts["B"]
        if a.shape[0] != rows or b.shape != (math.prod(outputs), a.shape[1]):
            raise LoRAError(
                f"{folder / WEIGHTS}: {module} is {parts['A'].shape} and {b.shape}, its weight maps "
                f"{rows} to {math.prod(outputs)}"
            )
        rank = a.shape[1]
        alpha = _pattern(said.get("alpha_pattern"), module, said["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)
        leaves[f"{path}/a"] = np.ascontiguousarray(a)
        leaves[f"{path}/b"] = np.ascontiguousarray(_load(row, b, outputs))
        leaves[f"{path}/scale"] = np.asarray(scale, np.float32)
        if "vector" in parts and path == "embed":
            raise LoRAError(f"{folder}: DoRA of the embedding {module}, which has no norm here")
        if "vector" in parts:
            leaves[f"{path}/magnitude"] = _load(row, parts["vector"].reshape(-1, 1), outputs)[0]
    if bool(said.get("use_dora")) != any(path.endswith("/magnitude") for path in leaves):
        raise LoRAError(f"{folder}: use_dora is {said.get('use_dora')}, and the weights say otherwise")
    tree: dict[str, Any] = unflatten_dict(leaves, sep="/")
    return PeftAdapter(tree, said.get("base_model_name_or_path"))


def save_peft(
    folder: str | os.PathLike[str],
    config: Spec,
    adapters: Mapping[str, Any],
    base: str | None = None,
    family: str | None = None,
) -> None:
    """Write adapters as a folder that `peft` loads.

    Args:
        folder: made if missing; files of these names are replaced.
        config: the architecture of the base.
        adapters: the collection `lora`, one subtree per layer.
        base: name of the base model, for `peft` to find it.
        family: as of `read_peft`.

    Raises:
        LoRAError: a weight that the format has no adapter for.
    """
    folder = Path(folder)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(adapters), sep="/").items()}
    ours = {path: (module, row, sizes) for module, (path, row, sizes) in _ours(config, family).items()}
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path in sorted({path.rpartition("/")[0] for path in flat}):
        if path not in ours:
            raise LoRAError(f"the format of peft has no name for an adapter of {path}: merge it instead")
        module, row, (_, outputs) = ours[path]
        a, b = flat[f"{path}/a"], flat[f"{path}/b"]
        kind, end = ("lora_embedding", "") if path.endswith("embed") else ("lora", ".weight")
        tensors[f"{PREFIX}{module}.{kind}_A{end}"] = np.ascontiguousarray(a.T)
        tensors[f"{PREFIX}{module}.{kind}_B{end}"] = _save(row, b, outputs)
        ranks[module] = a.shape[-1]
        alphas[module] = float(flat[f"{path}/scale"]) * a.shape[-1]
        if (magnitude := flat.get(f"{path}/magnitude")) is not None:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = _save(row, magnitude[None], outputs)[:, 0]
    rank, alpha = max(ranks.values()), max(alphas.values())
    published = {
        "peft_type": "LORA",
        "task_type": TASKS[config.architecture],
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(m): value for m, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
        "lora_dropout": max((float(leaf) for p, leaf in flat.items() if p.endswith("/dropout")), default=0.0),
        "use_dora": any(path.endswith("/magnitude") for path in flat),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": any(_is_conv(row) for _, row, _ in ours.values()),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, tensors.items())
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG)


def _ours(config: Spec, family: str | None) -> dict[str, tuple[str, Row, tuple[int, tuple[int, ...]]]]:
    """Their module -> our path, its row, and its sizes: inputs, and the axes of its outputs."""
    page, _ = export_page("to_hf", config, family)
    shapes, axes = parameter_shapes(config), parameter_axes(config)
    found: dict[str, tuple[str, Row, tuple[int, tuple[int, ...]]]] = {}
    for row in page.HF_NAMES.entries(shapes):
        if len(row.ours) != 1 or len(row.theirs) != 1 or not isinstance(row.form, Matrix | Same):
            continue
        path, leaf = row.ours[0].rsplit("/", 1)
        if leaf != "kernel" and row.ours[0] != "embed/embedding":
            continue
        cut = input_axes(axes[row.ours[0]])
        shape = shapes[row.ours[0]]
        found[row.theirs[0].removesuffix(".weight")] = (path, row, (math.prod(shape[:cut]), shape[cut:]))
    return found


def _load(row: Row, theirs: np.ndarray, outputs: tuple[int, ...]) -> np.ndarray:
    """`[O, r]` of theirs, whose outputs may be in another order, as ours `[r, O]`."""
    if isinstance(row.form, Matrix):
        return _as_linear(row.form).read(theirs, (theirs.shape[1], *outputs)).reshape(theirs.shape[1], -1)
    return theirs.T


def _save(row: Row, ours: np.ndarray, outputs: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_load`."""
    if isinstance(row.form, Matrix):
        return np.ascontiguousarray(_as_linear(row.form).write(ours.reshape(ours.shape[0], *outputs)))
    return np.ascontiguousarray(ours.T)


def _as_linear(form: Matrix) -> Matrix:
    """The form of B, which is a linear layer of PyTorch whatever its weight is."""
    return dataclasses.replace(form, inputs=1, transposed=True)


def _is_conv(row: Row) -> bool:
    return isinstance(row.form, Matrix) and not row.form.transposed


def _expected(said: Mapping[str, Any], modules: Collection[str]) -> set[str]:
    """The modules that `target_modules` and its kin mean, as `peft` reads them."""
    layers = said.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers

    def means(wanted: Any, module: str) -> bool:
        if isinstance(wanted, str):
            return bool(re.fullmatch(wanted, module))
        return any(module == each or module.endswith(f".{each}") for each in wanted or ())

    def chosen(module: str) -> bool:
        number = re.search(r"\.(\d+)\.", module)
        if means(said.get("exclude_modules"), module):
            return False
        if layers and (number is None or int(number[1]) not in layers):
            return False
        if said.get("target_modules") == "all-linear":
            return number is not None
        return means(said.get("target_modules"), module)

    return {module for module in modules if chosen(module)}


def _check(said: Mapping[str, Any], folder: Path) -> None:
    """Refuse what an adapter asks for and is not done here."""
    wrong = [
        f"{key} is {value!r}, which is not done here"
        for key, value in said.items()
        if key not in HEEDED and value and not (key == "bias" and value == "none")
    ]
    if said.get("peft_type") != "LORA":
        wrong.append(f"peft_type is {said.get('peft_type')!r}, must be 'LORA'")
    begun = said.get("init_lora_weights", True)
    if begun not in BEGUN:
        wrong.append(
            f"init_lora_weights is {begun!r}, which changes the weights of the base: convert it with peft"
        )
    if "lora_alpha" not in said:
        wrong.append("lora_alpha is missing")
    if wrong:
        raise LoRAError(f"{folder / CONFIG}: " + "; ".join(wrong))


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> float:
    """The value of the first pattern that is the end of a module's name, as `peft` looks them up."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return float(value)
    return float(default)
