"""The next token from logits, on numbers that can be checked by hand."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.generation.request import Request, Sampling
from hllm_jax.generation.sampling import (
    draw_each,
    draw_one,
    penalize,
    row_keys,
    sample,
    sampling_rows,
    temper,
    truncate,
)

V = 7
LOGITS = np.log(np.array([[0.40, 0.25, 0.15, 0.10, 0.05, 0.04, 0.01]], np.float32))


def kept(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, logits: np.ndarray = LOGITS) -> list[int]:
    """Ids that truncation leaves."""
    arrays = (jnp.array([top_k], jnp.int32), jnp.array([top_p], jnp.float32), jnp.array([min_p], jnp.float32))
    return np.flatnonzero(np.isfinite(truncate(jnp.asarray(logits), *arrays)[0])).tolist()


def test_top_k_keeps_the_k_best_and_all_that_tie_with_the_last():
    assert kept(top_k=1) == [0]
    assert kept(top_k=3) == [0, 1, 2]
    assert kept(top_k=2, logits=np.array([[3.0, 1.0, 2.0, 2.0, -1.0]], np.float32)) == [0, 2, 3]
    assert kept(top_k=3, logits=np.array([[-3.0, -1.0, 0.0, -0.0, -9.0]], np.float32)) == [1, 2, 3]


def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass():
    assert kept(top_p=0.39) == [0]
    assert kept(top_p=0.5) == [0, 1]
    assert kept(top_p=0.78) == [0, 1, 2]
    assert kept(top_p=0.0) == [0]


def test_top_p_counts_the_mass_of_what_top_k_left():
    # Of 0.40 and 0.25, the first alone holds 0.615.
    assert kept(top_k=2, top_p=0.6) == [0]
    assert kept(top_k=2, top_p=0.62) == [0, 1]


def test_min_p_keeps_tokens_near_the_best():
    assert kept(min_p=0.3) == [0, 1, 2]
    assert kept(min_p=1.0) == [0]


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 1.0, 0.0), (V, 1.0, 0.0), (V + 99, 1.0, 0.0)])
def test_neutral_values_keep_everything_even_what_is_nearly_impossible(top_k, top_p, min_p):
    logits = np.array([[90.0, 0.0, -90.0, -200.0, 3.0, 2.0, 1.0]], np.float32)
    assert kept(top_k, top_p, min_p, logits) == list(range(V))


def test_truncation_equals_a_sorting_reference():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, 50)).astype(np.float32) * 3
    top_k, top_p = rng.integers(1, 50, 64), rng.uniform(0.05, 0.99, 64).astype(np.float32)
    got = np.isfinite(
        truncate(jnp.asarray(logits), jnp.asarray(top_k, jnp.int32), jnp.asarray(top_p), jnp.zeros(64))
    )
    for row in range(64):
        order = np.argsort(-logits[row])[: top_k[row]]
        probs = np.exp(logits[row][order] - logits[row].max())
        mass = np.cumsum(probs / probs.sum())
        order = order[: int(np.searchsorted(mass, top_p[row])) + 1]
        assert set(np.flatnonzero(got[row])) == set(order.tolist())


def test_the_penalty_lowers_seen_tokens_of_both_signs():
    logits = jnp.array([[2.0, -2.0, 1.0, -1.0]])
    seen = jnp.array([[True, True, False, False]])
    assert penalize(logits, seen, jnp.array([2.0])).tolist() == [[1.0, -4.0, 1.0, -1.0]]


def test_a_tiny_temperature_is_greedy_and_not_infinite():
    cold = temper(jnp.array([[1.0, 5.0, 4.9]]), jnp.array([1e-30]))
    assert cold[0, 1] == 0.0
    assert not np.isnan(np.asarray(cold)).any()


def test_the_grid_of_limits_gives_a_token_and_its_logprob():
    values = {
        "temperature": (0.0, 1e-6, 1.0, 1e6),
        "top_k": (0, None, 1, V, 2**31 - 1),
        "top_p": (0.0, 1e-9, 0.5, 1.0),
        "min_p": (0.0, 1.0),
        "repetition_penalty": (1e-3, 1.0, 1e3),
    }
    grid = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    assert len(grid) == 4 * 5 * 4 * 2 * 3
    rows = sampling_rows([Sampling(**point) for point in grid], [(0, 0, i) for i in range(len(grid))])
    logits = jnp.asarray(np.repeat(LOGITS, len(grid), axis=0))
    tokens, logprobs = sample(logits, rows, jnp.zeros(len(grid), jnp.int32), jnp.zeros(logits.shape, bool))
    np.testing.assert_allclose(logprobs, LOGITS[0][np.asarray(tokens)], atol=1e-6)
    for point, token in zip(grid, np.asarray(tokens), strict=True):
        if point["temperature"] == 0 or point["top_k"] == 1 or point["min_p"] == 1 or point["top_p"] < 0.4:
            assert token == 0, point


def test_rows_of_one_batch_have_parameters_of_their_own():
    rows = sampling_rows(
        [Sampling(temperature=0.0), Sampling(top_k=1), Sampling(), Sampling(top_p=0.6)],
        [(0, 0, i) for i in range(4)],
    )
    logits = jnp.asarray(np.repeat(LOGITS, 4, axis=0))

    def draw(position: jax.Array) -> jax.Array:
        return sample(logits, rows, jnp.full(4, position), jnp.zeros(logits.shape, bool))[0]

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(2000)))
    assert set(drawn[:, 0]) == set(drawn[:, 1]) == {0}
    assert set(drawn[:, 3]) == {0, 1}
    frequencies = np.bincount(drawn[:, 2], minlength=V) / len(drawn)
    np.testing.assert_allclose(frequencies, np.exp(LOGITS[0]), atol=0.04)


def test_draws_over_several_blocks_follow_the_softmax():
    vocab, draws = 1000, 200_000
    logits = np.random.default_rng(0).normal(0.0, 2.0, vocab).astype(np.float32)
    logits[:300], logits[990:] = -np.inf, -np.inf  # a whole block, and the end of the last one

    def draw(numbers: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(7), n))(numbers)
        return draw_each(keys, jnp.broadcast_to(jnp.asarray(logits), (len(numbers), vocab)))

    drawn = np.asarray(jax.lax.map(draw, jnp.arange(draws).reshape(-1, 2000)))
    seen = np.bincount(drawn.ravel(), minlength=vocab)
    assert seen[np.isneginf(logits)].sum() == 0
    p = np.exp(logits.astype(np.float64))
    expected = draws * p / p.sum()
    likely = expected > 5
    chi_square = ((seen - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = likely.sum() - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_a_draw_at_either_end_has_a_weight():
    weights = jnp.array([[0.0, 0.2, 0.0, 0.8, 0.0]] * 4)
    uniform = jnp.array([0.0, 0.19, 0.21, 1.0])
    assert draw_one(weights, uniform).tolist() == [1, 1, 3, 3]


def test_keys_depend_on_seed_row_sample_and_position_alone():
    parts = jnp.array([[1, 0, 0], [2, 0, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]], jnp.uint32)
    keys = jax.random.key_data(row_keys(parts, jnp.array([5, 5, 5, 5, 6]))).tolist()
    assert len({tuple(key) for key in keys}) == 5
    alone = jax.random.key_data(row_keys(parts[3:4], jnp.array([5]))).tolist()
    assert alone[0] == keys[3]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 1.5),
        ("top_p", -0.1),
        ("top_p", "0.9"),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1.0),
    ],
)
def test_a_wrong_value_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is .*must be"):
        Sampling(**{field: value})


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(ValueError, match=r"temperature is -1.*top_k is -1"):
        Sampling(temperature=-1, top_k=-1)


@pytest.mark.parametrize(
    ("field", "value"), [("max_tokens", 0), ("max_tokens", 1.5), ("n", 0), ("seed", -1), ("stop", ("",))]
)
def test_a_wrong_request_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is "):
        Request(tokens=(1,), **{field: value})


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="prompt has no tokens"):
        Request(tokens=())
