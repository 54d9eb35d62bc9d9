"""The decoder's invariants: causality, packing, padding, caching, layouts, dtypes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.models import Decoder, DecoderConfig, Execution, init_cache, stack_layers
from hllm_jax.testing.models import compiled, random_tokens, tiny_config, tiny_model

WINDOWED = {
    "attention_pattern": ("full", "window"),
    "window": 3,
    "attention_softcap": 5.0,
    "logit_softcap": 4.0,
}
KERNELS = ("plain", "blocked")


@functools.cache
def model_of(
    kernel: str = "plain", scan: bool = False, windowed: bool = False
) -> tuple[Decoder, dict[str, Any]]:
    """Models with the same parameters in either layout."""
    config = tiny_config(**(WINDOWED if windowed else {}))
    model, params = tiny_model(config, attention=kernel)
    if scan:
        model = Decoder(config, Execution(dtype="float32", attention=kernel, scan_layers=True))
        params = stack_layers(params, len(config.attention_pattern))
    return model, params


def logits_of(model: Decoder, params: Any, tokens: Any, *args: Any, **kwargs: Any) -> np.ndarray:
    """Logits under strict dtype promotion, compiled once a shape."""
    with jax.numpy_dtype_promotion("strict"):
        return np.asarray(compiled(model)({"params": params}, jnp.asarray(tokens), *args, **kwargs)[0])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("windowed", [False, True])
def test_changing_a_token_leaves_the_logits_before_it_bit_equal(kernel: str, windowed: bool) -> None:
    model, params = model_of(kernel, windowed=windowed)
    tokens = random_tokens(model.config, 2, 12)
    before = logits_of(model, params, tokens)
    for t in (0, 5, 11):
        changed = tokens.copy()
        changed[:, t] = (changed[:, t] + 1) % model.config.vocab_size
        after = logits_of(model, params, changed)
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert np.abs(before[:, t] - after[:, t]).max() > 1e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_editing_one_packed_document_leaves_the_other_bit_equal(kernel: str) -> None:
    model, params = model_of(kernel)
    tokens = random_tokens(model.config, 1, 12)
    segments = jnp.asarray([[1] * 5 + [2] * 5 + [0] * 2], jnp.int32)
    before = logits_of(model, params, tokens, segments)
    edited = tokens.copy()
    edited[0, 5:] = (edited[0, 5:] + 7) % model.config.vocab_size
    np.testing.assert_array_equal(before[0, :5], logits_of(model, params, edited, segments)[0, :5])
    edited = tokens.copy()
    edited[0, :5] = (edited[0, :5] + 7) % model.config.vocab_size
    np.testing.assert_array_equal(before[0, 5:10], logits_of(model, params, edited, segments)[0, 5:10])
    assert np.isfinite(before).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_packed_document_is_what_it_is_alone(kernel: str) -> None:
    model, params = model_of(kernel)
    tokens = random_tokens(model.config, 1, 12)
    packed = logits_of(model, params, tokens, jnp.asarray([[1] * 5 + [2] * 7], jnp.int32))
    np.testing.assert_allclose(packed[:, :5], logits_of(model, params, tokens[:, :5]), atol=2e-6)
    np.testing.assert_allclose(packed[:, 5:], logits_of(model, params, tokens[:, 5:]), atol=2e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_padded_batch_is_its_rows_one_by_one(kernel: str, side: str) -> None:
    model, params = model_of(kernel)
    rows = [random_tokens(model.config, 1, n, seed=n)[0] for n in (12, 7, 1)]
    tokens, segments = padded(rows, 12, side)
    together = logits_of(model, params, tokens, segments)
    for row, own in enumerate(rows):
        keep = np.asarray(segments[row]) != 0
        np.testing.assert_allclose(together[row][keep], logits_of(model, params, own[None])[0], atol=2e-6)


def padded(rows: list[np.ndarray], length: int, side: str) -> tuple[np.ndarray, jax.Array]:
    """Rows padded with an id that also occurs as a token, and their segment ids."""
    tokens = np.full((len(rows), length), 3, np.int32)
    segments = np.zeros((len(rows), length), np.int32)
    for row, own in enumerate(rows):
        where = slice(length - len(own), length) if side == "left" else slice(0, len(own))
        tokens[row, where], segments[row, where] = own, 1
    return tokens, jnp.asarray(segments)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_of_padding_gives_finite_logits_and_gradients(kernel: str) -> None:
    model, params = model_of(kernel)
    tokens = jnp.asarray(random_tokens(model.config, 2, 6))
    segments = jnp.asarray([[1] * 6, [0] * 6], jnp.int32)

    def loss(params: Any) -> jax.Array:
        logits, _ = model.apply({"params": params}, tokens, segments)
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1) * (segments != 0))

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.isfinite(logits_of(model, params, tokens, segments)).all()


@pytest.mark.parametrize(("scan", "windowed"), [(False, False), (True, False), (False, True), (True, True)])
def test_cached_logits_are_the_uncached_at_every_step(scan: bool, windowed: bool) -> None:
    """A ragged prefill, padded on either side, then one token at a time up to the cache's last slot."""
    model, params = model_of(scan=scan, windowed=windowed)
    config, capacity, counts = model.config, 14, (6, 3, 1)
    tokens = random_tokens(config, 3, capacity)
    whole = logits_of(model, params, tokens)
    for side in ("right", "left"):
        prompt, segments = padded([tokens[row, :n] for row, n in enumerate(counts)], 8, side)
        cache = init_cache(config, 3, capacity, jnp.float32, scan)
        step, variables = compiled(model), {"params": params}
        logits, cache = step(variables, jnp.asarray(prompt), segments, cache=cache)
        np.testing.assert_array_equal(cache.lengths, counts)
        for row, n in enumerate(counts):
            own = np.asarray(logits[row])[np.asarray(segments[row]) != 0]
            np.testing.assert_allclose(own, whole[row, :n], atol=3e-6)
        for t in range(capacity - max(counts)):
            at = np.asarray(counts) + t
            logits, cache = step(variables, jnp.asarray(tokens[np.arange(3), at][:, None]), cache=cache)
            np.testing.assert_allclose(logits[:, 0], whole[np.arange(3), at], atol=3e-6)


