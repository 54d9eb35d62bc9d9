"""Published models as ours: the architecture, the parameters and the tokenizer out of one file or folder."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hllm_jax.config.declare import Invalid
from hllm_jax.interop.gguf import GGUF
from hllm_jax.interop.hf import CONFIG, WEIGHTS, HFFolder
from hllm_jax.interop.registry import Source, resolve
from hllm_jax.interop.safetensors import write_safetensors
from hllm_jax.models.config import DecoderConfig
from hllm_jax.models.families import Family, families
from hllm_jax.models.layout import is_stacked, parameter_shapes, unstack_layers

if TYPE_CHECKING:
    from hllm_jax.models.families.table import Shape, Table, Tensors
    from hllm_jax.tokenizers.tokenizer import Tokenizer


class UnreadableModel(ValueError):
    """A model of a kind that is not read here, or whose parts do not fit together."""


class PublishedModel(NamedTuple):
    """What `read_model` returns.

    Attributes:
        config: the architecture.
        params: the tree under `params`, NumPy arrays.
        tokenizer: of the model.
    """

    config: DecoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Opened:
    """A published model, opened but for its weights."""

    source: Source
    config: DecoderConfig
    table: Table
    tensors: Tensors


def read_config(model: str | os.PathLike[str] | Source) -> DecoderConfig:
    """The architecture of a published model; its weights are not read.

    Args:
        model: a Hugging Face folder, a GGUF file or a registered name (fetched if it is not there yet).

    Raises:
        UnreadableModel: a run or checkpoint (read those with `hllm_jax.training`), or an unknown family.
        ValueError: the files are damaged, or ask for what this decoder does not do.
    """
    return _open(model).config


def read_tokenizer(model: str | os.PathLike[str] | Source) -> Tokenizer:
    """The tokenizer of a published model; its weights are not read. Arguments and errors as `read_config`."""
    return _tokenizer(_open(model))


def read_model(
    model: str | os.PathLike[str] | Source,
    *,
    scan_layers: bool = False,
    param_dtype: Any = np.float32,
) -> PublishedModel:
    """Read a published model, one tensor at a time.

    Args:
        model: see `read_config`.
        scan_layers: parameters stacked for the scan instead of one subtree per layer.
        param_dtype: of the parameters; the file's values are rounded to it where it is narrower.

    Raises:
        TensorsError: tensors are missing, not known or of another shape; all are named.
        UnreadableModel, ValueError: see `read_config`; or the tokenizer has more ids than the embedding rows.
    """
    opened = _open(model)
    tokenizer = _tokenizer(opened)
    if tokenizer.vocab_size > opened.config.vocab_size:
        raise UnreadableModel(
            f"{opened.tensors.where}: the tokenizer has {tokenizer.vocab_size} ids, the embedding only "
            f"{opened.config.vocab_size} rows"
        )
    params = read_params(opened.table, opened.tensors, opened.config, scan_layers, param_dtype)
    return PublishedModel(opened.config, params, tokenizer)


def read_params(
    table: Table,
    tensors: Tensors,
    config: DecoderConfig,
    scan_layers: bool = False,
    param_dtype: Any = np.float32,
) -> dict[str, Any]:
    """The parameter tree of an open checkpoint; at no time is more than one tensor held twice."""
    period = len(config.attention_pattern)
    leaves: dict[str, np.ndarray] = {}
    for path, array in table.load(tensors, parameter_shapes(config)):
        head, _, rest = path.partition("/")
        if not (scan_layers and head.startswith("layers_")):
            leaves[path] = np.ascontiguousarray(array, param_dtype)
            continue
        layer = int(head.removeprefix("layers_"))
        block = f"layers/{rest}" if period == 1 else f"layers/block_{layer % period}/{rest}"
        if block not in leaves:
            leaves[block] = np.empty((config.layers // period, *array.shape), param_dtype)
        leaves[block][layer // period] = array
    return unflatten_dict({tuple(path.split("/")): leaf for path, leaf in leaves.items()})


def save_hf(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    family: str = "llama",
) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer's files, all that `transformers` loads.

    Args:
        folder: made if missing; files of these names are replaced.
        config: the architecture.
        params: the tree under `params`, stacked or not, in the dtype to be written.
        tokenizer: written too, if given.
        family: name of the page whose format it is.

    Raises:
        ValueError: the format cannot say what the config or the tree holds.
    """
    page, folder = families()[family], Path(folder)
    published = page.to_hf(config)
    tree: Any = unstack_layers(dict(params)) if is_stacked(dict(params)) else params
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(tree).items()}
    _expect(flat, parameter_shapes(config))
    dtypes = {str(np.asarray(leaf).dtype) for leaf in flat.values()}
    if len(dtypes) == 1:
        published["dtype"] = published["torch_dtype"] = dtypes.pop()
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, page.HF_NAMES.save(flat))
    if tokenizer is not None:
        published["bos_token_id"], published["eos_token_id"] = tokenizer.bos_id, list(tokenizer.stop_ids)
        tokenizer.save(folder)
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG)


def _open(model: str | os.PathLike[str] | Source) -> Opened:
    source = model if isinstance(model, Source) else resolve(model)
    if source.kind in ("run", "checkpoint"):
        raise UnreadableModel(f"{source.name} is a {source.kind} of this system: load it with hllm_jax.load")
    path = source.fetch()
    if source.kind == "hf":
        folder = HFFolder(path)
        page = _family("model_type", folder.config.get("model_type"), folder.where)
        return Opened(source, _spec(folder.where, lambda: page.from_hf(folder.config)), page.HF_NAMES, folder)
    file = GGUF(path)
    page = _family("GGUF_ARCHITECTURE", file.metadata.get("general.architecture"), file.where)
    spec = _spec(file.where, lambda: page.from_gguf(file.metadata, file.shapes))
    return Opened(source, spec, page.GGUF_NAMES, file)


def _family(kind: str, name: Any, where: str) -> Family:
    for page in families().values():
        if name == (page.HF_TYPE if kind == "model_type" else page.GGUF_ARCHITECTURE):
            return page
    raise UnreadableModel(f"{where} is of the family {name!r}; known here: {', '.join(families())}")


def _spec(where: str, build: Any) -> DecoderConfig:
    try:
        return build()
    except Invalid as error:
        raise UnreadableModel(f"{where} describes an impossible model: {error}") from error
    except (TypeError, ZeroDivisionError) as error:
        raise UnreadableModel(f"{where}: a value of its config has the wrong type: {error}") from error
    except ValueError as error:
        raise UnreadableModel(f"{where}: {error}") from error


def _tokenizer(opened: Opened) -> Tokenizer:
    if isinstance(opened.tensors, GGUF):
        from hllm_jax.tokenizers.gguf import from_gguf

        return from_gguf(opened.tensors.metadata)
    from hllm_jax.tokenizers.folder import load_tokenizer

    return load_tokenizer(opened.tensors.where)


def _expect(found: Mapping[str, Any], wanted: Mapping[str, Shape]) -> None:
    wrong = [f"missing {path}" for path in wanted if path not in found]
    wrong += [f"not of this model: {path}" for path in found if path not in wanted]
    wrong += [
        f"{path}: expected {list(shape)}, found {list(found[path].shape)}"
        for path, shape in wanted.items()
        if path in found and tuple(found[path].shape) != shape
    ]
    if wrong:
        raise UnreadableModel("the parameters do not fit the config: " + "; ".join(wrong[:20]))
