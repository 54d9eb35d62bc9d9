"""The same tests for every family, against models that `transformers` made (recorded, and drawn now)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hllm_jax.interop import read_config, save_hf
from hllm_jax.models import DecoderConfig, Execution, Spec, init_cache
from hllm_jax.models.families import families, presets
from hllm_jax.models.families.published import SILENT
from tests.models.families.contract import (
    FIXTURES,
    MINUS_ONE,
    ROOT,
    SAME_MODEL,
    TOLERANCE,
    Case,
    InMemory,
    apply,
    ask_peers,
    differences,
    first_cases,
    read_cases,
    recorded,
)
from tests.models.published import PARAMETERS, WITHOUT_CLASS

CASES, FIRST = recorded(), first_cases()
DECODERS = [case for case in CASES if isinstance(case.spec, DecoderConfig)]


def test_every_family_is_recorded() -> None:
    recordable = {path.stem for path in (ROOT / "scripts" / "fixtures" / "families").glob("*.py")}
    assert {path.stem for path in FIXTURES.glob("*.npz")} == recordable
    assert recordable <= set(families())
    assert len(CASES) >= len(recordable)
    assert all(np.std(output) > 0.05 for case in CASES for output in case.outputs.values())


# ---- 1. config.json, there and back ----


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_config_json_there_and_back(case: Case) -> None:
    spec = case.spec
    said = case.page.to_hf(spec)
    assert case.read(said) == spec
    # What both write and the logits depend on is the same.
    for key in said.keys() & case.config.keys() - SILENT - {"rope_parameters"}:
        assert said[key] == case.config[key], key


@pytest.mark.parametrize("name", presets())
def test_every_preset_survives_config_json(name: str) -> None:
    page = next(page for page in families().values() if name in page.PRESETS)
    spec: Any = page.PRESETS[name]
    sizes = {"head_dim": spec.head_size, "mlp": spec.mlp_size}
    again: Any = page.from_hf(page.to_hf(spec))
    assert dataclasses.replace(again, **sizes) == dataclasses.replace(spec, **sizes)


# ---- 2. parameters ----


def test_every_preset_has_its_published_number_of_parameters() -> None:
    assert {name: spec.parameters() for name, spec in presets().items()} == PARAMETERS | WITHOUT_CLASS


@pytest.mark.peers
def test_transformers_counts_the_same_parameters() -> None:
    named = ((name, family, page) for family, page in families().items() for name in page.PRESETS)
    pages = [each for each in named if each[0] not in WITHOUT_CLASS]
    classes = {name: families()[SAME_MODEL.get(family, family)] for name, family, _ in pages}
    configs = {name: classes[name].to_hf(page.PRESETS[name]) for name, _, page in pages}
    assert json.loads(ask_peers("count", given=configs)) == PARAMETERS


# ---- 3. logits ----


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_what_comes_out_of_recorded_models(case: Case) -> None:
    found = differences(case, case.outputs, case.spec, case.params())
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("case", FIRST, ids=repr)
def test_scanned_layers_and_the_plain_kernel_say_the_same(case: Case) -> None:
    found = differences(
        case, case.outputs, case.spec, case.params(scan_layers=True), scan_layers=True, attention="plain"
    )
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("case", DECODERS, ids=repr)
def test_documents_packed_into_a_row_say_what_they_say_alone(case: Case) -> None:
    tokens, alone = case.inputs["tokens"], case.outputs["plain/logits"]
    first = (tokens.shape[1] + 1) // 2
    second = tokens.shape[1] - first
    row = np.concatenate([tokens[0, :first], tokens[1, :second]])[None]
    segment_ids = jnp.asarray([[1] * first + [2] * second])
    said = apply(case.spec, case.params(), {"tokens": row}, segment_ids)["logits"][0]
    expected = np.concatenate([alone[0, :first], alone[1, :second]])
    assert np.abs(np.asarray(said) - expected).max() <= TOLERANCE


@pytest.mark.peers
def test_what_comes_out_of_models_that_are_drawn_now(tmp_path: Path) -> None:
    ask_peers("record", tmp_path, *sorted({case.family for case in CASES}), "--seed", 100)
    cases = [case for file in sorted(tmp_path.glob("*.npz")) for case in read_cases(file)]
    assert [repr(case) for case in cases] == [repr(case) for case in CASES]
    found = {repr(case): differences(case, case.outputs, case.spec, case.params()) for case in cases}
    assert max(max(each.values()) for each in found.values()) <= TOLERANCE, found


# ---- 4. out again ----


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_published_tensors_come_back_bit_equal(case: Case) -> None:
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(case.params()).items()}
    table = case.page.HF_NAMES
    saved, published = dict(table.save(flat)), table.named(InMemory(case.weights))
    assert saved.keys() <= published.shapes.keys() | set(table.tied)
    for name, tensor in saved.items():
        if name in published.shapes:
            # A scale kept minus one loses the digits that the one pushes out.
            lost = 2.0**-23 if case.family in MINUS_ONE and "norm" in name else 0.0
            np.testing.assert_allclose(tensor, published.read(name), rtol=0, atol=lost, err_msg=name)


@pytest.mark.peers
def test_transformers_loads_what_we_save_and_says_the_same(tmp_path: Path) -> None:
    asked = []
    for case in CASES:
        folder = tmp_path / repr(case)
        save_hf(folder, case.spec, case.params(), family=case.family)
        assert read_config(folder) == case.spec
        asked.append([str(folder), str(case.file), case.name, str(folder / "outputs.npz")])
    ask_peers("run", given=asked)
    found = {}
    for case in CASES:
        with np.load(tmp_path / repr(case) / "outputs.npz") as stored:
            outputs = {name: stored[name] for name in stored.files}
        found[repr(case)] = differences(case, outputs, case.spec, case.params())
    assert max(max(each.values()) for each in found.values()) <= TOLERANCE, found


# ---- 5. training and decoding ----


@pytest.mark.parametrize("case", FIRST, ids=repr)
def test_gradients_of_every_parameter_are_finite_and_not_zero(case: Case) -> None:
    spec, params = case.spec, case.params()
    model = spec.build(Execution(dtype="float32"))
    given = [jnp.asarray(case.inputs[name]) for name in ("tokens", "decoder_tokens") if name in case.inputs]
    more = {"token_types": jnp.asarray(case.inputs["token_types"])} if "token_types" in case.inputs else {}
    weights = jax.random.key(0)

    def loss(params: Any) -> jax.Array:
        out: Any = model.apply({"params": params}, *given, **more)
        said = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum((x * jax.random.normal(weights, x.shape)).sum() for x in said)

    gradients = flatten_dict(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(leaf).all() for leaf in gradients.values())
    still = ["/".join(path) for path, leaf in gradients.items() if not np.any(leaf)]
    # A softmax does not see what is added to all of its scores.
    assert all(path.endswith("attention/key/bias") for path in still), still


@pytest.mark.parametrize("case", DECODERS, ids=repr)
def test_cached_decoding_equals_the_whole_row_at_every_step(case: Case) -> None:
    spec: Spec = case.spec
    model = spec.build(Execution(dtype="float32"))
    variables, tokens = {"params": case.params()}, jnp.asarray(case.inputs["tokens"])
    whole: Any = apply(spec, variables["params"], case.inputs)["logits"]
    cache = init_cache(spec, tokens.shape[0], tokens.shape[1])

    def step(cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        logits, cache = model.apply(variables, token[:, None], cache=cache)
        return cache, logits[:, 0]

    _, logits = jax.lax.scan(step, cache, tokens.T)
    np.testing.assert_allclose(logits.swapaxes(0, 1), whole, atol=2e-5 * float(np.abs(whole).max()))
