"""Writing GGUF files that llama.cpp runs: metadata, tokenizer, tensors, whole or in blocks of few bits."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import Table
from hllm_jax.models.layout import flat_unrolled, parameter_shapes
from hllm_jax.models.spec import EncoderConfig, Spec

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from hllm_jax.interop.sentence_transformers import Pooling
    from hllm_jax.tokenizers.tokenizer import Tokenizer

#: Storage types of matrices that can be written; what is not a matrix stays float32, as llama.cpp wants it.
Kind = Literal["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
KINDS: tuple[Kind, ...] = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

#: `general.file_type` (llama.h, enum llama_ftype): what most of the tensors are.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}

#: Values of a tensor that are brought into another storage type at a time.
PIECE = 1 << 22


def save_gguf(
    path: str | os.PathLike[str],
    config: Spec,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    kind: Kind = "F16",
    family: str | None = None,
    pooling: Pooling | None = None,
) -> dict[str, int]:
    """Write a model as one GGUF file, which appears when it is complete.

    Args:
        path: of the file; replaced if it is there.
        config: the architecture.
        params: the tree under `params`, stacked or not.
        tokenizer: written too, with its chat template; llama.cpp runs no file without one.
        kind: storage type of the matrices. One whose rows are no multiple of its block (32) is kept as F16.
        family: name of the page whose format it is; None: the first that can say the config.
        pooling: how an encoder makes a vector of a text. Its pooler has no part in that, and is left out.

    Returns:
        How many tensors have which storage type.

    Raises:
        ConfigRefused: no format of llama.cpp can say the config, or an encoder's pooler would be lost.
        ValueError: the pooling is none of llama.cpp's, the tree not that of the config, `kind` not known.
    """
    from gguf import GGUFWriter

    from hllm_jax.interop.models import expect, export_page

    if kind not in KINDS:
        raise ValueError(f"GGUF storage type {kind!r} cannot be written; these can: {', '.join(KINDS)}")
    if isinstance(config, EncoderConfig):
        config, params = _without_pooler(config, params, pooling)
    page, metadata = export_page("to_gguf", config, family)
    flat, shapes = flat_unrolled(params), parameter_shapes(config)
    expect(flat, shapes)
    flat = {path: flat[path] for path in shapes}
    extra = page.gguf_extra(config) if hasattr(page, "gguf_extra") else {}
    metadata = {"general.file_type": FILE_TYPES[kind], "general.quantization_version": 2, **metadata}
    if tokenizer is not None:
        from hllm_jax.tokenizers.gguf_export import to_gguf

        # Where both speak (of token types), the model knows.
        metadata = to_gguf(tokenizer) | metadata
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A page may write for several architectures: the keys of the sizes begin with the one that it chose.
    architecture = next(name for name in page.GGUF_ARCHITECTURES if f"{name}.block_count" in metadata)
    if pooling is not None:
        from hllm_jax.interop.sentence_transformers import pooling_to_gguf

        metadata |= pooling_to_gguf(pooling, architecture)
    writer = GGUFWriter(partial, architecture)
    try:
        counts = _write(writer, metadata, page.GGUF_NAMES, flat, shapes, extra, kind)
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise
    writer.close()
    os.replace(partial, target)
    return counts


def storage(shape: tuple[int, ...], kind: Kind) -> Kind:
    """The storage type of a tensor of this shape in a file of `kind`."""
    if len(shape) < 2:
        return "F32"
    blocks = kind not in ("F32", "F16", "BF16")
    return "F16" if blocks and shape[-1] % 32 else kind


def _without_pooler(
    config: EncoderConfig, params: Mapping[str, Any], pooling: Pooling | None
) -> tuple[EncoderConfig, Mapping[str, Any]]:
    """What llama.cpp runs of an encoder, where a vector of a text is all that it is asked for."""
    if not config.pooler:
        return config, params
    if pooling is None:
        raise ConfigRefused(
            "llama.cpp runs encoders for vectors of texts and has no place for this one's pooler; it is left "
            "out only where files of sentence-transformers (modules.json) say how the model does without it"
        )
    config = dataclasses.replace(config, pooler=False)
    return config, {name: leaves for name, leaves in params.items() if name != "pool"}


def _write(
    writer: GGUFWriter,
    metadata: Mapping[str, Any],
    table: Table,
    flat: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    extra: Mapping[str, np.ndarray],
    kind: Kind,
) -> dict[str, int]:
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    for key, value in metadata.items():
        _add(writer, key, value)
    kinds: dict[str, Kind] = {}
    told = {**table.shapes(shapes), **{name: tensor.shape for name, tensor in extra.items()}}
    for name, shape in told.items():
        kinds[name] = storage(shape, kind)
        code = GGMLQuantizationType[kinds[name]]
        size = int(np.prod(quant_shape_to_byte_shape(shape, code)))
        # The element type is passed too; it matters only for bytes, whose shape would be taken for blocks.
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in itertools.chain(table.save(flat), extra.items()):
        writer.write_tensor_data(_stored(tensor, kinds[name]))
    counts: dict[str, int] = {}
    for stored in kinds.values():
        counts[stored] = counts.get(stored, 0) + 1
    return counts


def _stored(tensor: np.ndarray, kind: Kind) -> np.ndarray:
    """The bytes of a tensor in its storage type, converted a few rows at a time."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    code = GGMLQuantizationType[kind]
    rows = max(1, PIECE // max(1, int(np.prod(tensor.shape[1:]))))
    pieces: Iterable[np.ndarray] = (tensor[i : i + rows] for i in range(0, len(tensor), rows))
    parts = [quantize(np.ascontiguousarray(piece, np.float32), code) for piece in pieces]
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """One metadata entry; whole numbers are uint32, as llama.cpp reads the sizes; arrays keep their dtype."""
    from gguf import GGUFValueType

    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, np.ndarray):
        items = GGUFValueType[value.dtype.name.upper()]
        writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, items)
    else:
        writer.add_array(key, list(value))
