"""Small foreign models on disk: the recorded Llama as a Hugging Face folder, and GGUF files byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hllm_jax.interop import write_safetensors

FIXTURE = Path(__file__).parents[1] / "fixtures" / "llama.npz"


class Case:
    """One recorded model: `config` (config.json), `weights` by published name, inputs and logits."""

    def __init__(self, arrays: Mapping[str, np.ndarray], name: str) -> None:
        self.name = name
        self.config: dict[str, Any] = json.loads(str(arrays[f"{name}/config.json"]))
        weights = f"{name}/weights/"
        self.weights = {k.removeprefix(weights): arrays[k] for k in arrays if k.startswith(weights)}
        self.tokens, self.logits = arrays[f"{name}/tokens"], arrays[f"{name}/logits"]
        self.padded = {
            side: (arrays[f"{name}/{side}/segment_ids"], arrays[f"{name}/{side}/logits"])
            for side in ("left", "right")
        }

    def write(self, folder: Path) -> Path:
        """As a Hugging Face folder without a tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        write_safetensors(folder / "model.safetensors", self.weights.items())
        return folder


def read_cases(path: Path = FIXTURE) -> dict[str, Case]:
    """All models that `scripts/fixtures/record_llama.py small` stored."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    names = sorted({name.split("/")[0] for name in arrays})
    return {name: Case(arrays, name) for name in names}


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """A GGUF value with its type in front."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if item and isinstance(item[0], str):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(text, item))
    return struct.pack("<IIQ", 9, 5, len(item)) + struct.pack(f"<{len(item)}i", *item)


def gguf_bytes(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    *,
    version: int = 3,
    claims: Mapping[str, Any] | None = None,
) -> bytes:
    """A GGUF file.

    Args:
        metadata: keys and values.
        tensors: name -> storage type, shape (slowest axis first), bytes.
        version: written in the header.
        claims: lies: `"tensors"` or `"entries"` (counts), or `(name, "shape" | "offset" | "type")`.
    """
    kinds = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
    claims = claims or {}
    head = b"GGUF" + struct.pack("<I", version)
    head += struct.pack("<QQ", claims.get("tensors", len(tensors)), claims.get("entries", len(metadata)))
    head += b"".join(text(key) + value(item) for key, item in metadata.items())
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        shape = claims.get((name, "shape"), shape)
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<I", claims.get((name, "type"), kinds[kind]))
        head += struct.pack("<Q", claims.get((name, "offset"), len(data)))
        data += raw + b"\0" * (-len(raw) % 32)
    return head + b"\0" * (-len(head) % 32) + data
