"""Names in GGUF files against llama.cpp's own mapping of published names, as its `gguf` package has it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import gguf
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hllm_jax.interop.models import read_params
from hllm_jax.models.families import families, llama_like
from hllm_jax.models.families.table import Arrays
from tests.models.families.contract import Case, recorded

#: Families and what their converter adds to the scales of norms (`Gemma2Model.modify_tensors`).
NORMS_PLUS = {"gemma2": 1.0, "glm4": 0.0, "mixtral": 0.0}
CASES = [case for case in recorded() if case.family in NORMS_PLUS]


def architecture(case: Case) -> Any:
    """Of llama.cpp for this config.json."""
    name = {"glm": "chatglm", "mixtral": "llama"}.get(case.config["model_type"], case.config["model_type"])
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_tensors_have_the_names_that_llama_cpp_gives_them(case: Case) -> None:
    assert {case.family for case in CASES} == set(NORMS_PLUS)
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(case.params()).items()}
    ours = dict(case.page.GGUF_NAMES.save(flat))
    mapping = gguf.get_tensor_name_map(architecture(case), case.spec.layers)
    found = converted(case).items()
    wanted = {mapping.get_name(name, (".weight", ".bias")): tensor for name, tensor in found}
    if case.spec.tie_embeddings:
        wanted.pop("output.weight", None)
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-6, err_msg=name)


def converted(case: Case) -> dict[str, np.ndarray]:
    """Published tensors after what the converter does to them, before it renames them."""
    experts = re.compile(r"\.experts\.(\d+)\.")
    merged: dict[str, np.ndarray] = {}
    for name in sorted(case.weights, key=lambda name: [int(n) for n in experts.findall(name)]):
        tensor = case.weights[name]
        if "norm" in name:
            tensor = tensor + NORMS_PLUS[case.family]
        if case.family == "mixtral" and re.search(r"[qk]_proj", name):  # `LlamaModel.permute`
            heads = case.spec.heads if "q_proj" in name else case.spec.kv_heads
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        if experts.search(name):  # `LlamaModel.modify_tensors`: one tensor of all experts
            name = experts.sub(".experts.", name)
            tensor = np.concatenate([*([merged[name]] if name in merged else []), tensor[None]])
        merged[name] = tensor
    return merged


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_tensors_of_a_gguf_file_come_back_bit_equal(case: Case) -> None:
    params = {"/".join(path): leaf for path, leaf in flatten_dict(case.params()).items()}
    table = case.page.GGUF_NAMES
    again = flatten_dict(read_params(table, Arrays("the file", dict(table.save(params))), case.spec))
    assert {"/".join(path) for path in again} == params.keys()
    for path, leaf in again.items():
        np.testing.assert_array_equal(leaf, params["/".join(path)])


@pytest.mark.parametrize("family", NORMS_PLUS)
def test_every_preset_that_llama_cpp_knows_survives_its_metadata(family: str) -> None:
    page = families()[family]
    groups = [vars(group) for group in vars(gguf.Keys).values() if isinstance(group, type)]
    known = {key for group in groups for key in group.values() if isinstance(key, str)}
    for spec in page.PRESETS.values():
        survives(page, spec, known)


def survives(page: Any, spec: Any, known: set[str]) -> None:
    """Every key of the metadata is one of llama.cpp's, and they give the spec again."""
    metadata = page.to_gguf(spec)
    assert {re.sub(r"^\w+", "{arch}", key) for key in metadata} <= known
    # Biases are no metadata: what is there is seen in the tensors.
    biases = {"blk.0.attn_q.bias": np.empty(0)} if spec.qkv_bias else {}
    again: Any = page.from_gguf(metadata, llama_like.gguf_head(spec, **biases))
    # What training alone reads is not in the file.
    experts = None if spec.experts is None else dataclasses.replace(spec.experts, load_balance=0.01)
    assert again == dataclasses.replace(spec, head_dim=spec.head_size, experts=experts)