def test_what_does_not_fit_the_cache_is_dropped_and_hurts_nothing() -> None:
    """The row that is full keeps what it has: JAX would otherwise overwrite its last slot."""
    model, params = model_of()
    tokens = jnp.asarray(random_tokens(model.config, 2, 6))
    cache = init_cache(model.config, 2, 4)
    step, variables = compiled(model), {"params": params}
    _, cache = step(variables, tokens[:, :4], cache=cache)
    _, after = step(variables, tokens[:, 4:5], cache=cache)
    for old, new in zip(jax.tree.leaves(cache.keys), jax.tree.leaves(after.keys), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("remat", ["none", "selective", "full"])
def test_scanned_is_unrolled_in_values_and_gradients(remat: str) -> None:
    config = tiny_config(**WINDOWED, layers=4)
    _, params = tiny_model(config, attention="plain")
    tokens = jnp.asarray(random_tokens(config, 2, 9))
    segments = jnp.asarray([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2], jnp.int32)
    found = {}
    for scan in (False, True):
        execution = Execution(dtype="float32", scan_layers=scan, remat=remat if scan else "none")
        model = Decoder(config, execution)

        def loss(params: Any, model: Decoder = model) -> jax.Array:
            with jax.numpy_dtype_promotion("strict"):
                logits, _ = model.apply({"params": params}, tokens, segments)
            return jnp.mean(jnp.square(logits) * (segments != 0).astype(jnp.float32)[..., None])

        value, gradients = jax.jit(jax.value_and_grad(loss))(stack_layers(params, 2) if scan else params)
        found[scan] = value, gradients if scan else stack_layers(gradients, 2)
    np.testing.assert_allclose(found[True][0], found[False][0], rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), found[True][1], found[False][1])


def test_a_block_whose_outputs_are_zeroed_is_the_identity() -> None:
    model, params = model_of()
    tokens = random_tokens(model.config, 1, 6)
    plain = {k: v for k, v in params.items() if not k.startswith("layers_")}
    for name in ("layers_0", "layers_1"):
        block = params[name]
        out, down = block["attention"]["out"]["kernel"], block["mlp"]["down"]["kernel"]
        plain[name] = {
            **block,
            "attention": {**block["attention"], "out": {"kernel": np.zeros_like(out)}},
            "mlp": {**block["mlp"], "down": {"kernel": np.zeros_like(down)}},
        }
    x = params["embed"]["embedding"][tokens]
    x = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + model.config.norm_eps)
    expected = (x * params["final_norm"]["scale"]) @ params["embed"]["embedding"].T
    np.testing.assert_allclose(logits_of(model, plain, tokens), expected, atol=1e-6)


def test_hidden_then_head_is_the_whole_model() -> None:
    model, params = model_of(windowed=True)
    tokens = jnp.asarray(random_tokens(model.config, 2, 5))
    hidden, _ = compiled(model, "hidden")({"params": params}, tokens)
    assert hidden.shape == (2, 5, model.config.embed)
    logits = compiled(model, "head")({"params": params}, hidden)
    np.testing.assert_allclose(logits, logits_of(model, params, tokens), atol=5e-6)
    assert np.abs(logits).max() <= WINDOWED["logit_softcap"]


