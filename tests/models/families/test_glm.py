"""GLM of 2022 against its paper. `transformers` has no class of it: the reference is NumPy, written from the
equations and figure 2 of Du et al. 2022 for the tensors of published checkpoints, not a published program."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.interop.models import read_params
from hllm_jax.models import Decoder, DecoderConfig, Execution, parameter_shapes
from hllm_jax.models.families import glm, glm4
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import Arrays
from hllm_jax.objectives import causal_lm
from tests.models.families.learning import learn
from tests.models.published import WITHOUT_CLASS

# config.json of such a model, small; the keys are those of THUDM's remote code.
PUBLISHED = {
    "architectures": ["GLMModel"],
    "attention_dropout_prob": 0.1,
    "attention_scale": 1.0,
    "block_position_encoding": True,
    "checkpoint_activations": False,
    "checkpoint_num_layers": 1,
    "embedding_dropout_prob": 0.1,
    "hidden_size": 24,
    "initializer_range": 0.02,
    "max_sequence_length": 40,
    "model_type": "glm",
    "num_attention_heads": 4,
    "num_layers": 2,
    "output_dropout_prob": 0.1,
    "output_predict": True,
    "parallel_output": True,
    "relative_encoding": False,
    "spell_func": "lstm",
    "spell_length": None,
    "vocab_size": 67,
}

# Figure 2: x1 … x6, of which x3 and (x5, x6) are blanked, the second written first. M is 60, S is 61.
#          x1  x2   M  x4   M | S  x5  x6 | S  x3
TOKENS = (11, 12, 60, 14, 60, 61, 15, 16, 61, 13)
FIRST = (1, 2, 3, 4, 5, 5, 5, 5, 3, 3)
SECOND = (0, 0, 0, 0, 0, 1, 2, 3, 1, 2)
#: Rows see columns: part A itself alone, part B all of A and what is before it.
SEES = np.asarray([[int(c < 5 if r < 5 else c <= r) for c in range(10)] for r in range(10)])


@functools.cache
def weights() -> dict[str, np.ndarray]:
    """Random tensors under their published names."""
    D, rows, rng = 24, 41, np.random.default_rng(0)
    stack = "glm.transformer."
    shapes: dict[str, tuple[int, ...]] = {
        "glm.word_embeddings.weight": (67, D),
        f"{stack}position_embeddings.weight": (rows, D),
        f"{stack}block_position_embeddings.weight": (rows, D),
        f"{stack}final_layernorm.weight": (D,),
        f"{stack}final_layernorm.bias": (D,),
    }
    inside = {"attention.query_key_value": (3 * D, D), "attention.dense": (D, D)}
    inside |= {"mlp.dense_h_to_4h": (4 * D, D), "mlp.dense_4h_to_h": (D, 4 * D)}
    for layer in range(2):
        for name, shape in inside.items():
            shapes |= {
                f"{stack}layers.{layer}.{name}.weight": shape,
                f"{stack}layers.{layer}.{name}.bias": shape[:1],
            }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{stack}layers.{layer}.{norm}.{leaf}": (D,) for leaf in ("weight", "bias")}
    return {
        name: (rng.normal(size=shape) * 0.2 + ("norm.weight" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def reference(tokens: Any, first: Any, second: Any, sees: np.ndarray) -> np.ndarray:
    """Logits `[L, V]` in float64: section 2.3 of the paper (pre-norm, GeLU, a single linear output)."""
    w = {name: tensor.astype(float) for name, tensor in weights().items()}
    t = "glm.transformer."

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["glm.word_embeddings.weight"][list(tokens)] + w[f"{t}position_embeddings.weight"][list(first)]
    x = x + w[f"{t}block_position_embeddings.weight"][list(second)]
    for layer in range(2):
        name = f"{t}layers.{layer}."
        q, k, v = np.split(
            linear(norm(x, f"{name}input_layernorm"), f"{name}attention.query_key_value"), 3, axis=-1
        )
        heads = []
        for h in range(4):
            part = slice(6 * h, 6 * h + 6)
            scores = np.where(sees == 1, q[:, part] @ k[:, part].T / math.sqrt(6), -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(p / p.sum(-1, keepdims=True) @ v[:, part])
        x = x + linear(np.concatenate(heads, -1), f"{name}attention.dense")
        y = linear(norm(x, f"{name}post_attention_layernorm"), f"{name}mlp.dense_h_to_4h")
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, f"{name}mlp.dense_4h_to_h")
    return norm(x, f"{t}final_layernorm") @ w["glm.word_embeddings.weight"].T


@functools.cache
def ours(scan: bool = False) -> tuple[Decoder, dict[str, Any]]:
    spec = glm.from_hf(PUBLISHED)
    params = read_params(glm.HF_NAMES, Arrays("the checkpoint", weights()), spec, scan)
    return Decoder(spec, Execution(dtype="float32", scan_layers=scan)), {"params": params}


def figure() -> dict[str, jax.Array]:
    """The figure's row, with positions counted from 0 as published models do."""
    positions = np.stack([np.asarray(FIRST) - 1, np.asarray(SECOND)], axis=-1)[None]
    prefix = (np.arange(10) < 5).astype(np.int32)[None]
    arrays = {"tokens": np.asarray(TOKENS)[None], "positions": positions, "prefix": prefix}
    return {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}


