"""What every loss of post-training keeps: a split batch is the batch, and a row left out is not there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hllm_jax.objectives import Sums, add, mean
from hllm_jax.objectives.advantages import gae, token_rewards
from hllm_jax.objectives.distillation import distillation_sums
from hllm_jax.objectives.groups import group_advantages
from hllm_jax.objectives.log_likelihood import likelihood
from hllm_jax.objectives.masks import whiten
from hllm_jax.objectives.policy import grpo_sums, ppo_policy_sums, ppo_sums, rloo_sums, value_sums
from hllm_jax.objectives.preference import Pair, answers, dpo_sums, ipo_sums, kto_sums, orpo_sums, simpo_sums
from hllm_jax.objectives.reward import pairwise_sums, ranking_sums

ROWS, LENGTH, VOCABULARY = 8, 5, 7
Batch = dict[str, Any]


def make_batch() -> Batch:
    """Ragged answers between pads; rows 2 and 5 are left out."""
    rng = np.random.default_rng(0)
    actions = np.zeros((ROWS, LENGTH), np.float32)
    for row in range(ROWS):
        first, last = sorted(rng.choice(LENGTH + 1, 2, replace=False))
        actions[row, first:last] = 1
    weights = np.ones(ROWS, np.float32)
    weights[[2, 5]] = 0
    of_tokens = ("old_values", "returns", "advantages", "old")
    normal = {name: rng.normal(size=(ROWS, LENGTH)) for name in of_tokens}
    normal |= {"teacher": rng.normal(size=(ROWS, LENGTH, VOCABULARY)), "of_answer": rng.normal(size=ROWS)}
    batch = {name: array.astype(np.float32) for name, array in normal.items()}
    batch["old"] -= 2
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
    ranks = np.tile(np.arange(LENGTH), (ROWS, 1))
    return batch | {
        "tokens": tokens,
        "actions": actions * weights[:, None],
        "weights": weights,
        "good": rng.integers(0, 2, ROWS) == 1,
        "ranks": rng.permuted(ranks, axis=1),
    }


def policy(logits: jax.Array, b: Batch) -> jax.Array:
    return likelihood(logits, b["tokens"]).log_probs


def pair(logits: jax.Array, b: Batch, per_token: bool = False) -> Pair:
    """The answer against the same places of the row, read backwards."""
    back = policy(jnp.flip(logits, axis=1), b)
    return answers(Pair(policy(logits, b), back), Pair(b["actions"], b["actions"]), per_token)


def reference(b: Batch) -> Pair:
    return Pair(jnp.sum(b["old"], 1) / 3, jnp.sum(b["returns"], 1))


def whole_ppo(logits: jax.Array, b: Batch) -> Sums:
    new, values = likelihood(logits, b["tokens"]), jnp.mean(logits, axis=-1)
    return ppo_sums(
        ppo_policy_sums(new.log_probs, b["old"], b["advantages"], b["actions"]),
        value_sums(values, b["old_values"], b["returns"], b["actions"]),
        new.entropy,
        b["actions"],
        0.5,
        0.01,
    )


def of_variant(variant: Any) -> Callable[[jax.Array, Batch], Sums]:
    def loss(logits: jax.Array, b: Batch) -> Sums:
        new, old = policy(logits, b), b["old"]
        return grpo_sums(new, old, b["of_answer"], b["actions"], variant, b["returns"], 0.1, length=LENGTH)

    return loss


LOSSES: dict[str, Callable[[jax.Array, Batch], Sums]] = {
    "ppo": whole_ppo,
    **{name: of_variant(name) for name in ("grpo", "dr_grpo", "dapo")},
    "rloo": lambda x, b: rloo_sums(policy(x, b), b["old"], b["of_answer"], b["actions"]),
    "dpo": lambda x, b: dpo_sums(pair(x, b), reference(b), b["weights"], 0.1, 0.2),
    "ipo": lambda x, b: ipo_sums(pair(x, b, True), reference(b), b["weights"]),
    "orpo": lambda x, b: orpo_sums(pair(x, b, True), b["weights"]),
    "simpo": lambda x, b: simpo_sums(pair(x, b, True), b["weights"]),
    "kto": lambda x, b: kto_sums(
        pair(x, b).chosen, reference(b).chosen, b["good"], jnp.float32(0.3), b["weights"]
    ),
    "reward": lambda x, b: pairwise_sums(x[:, 0, 0], x[:, 1, 1], b["weights"], b["returns"][:, 0], 0.01),
    "ranking": lambda x, b: ranking_sums(x[:, :, 0], b["ranks"], b["actions"]),
    "distillation": lambda x, b: distillation_sums(
        x, b["teacher"], b["tokens"], b["actions"], "jsd", 2.0, 0.3
    ),
}
LOGITS = np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
BATCH = make_batch()


# It is compiled three times and run on a few numbers: optimising it would take longer than all runs.
@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def all_losses(logits: jax.Array, batch: Batch) -> dict[str, tuple[jax.Array, Sums]]:
    """Gradient of the numerator, and the sums, of every loss."""
    found: dict[str, tuple[jax.Array, Sums]] = {}
    for name, of in LOSSES.items():

        def numerator(x: jax.Array, of: Any = of) -> tuple[jax.Array, Sums]:
            sums = of(x, batch)
            return sums["loss"][0], sums

        found[name] = jax.grad(numerator, has_aux=True)(logits)
    return found


def of_rows(rows: slice) -> dict[str, tuple[jax.Array, Sums]]:
    return all_losses(LOGITS[rows], jax.tree.map(lambda x: x[rows], BATCH))


def same(gradient: jax.Array, sums: Sums, name: str) -> None:
    wanted, of_whole = of_rows(slice(None))[name]
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6, err_msg=name)
    means, whole = mean(sums), mean(of_whole)
    assert means.keys() == whole.keys()
    for key, value in whole.items():
        np.testing.assert_allclose(means[key], value, rtol=1e-5, atol=1e-6, err_msg=f"{name}: {key}")


def test_the_rows_of_a_batch_add_up_to_the_batch() -> None:
    """One by one, which is the finest split: every other one is a sum of these."""
    pieces = [of_rows(slice(i, i + 1)) for i in range(ROWS)]
    for name in LOSSES:
        sums = pieces[0][name][1]
        for piece in pieces[1:]:
            sums = add(sums, piece[name][1])
        same(jnp.concatenate([piece[name][0] for piece in pieces]), sums, name)


def test_eight_devices_are_one() -> None:
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    found = all_losses(*jax.device_put((LOGITS, BATCH), spread))
    assert len(found["dpo"][0].sharding.device_set) == 8
    for name, (gradient, sums) in found.items():
        same(gradient, sums, name)


@pytest.mark.parametrize("value", [3.0, np.nan])
def test_what_is_left_out_changes_no_bit(value: float) -> None:
    """Rows 2 and 5 are overwritten: what the model says of them, and all that was noted of them."""
    rows = BATCH["weights"] == 0
    out, batch = LOGITS.copy(), {name: np.copy(array) for name, array in BATCH.items()}
    out[rows] = batch["teacher"][rows] = 3.0
    for name in ("old", "old_values", "returns", "advantages", "of_answer"):
        batch[name][rows] = value
    for name in ("tokens", "ranks"):
        batch[name][rows] = 0
    before, after = of_rows(slice(None)), all_losses(out, batch)
    assert set(after) == set(LOSSES)
    for name, (gradient, sums) in after.items():
        np.testing.assert_array_equal(gradient, before[name][0], err_msg=name)
        jax.tree.map(np.testing.assert_array_equal, sums, before[name][1])
        assert np.all(np.asarray(gradient)[rows] == 0), name


@pytest.mark.parametrize("name", ["ppo", "grpo", "dapo", "distillation"])
def test_tokens_off_the_actions_change_no_bit(name: str) -> None:
    """Pad = eos, or any other id: what stands where nothing was chosen is never looked at."""
    off = BATCH["actions"] == 0
    batch = {key: np.copy(array) for key, array in BATCH.items()}
    for key in ("old", "old_values", "returns", "advantages"):
        batch[key][off] = np.nan
    batch["tokens"][off] = 2
    gradient, sums = all_losses(LOGITS, batch)[name]
    np.testing.assert_array_equal(gradient, of_rows(slice(None))[name][0])
    jax.tree.map(np.testing.assert_array_equal, sums, of_rows(slice(None))[name][1])


def test_a_batch_of_nothing_has_no_gradient() -> None:
    nothing = BATCH | {name: np.zeros_like(BATCH[name]) for name in ("actions", "weights")}
    for name, (gradient, sums) in all_losses(LOGITS, nothing).items():
        assert np.all(np.asarray(gradient) == 0), name
        assert all(float(value) == 0 for value in mean(sums).values()), name


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.bfloat16])
def test_masks_may_be_of_any_dtype_and_all_arithmetic_is_float32(dtype: Any) -> None:
    """Nothing is promoted silently, and bfloat16 logits have sums in float32."""
    batch = jax.tree.map(jnp.asarray, BATCH)
    batch |= {name: batch[name].astype(dtype) for name in ("actions", "weights")}
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        for name, of in LOSSES.items():
            sums = jax.eval_shape(of, logits, batch)
            assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype(jnp.float32)}, name
        values, actions = batch["old_values"].astype(jnp.bfloat16), batch["actions"]
        rewarded = jax.eval_shape(token_rewards, batch["of_answer"], values, values, actions, 0.1)
        found = jax.eval_shape(gae, rewarded.rewards, values, actions)
        white = jax.eval_shape(whiten, values, actions)
        of_group = jax.eval_shape(lambda x, w: group_advantages(x, weights=w), values, actions)
    shapes = {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((rewarded, found, white, of_group))}
    assert shapes == {((ROWS, LENGTH), jnp.dtype(jnp.float32))}
