"""The files of sentence-transformers beside a model: how the vectors of its tokens become one of the text."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from hllm_jax.interop.gguf import GGUF
from hllm_jax.interop.hf import FolderError, read_json, read_json_list
from hllm_jax.interop.registry import resolve

MODULES = "modules.json"

Kind = Literal["mean", "first", "max", "mean_sqrt"]

#: Flags of `1_Pooling/config.json`, and the names that newer files give in `pooling_mode`.
KINDS: dict[str, Kind] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt",
    "cls": "first",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt",
}

#: `{architecture}.pooling_type` of GGUF (llama.h, enum llama_pooling_type).
GGUF_TYPES: dict[Kind, int] = {"mean": 1, "first": 2}


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How a text becomes a vector.

    Attributes:
        kind: of the vectors of its tokens, the special ones included: the mean (Reimers & Gurevych 2019,
            section 3), the first, the largest of each coordinate, or the sum over the root of their number.
        normalize: the result has length 1.
        max_length: most tokens of a text, the special ones included; None: the model's.
        lowercase: the text is brought into small letters first.
    """

    kind: Kind = "mean"
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False


def read_pooling(model: str | os.PathLike[str]) -> Pooling | None:
    """What the files beside a MODEL say, or the metadata of a GGUF file; None where they say nothing.

    GGUF says how, and no more: the vectors have length 1, as llama.cpp's have where nobody asks for others.

    Args:
        model: as for `hllm_jax.load`.

    Raises:
        FolderError: a file is missing or no JSON, or asks for what is not done here (another network behind
            the pooling, several vectors joined).
    """
    folder = resolve(model).fetch()
    if folder.is_file():
        return _of_metadata(GGUF(folder))
    if not (folder / MODULES).is_file():
        return None
    modules = read_json_list(folder / MODULES)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise FolderError(
            f"{folder / MODULES}: a chain of {', '.join(kinds)}; only Transformer, Pooling and perhaps "
            "Normalize are implemented"
        )
    own, pooling = (folder / str(module.get("path", "")) for module in modules[:2])
    settings: Mapping[str, Any] = {}
    if (own / "sentence_bert_config.json").is_file():
        settings = read_json(own / "sentence_bert_config.json")
    return Pooling(
        kind=_kind(pooling / "config.json"),
        normalize=kinds[2:] == ["Normalize"],
        max_length=settings.get("max_seq_length"),
        lowercase=bool(settings.get("do_lower_case", False)),
    )


def write_pooling(folder: Path, pooling: Pooling, embed: int) -> None:
    """Write into a model's folder what `read_pooling` reads, in the form of sentence-transformers.

    Args:
        folder: of the model.
        pooling: how a text becomes a vector.
        embed: size of the vectors.
    """
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    parts += [("2_Normalize", "Normalize")] if pooling.normalize else []
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(parts)
    ]
    flags = {flag: kind == pooling.kind for flag, kind in KINDS.items() if flag.startswith("pooling_mode_")}
    settings = {"max_seq_length": pooling.max_length, "do_lower_case": pooling.lowercase}
    (folder / "1_Pooling").mkdir(parents=True)
    for name, content in (
        (MODULES, modules),
        ("1_Pooling/config.json", {"word_embedding_dimension": embed, **flags}),
        ("sentence_bert_config.json", {k: v for k, v in settings.items() if v is not None}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def pooling_to_gguf(pooling: Pooling, architecture: str) -> dict[str, int]:
    """The metadata that say it to llama.cpp, which makes every vector one of length 1 unless asked not to.

    Raises:
        FolderError: llama.cpp does not pool this way.
    """
    if pooling.kind not in GGUF_TYPES:
        raise FolderError(f"pooling by {pooling.kind}: llama.cpp has only {' and '.join(GGUF_TYPES)}")
    if pooling.lowercase:
        raise FolderError("texts in small letters before the tokenizer: GGUF has no place for that")
    return {f"{architecture}.pooling_type": GGUF_TYPES[pooling.kind]}


def _of_metadata(file: GGUF) -> Pooling | None:
    told = file.metadata.get(f"{file.metadata.get('general.architecture')}.pooling_type", 0)
    kinds = {number: kind for kind, number in GGUF_TYPES.items()}
    if told and told not in kinds:
        raise FolderError(f"{file.where}: pooling_type {told}, only {kinds} are implemented")
    return Pooling(kind=kinds[told], normalize=True) if told else None


def _kind(path: Path) -> Kind:
    told = read_json(path)
    chosen = [name for name, on in told.items() if name.startswith("pooling_mode_") and on]
    named = told.get("pooling_mode")
    chosen += [named] if isinstance(named, str) else cast("list[str]", named or [])
    if len(chosen) != 1 or chosen[0] not in KINDS:
        raise FolderError(f"{path}: pooling by {chosen}, only one of {', '.join(KINDS)} is implemented")
    return KINDS[chosen[0]]