@pytest.mark.parametrize("scan", [False, True])
def test_the_row_of_figure_2_has_the_logits_of_the_equations(scan: bool) -> None:
    model, variables = ours(scan)
    row = figure()
    with jax.numpy_dtype_promotion("strict"):
        found = jax.jit(lambda r: model.apply(variables, r.pop("tokens"), **r)[0])(row)
    wanted = reference(TOKENS, np.asarray(FIRST) - 1, SECOND, SEES)
    assert wanted.std() > 0.5
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)


def test_part_a_sees_itself_whole_and_part_b_what_is_before_it() -> None:
    """Changing token c changes the logits of exactly the rows that see it in figure 2 (d)."""
    model, variables = ours()
    apply = jax.jit(lambda tokens, row: model.apply(variables, tokens, **row)[0])
    row = figure()
    tokens = row.pop("tokens")
    before = apply(tokens, row)
    for c in range(10):
        changed = apply(tokens.at[0, c].add(1), row)
        moved = np.abs(np.asarray(changed - before))[0].max(-1) > 1e-6
        np.testing.assert_array_equal(moved, SEES[:, c] == 1, err_msg=str(c))


def test_rows_without_blanks_and_packed_rows() -> None:
    model, variables = ours()
    row = figure()
    apply = jax.jit(model.apply)
    plain = apply(variables, row["tokens"][:, :5])[0]
    np.testing.assert_allclose(
        plain[0], reference(TOKENS[:5], range(5), [0] * 5, np.tril(np.ones((5, 5)))), atol=1e-4
    )
    alone = apply(variables, row["tokens"], positions=row["positions"], prefix=row["prefix"])[0]
    twice = {name: jnp.concatenate([array, array], axis=1) for name, array in row.items()}
    twice["segment_ids"] = jnp.asarray([[1] * 10 + [2] * 10], jnp.int32)
    packed = apply(variables, twice.pop("tokens"), **twice)[0]
    np.testing.assert_allclose(packed[:, :10], alone, atol=5e-6)
    np.testing.assert_allclose(packed[:, 10:], alone, atol=5e-6)


