"""Adapters and what they stand on: the base of a run, which no checkpoint repeats, and adapters of files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hllm_jax.interop.models import Place
from hllm_jax.interop.peft import is_peft, read_peft, save_peft
from hllm_jax.interop.registry import UnknownModel, resolve
from hllm_jax.models.layout import (
    is_stacked,
    parameter_axes,
    parameter_shapes,
    unrolled_paths,
    unstack_layers,
)
from hllm_jax.models.lora import LoRAError, check_embedding, merge_matrix, rounded
from hllm_jax.models.spec import Spec, spec_from_dict
from hllm_jax.training.checkpoints import Manifest, read_manifest, read_variables, write_json

if TYPE_CHECKING:
    from hllm_jax.training.pretrained import OpenPretrained

#: Reads a model: `(scan_layers, place) -> tree` under `params`, see `OpenPretrained.read`.
Read = Callable[[bool | None, Place | None], dict[str, Any]]

#: Beside the files of `peft`: what they do not say.
OURS = "hllm_jax.json"

#: So many values of each parameter go into a fingerprint.
SAMPLED = 1024


class Adapter(NamedTuple):
    """Adapters out of a file or a run.

    Attributes:
        where: they come from, for messages.
        tree: the collection `lora`, NumPy arrays, one subtree per layer.
        fingerprint: of the weights they were trained on; None where the file does not say.
        base: what the file calls these weights, if it does.
        kept: in which bits they were meanwhile, see `LoRAConfig.base`.
        head: parameters that were trained beside them, a part of the tree `params`.
        config: the architecture with that head; None where there is none.
    """

    where: str
    tree: dict[str, Any]
    fingerprint: str | None
    base: str | None
    kept: Any = "none"
    head: Mapping[str, Any] = {}
    config: Spec | None = None


class Base:
    """The weights that adapters stand on: reads them, and says afterwards which they were.

    Args:
        name: `model.load`; kept as an absolute path, of the checkpoint where it is a run.
        opened: that model.
        scan_layers: the layout that is wanted.
        kept: `lora.base`.
        unused: first parts of the names of parameters that the model has no use for, see `unused_names`.

    Attributes:
        facts: for manifests: `load`, `kept`, and `fingerprint` as soon as the weights were read.
    """

    def __init__(
        self,
        name: str,
        opened: OpenPretrained,
        scan_layers: bool,
        kept: str = "none",
        unused: Collection[str] = (),
    ) -> None:
        self.facts: dict[str, Any] = {"load": lasting(name), "kept": kept, "fingerprint": None}
        self._opened, self._scan, self._unused = opened, scan_layers, unused

    def __call__(self, put: Place) -> dict[str, Any]:
        """See `parallel.layout.Load`."""
        period = len(self._opened.config.attention_pattern)
        read, fingerprint = fingerprinting(self._opened.read, period)
        tree = read(self._scan, put)
        self.facts["fingerprint"] = fingerprint()
        return {name: part for name, part in tree.items() if name not in self._unused}


def fingerprinting(read: Read, period: int) -> tuple[Read, Callable[[], str]]:
    """The same way to read a model, and its fingerprint once it was read.

    The same for a model in float32 and rounded to bfloat16, stacked or not.
    """
    digests: dict[str, str] = {}

    def noting(scan_layers: bool | None, place: Place | None) -> dict[str, Any]:
        def note(path: str, array: np.ndarray) -> Any:
            names = unrolled_paths(path, array.shape[0] if array.ndim else 0, period)
            for name, part in zip(names, array if names != [path] else [array], strict=True):
                digests[name] = _digest(part)
            return np.asarray(array) if place is None else place(path, array)

        return read(scan_layers, note)

    def fingerprint() -> str:
        lines = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    return noting, fingerprint


def unused_names(old: Spec, new: Spec) -> set[str]:
    """First parts of the names of the parameters of a model that the same with another head does not take."""
    return top_names(old) - (top_names(new) - fresh_names(old, new))


def fresh_names(old: Spec, new: Spec) -> set[str]:
    """First parts of the names of the parameters of a new head, which the model without it does not give."""
    other_task = getattr(new, "task", None) != getattr(old, "task", None)
    return set(new.added) - (set() if other_task else set(old.added))


def top_names(spec: Spec) -> set[str]:
    """First parts of the names of all parameters."""
    return {path.partition("/")[0] for path in parameter_shapes(spec)}


def with_adapter(read: Read, config: Spec, adapter: Adapter, base: str) -> Read:
    """The same model with adapters merged into each weight as it is read.

    Weights that were kept in few bits while the adapters learned are rounded to these first: the adapters
    know no others.

    Args:
        read: of the opened base.
        config: its architecture.
        adapter: to be merged; a head that was trained with it takes the place of what it replaces.
        base: name of the base, for messages.

    Raises:
        LoRAError: (when it is read) adapters of weights that the base does not have, of other sizes, or
            trained on other weights.
    """
    period, axes = len(config.attention_pattern), parameter_axes(config)

    def merging(scan_layers: bool | None, place: Place | None) -> dict[str, Any]:
        used: set[str] = set()
        flat: dict[str, Any] = flatten_dict(adapter.tree, sep="/")
        modules = {path.rpartition("/")[0] for path in flat}
        check_embedding(modules, "head/kernel" in axes)

        def merge(path: str, array: np.ndarray) -> Any:
            names = unrolled_paths(path, array.shape[0] if array.ndim else 0, period)
            stacked = names != [path]
            parts = list(array) if stacked else [array]
            for number, name in enumerate(names):
                if adapter.kept != "none":
                    parts[number] = rounded(name, parts[number], axes[name], adapter.kept)
                module, _, leaf = name.rpartition("/")
                if module in modules and leaf in ("kernel", "embedding"):
                    used.add(module)
                    parts[number] = _merged(module, parts[number], flat, adapter.where, base)
            array = np.stack(parts) if stacked else parts[0]
            return array if place is None else place(path, array)

        noting, fingerprint = fingerprinting(read, period)
        tree = noting(scan_layers, merge)
        if unknown := sorted(modules - used):
            raise LoRAError(
                f"{adapter.where} has adapters of {', '.join(unknown[:5])}, which {base} does not have"
            )
        found = fingerprint()
        if adapter.fingerprint not in (None, found):
            raise LoRAError(
                f"{adapter.where} was trained on other weights than those of {base}: their fingerprint is "
                f"{found[:12]}, {str(adapter.fingerprint)[:12]} is wanted"
            )
        if adapter.config is None:
            return tree
        unused = unused_names(config, adapter.config)
        kept = {name: part for name, part in tree.items() if name not in unused}
        head = {
            path: np.asarray(array) if place is None else place(path, np.asarray(array))
            for path, array in flatten_dict(dict(adapter.head), sep="/").items()
        }
        return {**kept, **unflatten_dict(head, sep="/")}

    return merging


def read_adapter(source: str | os.PathLike[str], config: Spec) -> Adapter:
    """Adapters for a model: a folder of `peft`'s, or a run of ours (its newest checkpoint).

    Args:
        source: the folder.
        config: the architecture of the base.

    Raises:
        LoRAError: there are none in it, or they are for another architecture.
    """
    if is_peft(Path(source)):
        tree, base = read_peft(Path(source), config)
        ours = Path(source) / OURS
        facts = json.loads(ours.read_text("utf-8")) if ours.is_file() else {}
        return Adapter(str(source), tree, facts.get("fingerprint"), base, facts.get("kept", "none"))
    return adapter_of(*checkpoint_with_adapters(source))


def checkpoint_with_adapters(source: str | os.PathLike[str]) -> tuple[Path, Manifest]:
    """The checkpoint that a run with `lora:` means, and its manifest.

    Raises:
        LoRAError: it is no such run.
    """
    from hllm_jax.training.pretrained import checkpoint_of

    try:
        found = resolve(source)
    except UnknownModel:
        found = None
    if found is None or found.run is None:
        raise LoRAError(
            f"{source} holds no adapters: it is neither a folder of peft's nor a run with `lora:`"
        )
    folder = checkpoint_of(found)
    return folder, read_manifest(folder)


def save_adapter(folder: Path, config: Spec, adapter: Adapter) -> None:
    """Write adapters as a folder of `peft`'s; what that does not say goes into `hllm_jax.json`: the weights
    they were trained on, and in which bits these were kept.

    Raises:
        LoRAError: a head was trained with them, which such a folder does not hold.
    """
    if adapter.head:
        raise LoRAError(
            f"{adapter.where} trained {', '.join(adapter.head)} beside its adapters, and peft's folders hold "
            "adapters alone: write the whole model with `hllm lora merge` instead"
        )
    save_peft(folder, config, adapter.tree, base=adapter.base)
    write_json(folder / OURS, {"fingerprint": adapter.fingerprint, "kept": adapter.kept})


def adapter_of(folder: Path, manifest: Manifest) -> Adapter:
    """The adapters of a checkpoint of ours.

    Raises:
        LoRAError: it has none.
    """
    base: Mapping[str, Any] | None = manifest.facts.get("base")
    if base is None:
        raise LoRAError(f"{folder} holds no adapters: it was trained without `lora:`")
    variables = read_variables(folder)
    tree, head = variables["lora"], variables.get("params", {})
    layered = {name: sub for name, sub in tree.items() if name.startswith(("layers", "encoder", "decoder"))}
    if layered and is_stacked(layered):
        tree = unstack_layers(tree)
    found = Adapter(str(folder), tree, base["fingerprint"], base["load"], base["kept"], head)
    return found._replace(config=spec_from_dict(manifest.facts["model"])) if head else found


def _merged(module: str, weight: np.ndarray, flat: Mapping[str, Any], where: str, base: str) -> np.ndarray:
    parts = {name: flat.get(f"{module}/{name}") for name in ("a", "b", "scale", "magnitude")}
    a, b = parts["a"], parts["b"]
    sizes = [(math.prod(weight.shape[:i]), math.prod(weight.shape[i:])) for i in range(1, weight.ndim)]
    if a is None or b is None or (a.shape[0], b.shape[-1]) not in sizes:
        shapes = [None if part is None else part.shape for part in (a, b)]
        raise LoRAError(
            f"{where}: adapters of {module} have the shapes {shapes}, its weight in {base} {weight.shape}"
        )
    return np.asarray(merge_matrix(np.asarray(weight), **{k: v for k, v in parts.items() if v is not None}))


def lasting(name: str) -> str:
    """A name that means the same weights from any folder, and when the run it names goes on."""
    source = resolve(name)
    if source.run is not None:
        from hllm_jax.training.pretrained import checkpoint_of

        return str(checkpoint_of(source).resolve())
    return name if source.kind == "registered" else str(Path(name).expanduser().resolve())


def _digest(array: np.ndarray) -> str:
    """Of the shape, and of values all over the array, rounded to bfloat16."""
    places = np.linspace(0, array.size - 1, min(array.size, SAMPLED)).astype(np.int64)
    sample = np.asarray(array.flat[places]).astype(ml_dtypes.bfloat16)
    return hashlib.sha256(str(array.shape).encode() + sample.tobytes()).hexdigest()