def test_a_score_for_every_token_is_not_moved_by_padding_or_by_the_other_head() -> None:
    model, params = tiny_model(tiny_config(head="both", tie_embeddings=False))
    tokens = random_tokens(model.config, 1, 9)
    alone = compiled(model, "score")({"params": params}, tokens)
    assert (alone.shape, alone.dtype) == ((1, 9), jnp.float32)
    hidden, _ = compiled(model, "hidden")({"params": params}, tokens)
    np.testing.assert_allclose(alone, hidden @ params["score"], atol=1e-6)
    for left in (0, 3, 7):
        padded = np.pad(tokens, ((0, 0), (left, 10 - left)), constant_values=5)
        held = np.pad(np.ones_like(tokens), ((0, 0), (left, 10 - left)))
        found = compiled(model, "score")({"params": params}, padded, held)
        np.testing.assert_allclose(found[:, left : left + 9], alone, atol=1e-5)
    only = tiny_model(tiny_config(head="score", tie_embeddings=False))[0]
    rest = {name: part for name, part in params.items() if name != "head"}
    np.testing.assert_array_equal(compiled(only, "score")({"params": rest}, tokens), alone)
    np.testing.assert_array_equal(compiled(only)({"params": rest}, tokens)[0][..., 0], alone)
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(rest)) == only.config.parameters()
    plain, params = tiny_model()
    with pytest.raises(ValueError, match="this decoder has no score"):
        plain.apply({"params": params}, tokens, method="score")


def test_positions_given_by_the_caller_turn_the_queries() -> None:
    """RoPE sees differences only: shifted positions change nothing, stretched ones do."""
    model, params = model_of()
    tokens = random_tokens(model.config, 1, 6)
    places = jnp.arange(6, dtype=jnp.int32)[None]
    plain = logits_of(model, params, tokens)
    np.testing.assert_array_equal(plain, logits_of(model, params, tokens, positions=places))
    np.testing.assert_allclose(plain, logits_of(model, params, tokens, positions=places + 20), atol=1e-5)
    assert np.abs(plain - logits_of(model, params, tokens, positions=places * 5)).max() > 1e-2


def test_dropout_acts_only_when_asked_and_differs_by_layer_in_a_scan() -> None:
    config = tiny_config(dropout=0.5)
    model, params = tiny_model(config, scan_layers=True)
    tokens = jnp.asarray(random_tokens(config, 1, 6))
    still = logits_of(model, params, tokens)

    @jax.jit
    def dropped(key: jax.Array) -> jax.Array:
        return model.apply({"params": params}, tokens, deterministic=False, rngs={"dropout": key})[0]

    drops = [dropped(jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drops[0], drops[1])
    assert np.abs(drops[0] - drops[2]).max() > 0.1
    assert np.abs(drops[0] - still).max() > 0.1


def test_the_compute_dtype_is_in_the_program_and_logits_and_parameters_stay_float32() -> None:
    config = tiny_config()
    for dtype, other in (("bfloat16", "f32"), ("float32", "bf16")):
        model = Decoder(config, Execution(dtype=dtype, attention="plain"))
        _, params = model_of()
        tokens = jnp.zeros((1, 6), jnp.int32)
        jaxpr = jax.make_jaxpr(lambda p, m=model, t=tokens: m.apply({"params": p}, t)[0])(params)
        products = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "dot_general"]
        assert len(products) == config.layers * 9 + 1
        operands = {str(v.aval.dtype) for eqn in products for v in eqn.invars}
        assert operands == {dtype}, f"{operands} with {other} among them"
        assert jaxpr.out_avals[0].dtype == jnp.float32
        softmax = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "exp"]
        assert softmax
        assert {str(eqn.invars[0].aval.dtype) for eqn in softmax} == {"float32"}
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def equations(jaxpr: Any) -> Any:
    """All equations of a program, those of its inner programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_misfits_are_refused_while_tracing() -> None:
    model, params = model_of()
    config: DecoderConfig = model.config
    apply = functools.partial(model.apply, {"params": params})
    long = jnp.zeros((1, config.max_length + 1), jnp.int32)
    with pytest.raises(ValueError, match="65 tokens is longer than the model's max_length 64"):
        apply(long)
    with pytest.raises(ValueError, match=r"tokens must be \[B, L\]"):
        apply(jnp.zeros((3,), jnp.int32))
    tokens = jnp.zeros((2, 4), jnp.int32)
    with pytest.raises(ValueError, match="segment_ids must have the shape"):
        apply(tokens, jnp.zeros((2, 5), jnp.int32))
    with pytest.raises(ValueError, match="made for scan_layers=True"):
        apply(tokens, cache=init_cache(config, 2, 8, scan_layers=True))
    with pytest.raises(ValueError, match="holds 3 rows, tokens have 2"):
        apply(tokens, cache=init_cache(config, 3, 8))
    with pytest.raises(ValueError, match="65 slots is longer"):
        init_cache(config, 1, config.max_length + 1)


def test_an_id_outside_the_vocabulary_is_not_another_word() -> None:
    model, params = model_of()
    logits = logits_of(model, params, np.asarray([[1, 67]], np.int32))
    assert np.isnan(logits[0, 1]).all()