def test_its_objective_has_finite_gradients_that_move_both_tables() -> None:
    model, variables = ours()
    row = figure()
    targets = jnp.asarray([[0] * 5 + [15, 16, 62, 13, 62]], jnp.int32)
    batch = {**row, "targets": targets, "weights": (1 - row["prefix"]).astype(jnp.float32)}
    batch["segment_ids"] = jnp.ones((1, 10), jnp.int32)
    loss = causal_lm(model)
    (cost, _), gradients = jax.jit(
        jax.value_and_grad(lambda v: (lambda s: (s["loss"][0], s))(loss(v, batch, None)), has_aux=True)
    )(variables)
    logits = reference(TOKENS, np.asarray(FIRST) - 1, SECOND, SEES)[5:]
    nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(5), np.asarray(targets)[0, 5:]]
    np.testing.assert_allclose(cost, nll.sum(), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    tables = gradients["params"]
    assert (np.abs(tables["position"]["embedding"]).max(-1) > 0).tolist() == [True] * 5 + [False] * 36
    assert (np.abs(tables["span_position"]["embedding"]).max(-1) > 0).tolist() == [True] * 4 + [False] * 37


def test_names_come_back_bit_equal_and_every_parameter_has_one() -> None:
    spec = glm.from_hf(PUBLISHED)
    assert (spec.max_length, spec.mlp_size, spec.position) == (41, 96, "learned_2d")
    params = read_params(glm.HF_NAMES, Arrays("the checkpoint", weights()), spec)
    shapes = parameter_shapes(spec)
    assert sum(math.prod(shape) for shape in shapes.values()) == spec.parameters()
    assert sum(tensor.size for tensor in weights().values()) == spec.parameters()
    from hllm_jax.models.layout import flat_unrolled

    again = dict(glm.HF_NAMES.save(flat_unrolled(params)))
    assert again.keys() == weights().keys()
    for name, tensor in again.items():
        np.testing.assert_array_equal(tensor, weights()[name], err_msg=name)


@pytest.mark.parametrize("name", glm.PRESETS)
def test_parameters_of_published_sizes_by_hand(name: str) -> None:
    """Four matrices of attention, two of 4·D, biases, two norms; tables of a row more than the length."""
    spec = glm.PRESETS[name]
    D, n, V, rows = spec.embed, spec.layers, spec.vocab_size, spec.max_length
    layer = (4 * D * D + 4 * D) + (8 * D * D + 5 * D) + 4 * D
    assert spec.parameters() == V * D + 2 * rows * D + n * layer + 2 * D == WITHOUT_CLASS[name]


def test_published_sizes_are_those_of_the_paper() -> None:
    """110M and 335M (section 3.1), and the repository's 10B."""
    sizes = {name: spec.parameters() for name, spec in glm.PRESETS.items()}
    assert round(sizes["glm-base"] / 1e7) == 11
    assert round(sizes["glm-large"] / 1e6) == 335
    assert {round(sizes[name] / 1e9) for name in ("glm-10b", "glm-10b-chinese")} == {10}


def test_two_models_answer_to_one_name_and_each_page_refuses_the_other() -> None:
    for name, spec in glm.PRESETS.items():
        with pytest.raises(ConfigRefused, match="num_hidden_layers"):
            glm4.from_hf(glm.to_hf(spec))
        assert glm.from_hf(glm.to_hf(spec)) == spec, name
    with pytest.raises(ConfigRefused, match="max_sequence_length"):
        glm.from_hf(glm4.to_hf(glm4.PRESETS["glm-4-9b"]))
    with pytest.raises(ConfigRefused, match="block_position_encoding False, only True"):
        glm.from_hf(PUBLISHED | {"block_position_encoding": False})
    with pytest.raises(ConfigRefused, match="position is 'learned'"):
        glm.to_hf(DecoderConfig(position="learned", kv_heads=16, embed=768))


def test_positions_of_another_shape_are_refused() -> None:
    model, variables = ours()
    with pytest.raises(
        ValueError, match=r"positions must be \[B, L, 2\].* a place in the text and one in the span"
    ):
        model.apply(variables, jnp.zeros((1, 4), jnp.int32), positions=jnp.zeros((1, 4), jnp.int32))


@pytest.mark.slow
def test_200_steps_of_blank_infilling_beat_a_unigram_model(tmp_path: Path) -> None:
    loss, unigram = learn(glm.PRESETS["glm-base"], tmp_path)
    assert loss < unigram - 0.05, (loss, unigram)
