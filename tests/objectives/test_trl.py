"""Losses, gradients and advantages against the published implementation, on the same arrays."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives import Sums, mean
from hllm_jax.objectives.advantages import gae, token_rewards
from hllm_jax.objectives.distillation import distillation_sums
from hllm_jax.objectives.groups import group_advantages, leave_one_out
from hllm_jax.objectives.log_likelihood import likelihood
from hllm_jax.objectives.masks import row_sums, whiten
from hllm_jax.objectives.policy import grpo_sums, ppo_policy_sums, ppo_sums, rloo_sums, value_sums
from hllm_jax.objectives.preference import (
    Pair,
    answers,
    dpo_sums,
    ipo_sums,
    kto_baseline,
    kto_sums,
    orpo_sums,
    simpo_sums,
)
from hllm_jax.objectives.reward import pairwise_sums

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
PAIRS, LENGTH, VOCABULARY, GROUP = 3, 6, 9, 4
Arrays = dict[str, Any]

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PEERS.exists(), reason="needs the peers environment: `make peers`"),
]


def make_arrays() -> Arrays:
    """Random numbers, ratios that are clipped and others, answers of every length from one token on."""
    rng = np.random.default_rng(0)
    rows = 2 * PAIRS
    normal = {
        "logits": (rows, LENGTH, VOCABULARY),
        "teacher": (rows, LENGTH, VOCABULARY),
        "ref_chosen": (PAIRS,),
        "ref_rejected": (PAIRS,),
        "margins": (rows,),
        "reference": (rows,),
        "other": (rows,),
        "ref_other": (rows,),
        "of_answer": (rows,),
        "advantages": (rows, LENGTH),
        "returns": (rows, LENGTH),
        "values": (rows, LENGTH),
    }
    given: Arrays = {name: rng.normal(size=shape) for name, shape in normal.items()}
    given["other"] += 1
    for name in ("ref_chosen", "ref_rejected", "reference"):
        given[name] -= 6
    given |= {name: -rng.gamma(2.0, size=rows) for name in ("chosen", "rejected")}
    given["old"] = -rng.gamma(2.0, size=(rows, LENGTH))
    given["new"] = given["old"] + 0.3 * rng.normal(size=(rows, LENGTH))
    given["ref"] = given["old"] + 0.5 * rng.normal(size=(rows, LENGTH))
    given["new_values"] = given["values"] + 0.4 * rng.normal(size=(rows, LENGTH))
    given["group_rewards"] = rng.normal(size=(PAIRS, GROUP))
    given = {name: array.astype(np.float32) for name, array in given.items()}
    given["tokens"] = rng.integers(0, VOCABULARY, (rows, LENGTH))
    given["good"] = np.arange(rows) % 2 == 0
    ends = np.arange(LENGTH)[None, :]
    given["actions"] = (ends < np.arange(1, rows + 1)[:, None]).astype(np.float32)
    # A prompt of two tokens, then an answer; its mask is that of the tokens, not of what predicts them.
    given["mask"] = ((ends >= 2) & (ends < np.asarray([3, 6, 4, 5, 4, 6])[:, None])).astype(np.int64)
    return given


@pytest.fixture(scope="module")
def given() -> Arrays:
    return make_arrays()


@pytest.fixture(scope="module")
def told(given: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    folder = tmp_path_factory.mktemp("trl")
    np.savez(folder / "given.npz", **given)
    script = Path(__file__).with_name("ask_trl.py")
    command = [str(part) for part in (PEERS, script, folder / "given.npz", folder / "told.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "told.npz") as file:
        return dict(file)


def of_tokens(logits: jax.Array, g: Arrays) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of what is predicted, and the mask of the answer, one place to the left."""
    return likelihood(logits[:, :-1], g["tokens"][:, 1:]).log_probs, jnp.asarray(g["mask"])[:, 1:]


def pair(logits: jax.Array, g: Arrays, per_token: bool) -> Pair:
    (chosen, rejected), (good, bad) = (jnp.split(x, 2) for x in of_tokens(logits, g))
    return answers(Pair(chosen, rejected), Pair(good, bad), per_token)


def reference(g: Arrays, per_token: bool) -> Pair:
    lengths = g["mask"].sum(1) if per_token else np.ones(2 * PAIRS)
    return Pair(g["ref_chosen"] / lengths[:PAIRS], g["ref_rejected"] / lengths[PAIRS:])


ONES, ALL = np.ones(PAIRS, np.float32), np.ones(2 * PAIRS, np.float32)


def of_kto(g: Arrays, logits: jax.Array) -> Sums:
    policy = row_sums(*of_tokens(logits, g))
    baseline = kto_baseline(g["other"], g["ref_other"], ALL)
    return kto_sums(policy, g["reference"], g["good"], baseline, ALL, 0.1, 1.5, 0.5)


def of_ppo(g: Arrays, new: jax.Array, new_values: jax.Array) -> Sums:
    return ppo_sums(
        ppo_policy_sums(new, g["old"], g["advantages"], g["actions"]),
        value_sums(new_values, g["values"], g["returns"], g["actions"]),
        jnp.zeros_like(new),
        g["actions"],
        0.1,
        0.0,
    )


def of_grpo(variant: Any, dual_clip: float | None = None) -> Callable[[Arrays, jax.Array], Sums]:
    def loss(g: Arrays, new: jax.Array) -> Sums:
        rest = (g["ref"], 0.04, 0.2, 0.28, dual_clip, LENGTH)
        return grpo_sums(new, g["old"], g["of_answer"], g["actions"], variant, *rest)

    return loss


