"""Names in GGUF files against llama.cpp's own mapping of published names, as its `gguf` package has it."""

from __future__ import annotations

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
NORMS_PLUS = {"gemma2": 1.0, "glm4": 0.0}
CASES = [case for case in recorded() if case.family in NORMS_PLUS]


def architecture(case: Case) -> Any:
    """Of llama.cpp for this config.json."""
    name = {"glm": "chatglm"}.get(case.config["model_type"], case.config["model_type"])
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_tensors_have_the_names_that_llama_cpp_gives_them(case: Case) -> None:
    assert {case.family for case in CASES} == set(NORMS_PLUS)
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(case.params()).items()}
    ours = dict(case.page.GGUF_NAMES.save(flat))
    mapping = gguf.get_tensor_name_map(architecture(case), case.spec.layers)
    wanted = {mapping.get_name(name, (".weight", ".bias")): name for name in case.weights}
    if case.spec.tie_embeddings:
        wanted.pop("output.weight", None)
    assert ours.keys() == wanted.keys()
    for name, published in wanted.items():
        added = NORMS_PLUS[case.family] if "norm" in name else 0.0
        np.testing.assert_allclose(ours[name], case.weights[published] + added, rtol=1e-6, err_msg=name)


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
    assert again == spec
