"""The encoder's invariants: packing, padding, positions, heads, counts, dtypes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.config import Invalid
from hllm_jax.models import EncoderConfig, Execution, parameter_shapes
from hllm_jax.models.families import presets
from hllm_jax.models.task import TaskConfig
from hllm_jax.nn import Table
from hllm_jax.testing.models import compiled, draw_params
from tests.models.published import BARE

TINY = EncoderConfig(
    vocab_size=61, layers=2, embed=18, heads=3, kv_heads=3, mlp=28, max_length=20, token_types=3
)
CONFIGS = {
    "bert": TINY,
    "roberta": dataclasses.replace(TINY, token_types=0, position_offset=2, pair_head=False, pooler=False),
    "albert": dataclasses.replace(TINY, embedding=10, shared_layers=True, activation="gelu_tanh"),
    "rotary": dataclasses.replace(TINY, position="rope", norm="rms", norm_placement="pre"),
    "relative": dataclasses.replace(TINY, position="relative", norm_placement="sandwich"),
    "sequence": dataclasses.replace(TINY, masked_head=False, task=TaskConfig(labels=("a", "b", "c"))),
    "own": dataclasses.replace(
        TINY, pooler=False, pair_head=False, task=TaskConfig(labels=("x",), dense=True)
    ),
    "tokens": dataclasses.replace(TINY, task=TaskConfig(kind="tokens", labels=("O", "B", "I", "E"))),
    "span": dataclasses.replace(TINY, pair_head=False, pooler=False, task=TaskConfig(kind="span")),
}


@functools.cache
def params_of(name: str) -> dict[str, Any]:
    return draw_params(CONFIGS[name])


def run(name: str, tokens: Any, segment_ids: Any = None, token_types: Any = None) -> Any:
    """Outputs under strict dtype promotion; rows are padded to the one shape that is compiled."""
    model, length = CONFIGS[name].build(Execution(dtype="float32")), np.shape(tokens)[1]
    given = [tokens, np.ones_like(tokens) if segment_ids is None else segment_ids]
    given.append(np.zeros_like(tokens) if token_types is None else token_types)
    rows = [np.pad(x, ((0, 2 - np.shape(x)[0]), (0, 20 - length))).astype(np.int32) for x in given]
    with jax.numpy_dtype_promotion("strict"):
        padded, held, types = map(jnp.asarray, rows)
        variables = {"params": params_of(name)}
        out = compiled(model)(variables, padded, held, token_types=types)
    wide = [x if x is None or x.ndim == 2 else x[:, :length] for x in out]
    return type(out)(*(x if x is None else np.asarray(x[: len(given[0])]) for x in wide))


def draw(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, TINY.vocab_size, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_document_is_what_it_is_alone(name: str) -> None:
    tokens = draw(1, 17)
    packed = run(name, tokens, [[0] * 2 + [1] * 6 + [2] * 5 + [0] * 4])
    assert all(np.isfinite(x).all() for x in packed if x is not None)
    for start, end in ((2, 8), (8, 13)):
        alone = run(name, tokens[:, start:end])
        np.testing.assert_allclose(packed.hidden[:, start:end], alone.hidden, atol=2e-5)
        if alone.logits is not None:
            np.testing.assert_allclose(packed.logits[:, start:end], alone.logits, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_stands_at_padding_changes_nothing(name: str) -> None:
    tokens, keep = draw(2, 11), np.array([[1] * 7 + [0] * 4, [0] * 4 + [1] * 7])
    other = np.where(keep != 0, tokens, (tokens + 5) % TINY.vocab_size)
    before, after = (run(name, t, keep).hidden[keep != 0] for t in (tokens, other))
    np.testing.assert_array_equal(before, after)


def test_every_token_sees_every_token_of_its_document() -> None:
    tokens = draw(1, 9)
    before = run("bert", tokens).hidden
    for place in (0, 4, 8):
        changed = tokens.copy()
        changed[0, place] = (changed[0, place] + 1) % TINY.vocab_size
        moved = np.abs(run("bert", changed).hidden - before).max(axis=-1)
        assert (moved > 1e-4).all()


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_kinds_of_tokens_are_told_apart(name: str) -> None:
    tokens = draw(2, 9)
    plain = run(name, tokens).hidden
    second = np.arange(9)[None] >= np.array([[4], [6]])
    assert np.abs(run(name, tokens, token_types=second).hidden - plain).max() > 1e-2


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_last_position_of_the_table_is_reached_and_none_beyond(name: str) -> None:
    limit = TINY.max_length
    assert np.isfinite(run(name, draw(1, limit)).hidden).all()
    model = CONFIGS[name].build(Execution(dtype="float32"))
    with pytest.raises(ValueError, match="longer than the model's max_length 20"):
        model.apply({"params": params_of(name)}, draw(1, limit + 1))
    rows = limit + CONFIGS[name].position_offset
    beyond = Table(rows, TINY.embed).apply({"params": params_of(name)["position"]}, jnp.asarray([[rows]]))
    assert np.isnan(beyond).all(), "NaN, not the last row"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_formula_counts_what_the_model_has(name: str) -> None:
    shapes = parameter_shapes(CONFIGS[name])
    assert CONFIGS[name].parameters() == sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.parametrize("name", BARE)
def test_the_body_and_the_pooler_have_the_published_number_of_parameters(name: str) -> None:
    bare = dataclasses.replace(presets()[name], masked_head=False, pair_head=False, pooler=True)
    assert bare.parameters() == BARE[name]


def test_heads_give_their_shapes_and_what_a_spec_has_not_is_none() -> None:
    shapes: dict[str, dict[str, Any]] = {name: {} for name in CONFIGS}
    for name, found in shapes.items():
        model = CONFIGS[name].build(Execution(dtype="float32"))
        out: Any = jax.eval_shape(model.apply, {"params": params_of(name)}, draw(2, 7))
        found |= {field: x.shape for field, x in out._asdict().items() if x is not None}
    hidden, logits = {"hidden": (2, 7, 18)}, {"logits": (2, 7, 61)}
    pooled, pair = {"pooled": (2, 18)}, {"pair_logits": (2, 2)}
    assert shapes["bert"] == hidden | logits | pooled | pair
    assert shapes["roberta"] == hidden | logits
    assert shapes["sequence"] == hidden | pooled | pair | {"task_logits": (2, 3)}
    assert shapes["own"] == hidden | logits | {"task_logits": (2, 1)}
    assert shapes["tokens"] == hidden | logits | pooled | pair | {"task_logits": (2, 7, 4)}
    assert shapes["span"] == hidden | logits | {"task_logits": (2, 7, 2)}


def test_dropout_draws_anew_from_each_key_and_scores_stay_float32() -> None:
    model = dataclasses.replace(CONFIGS["sequence"], dropout=0.4).build(Execution(dtype="bfloat16"))
    variables, tokens = {"params": params_of("sequence")}, draw(2, 7)

    def once(seed: int) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        out: Any = model.apply(variables, tokens, deterministic=False, rngs=rngs)
        assert (out.hidden.dtype, out.task_logits.dtype) == (jnp.bfloat16, jnp.float32)
        return np.asarray(out.task_logits)

    np.testing.assert_array_equal(once(0), once(0))
    assert np.abs(once(0) - once(1)).max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pooler": False}, "reads the pooler"),
        ({"pooler": False, "pair_head": False, "task": TaskConfig(labels=("a",))}, "dense layer of its own"),
        ({"window": 4, "attention_pattern": ("window",)}, "sees its whole document"),
    ],
)
def test_impossible_heads_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid, match=says):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "name at least one"),
        ({"labels": ("a", "a")}, "twice"),
        ({"kind": "span", "labels": ("a",)}, "has none"),
        ({"kind": "tokens", "labels": ("a",), "dense": True}, "is not used"),
        ({"labels": ("a",), "dropout": 1.0}, "below 1"),
    ],
)
def test_impossible_tasks_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid, match=says):
        TaskConfig(**fields)


def test_a_score_is_the_logit_of_the_one_class() -> None:
    model = CONFIGS["own"].build(Execution(dtype="float32"))
    tokens = np.arange(14, dtype=np.int32).reshape(2, 7)
    score = model.apply({"params": params_of("own")}, tokens, method="score")
    assert (score.shape, score.dtype) == ((2,), jnp.float32)
    np.testing.assert_allclose(score, run("own", tokens).task_logits[:, 0], atol=1e-5)
    several = CONFIGS["sequence"].build(Execution(dtype="float32"))
    with pytest.raises(ValueError, match="this encoder has no score"):
        several.apply({"params": params_of("sequence")}, tokens, method="score")