def of_distillation(kind: Any) -> Callable[[Arrays, jax.Array], Sums]:
    def loss(g: Arrays, student: jax.Array) -> Sums:
        sums = distillation_sums(student, g["teacher"], g["tokens"], g["mask"], kind, 2.0, 0.0, 0.3)
        top, bottom = sums["loss"]
        # Theirs has no T².
        return {"loss": (top / 4.0, bottom)}

    return loss


#: Name in `ask_trl` -> ours, whose arguments after the arrays are what is differentiated, and their names.
LOSSES: dict[str, tuple[Callable[..., Sums], tuple[str, ...]]] = {
    "sigmoid": (lambda g, x: dpo_sums(pair(x, g, False), reference(g, False), ONES), ("logits",)),
    "ipo": (lambda g, x: ipo_sums(pair(x, g, True), reference(g, True), ONES), ("logits",)),
    "smoothed": (
        lambda g, x, y: dpo_sums(Pair(x, y), Pair(0 * x, 0 * y), ALL, 0.7, 0.2),
        ("chosen", "rejected"),
    ),
    "simpo": (lambda g, x, y: simpo_sums(Pair(x, y), ALL, 0.7, 0.4, 0.2), ("chosen", "rejected")),
    "orpo": (lambda g, x, y: orpo_sums(Pair(x, y), ALL, 0.3), ("chosen", "rejected")),
    "kto": (of_kto, ("logits",)),
    **{name: (of_grpo(name), ("new",)) for name in ("grpo", "dr_grpo", "dapo", "bnpo")},
    "dual": (of_grpo("grpo", 1.5), ("new",)),
    "rloo": (lambda g, x: rloo_sums(x, g["old"], g["of_answer"], g["actions"], 0.2, 0.28), ("new",)),
    "ppo": (of_ppo, ("new", "new_values")),
    "reward": (lambda g, x, y: pairwise_sums(x, y, ALL), ("chosen", "rejected")),
    "centred": (lambda g, x, y: pairwise_sums(x, y, ALL, g["margins"], 0.01), ("chosen", "rejected")),
    **{name: (of_distillation(name), ("student",)) for name in ("forward_kl", "reverse_kl", "jsd")},
}
#: Metrics of a loss here -> there.
METRICS = {
    "sigmoid": {
        "reward_chosen": "rewards/chosen",
        "accuracy": "rewards/accuracies",
        "margin": "rewards/margins",
    },
    "orpo": {"log_odds": "log_odds"},
    **{name: {"clipped": "clipped"} for name in ("dr_grpo", "dapo", "bnpo", "rloo")},
    "grpo": {"clipped": "clipped", "kl": "kl"},
    "ppo": {"value_loss": "value_loss", "value_clipped": "value_clipped"},
    "reward": {"accuracy": "accuracy"},
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_loss_and_gradient(name: str, given: Arrays, told: Arrays) -> None:
    of, leaves = LOSSES[name]
    where = [jnp.asarray(given["logits" if leaf == "student" else leaf]) for leaf in leaves]

    @jax.jit
    def found(*leaves: jax.Array) -> Any:
        def loss(*leaves: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            means = mean(of(given, *leaves))
            return means["loss"], means

        return jax.value_and_grad(loss, argnums=tuple(range(len(leaves))), has_aux=True)(*leaves)

    (value, means), gradients = found(*where)
    np.testing.assert_allclose(value, told[name], rtol=2e-5, atol=1e-6)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        wanted = told[f"{name}/{leaf}"]
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6, err_msg=leaf)
    for ours, theirs in METRICS.get(name, {}).items():
        np.testing.assert_allclose(means[ours], told[f"{name}/{theirs}"], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_rewards_and_gae(estimator: Any, given: Arrays, told: Arrays) -> None:
    g, everywhere = given, np.ones_like(given["old"])
    of_rewards, of_gae = jax.jit(token_rewards, static_argnames="estimator"), jax.jit(gae)
    rewards = of_rewards(g["of_answer"], g["old"], g["ref"], everywhere, 0.05, estimator=estimator).rewards
    np.testing.assert_allclose(rewards, told[f"ppo/{estimator}/rewards"], atol=1e-6)
    found = of_gae(rewards, g["values"], everywhere, 0.97, 0.9)
    np.testing.assert_allclose(found.advantages, told[f"ppo/{estimator}/advantages"], atol=1e-5)
    np.testing.assert_allclose(found.returns, told[f"ppo/{estimator}/returns"], atol=1e-5)


def test_the_reference_point_of_kto(given: Arrays, told: Arrays) -> None:
    found = kto_baseline(jnp.asarray(given["other"]), jnp.asarray(given["ref_other"]), jnp.asarray(ALL))
    assert float(found) > 0.1
    np.testing.assert_allclose(found, told["kto/kl"], rtol=1e-5)


@pytest.mark.parametrize("shift", [True, False])
def test_whitening(shift: bool, given: Arrays, told: Arrays) -> None:
    held = given["actions"] == 1
    found = whiten(jnp.asarray(given["advantages"]), given["actions"], shift, unbiased=True)
    np.testing.assert_allclose(found[held], told[f"whiten/{shift}"][held], atol=1e-5)


def test_advantages_of_groups(given: Arrays, told: Arrays) -> None:
    rewards = jnp.asarray(given["group_rewards"])
    for scale in ("std", "none"):
        found = group_advantages(rewards, scale)
        np.testing.assert_allclose(found.ravel(), told[f"advantages/{scale}"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(leave_one_out(rewards).ravel(), told["advantages/rloo"], rtol=1e-5, atol=1e-6)
