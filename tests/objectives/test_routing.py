"""The losses of a router: by hand, as `transformers` computes them, and whole for any split of a batch."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.nn import Experts
from hllm_jax.nn.moe import ROUTING, Routing
from hllm_jax.objectives import add, causal_lm, mean
from hllm_jax.objectives.routing import Routed, add_routing, load_balance
from hllm_jax.testing.models import random_tokens, tiny_config, tiny_model

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
EXPERTS = Experts(count=4, per_token=2, load_balance=0.5, router_z_loss=0.25)


def routing(chosen: Any, probabilities: Any, tokens: Any, log_z: Any = 0.0) -> Routing:
    """Sums as arrays."""
    chosen, probabilities = jnp.asarray(chosen, jnp.float32), jnp.asarray(probabilities, jnp.float32)
    log_z = jnp.broadcast_to(jnp.float32(log_z), chosen.shape[:-1])
    return Routing(jnp.asarray(tokens, jnp.float32), chosen, probabilities, log_z, jnp.zeros_like(log_z))


def test_the_balance_of_two_experts_by_hand() -> None:
    """Four tokens, one expert each: three chose the first, the router gave it 0.7 in the mean."""
    found = load_balance(routing([3, 1], [2.8, 1.2], 4))
    np.testing.assert_allclose(found, 2 * (3 / 4 * 0.7 + 1 / 4 * 0.3), rtol=1e-6)
    # All alike: as many as a token passes (here 2 of 4), whatever the number of experts.
    np.testing.assert_allclose(load_balance(routing([5] * 4, [2.5] * 4, 10)), 2.0, rtol=1e-6)
    assert load_balance(routing([0, 0], [0, 0], 0)) == 0


def test_what_is_added_to_a_loss_by_hand() -> None:
    """Two rows with 3 and 1 trained targets, two layers."""
    one = routing([[2, 2, 2, 2], [4, 4, 0, 0]], [[1] * 4, [2, 2, 0, 0]], [4, 4], [8.0, 4.0])
    layers = jax.tree.map(lambda x: jnp.stack([x, x]), one)
    sums = {"loss": (jnp.float32(6), jnp.float32(4)), "accuracy": (jnp.float32(1), jnp.float32(4))}
    weights = jnp.asarray([[1, 1, 1, 0], [0, 0, 0, 1]], jnp.float32)
    found = mean(add_routing(sums, Routed(EXPERTS, layers), weights))
    # Balance: 4·4·(2/4·1/4) = 2 in the first row, 4·2·(1·1/2) = 4 in the second; log-partition 2 and 1.
    np.testing.assert_allclose(found["load_balance"], (3 * 2 + 1 * 4) / 4, rtol=1e-6)
    np.testing.assert_allclose(found["router_z"], (3 * 2 + 1 * 1) / 4, rtol=1e-6)
    np.testing.assert_allclose(found["loss"], 1.5 + 0.5 * 2.5 + 0.25 * 1.75, rtol=1e-6)
    assert (found["nll"], found["accuracy"]) == (1.5, 0.25)
    assert "dropped" not in found
    assert add_routing(sums, None, weights) is sums


@functools.cache
def sparse(**changes: Any) -> tuple[Any, Any]:
    return tiny_model(tiny_config(experts=dataclasses.replace(EXPERTS, **changes)))


def batch(rows: int = 4) -> dict[str, jax.Array]:
    """Ragged rows, of which some targets count."""
    tokens = random_tokens(tiny_config(), rows, 9)
    segments = np.asarray([[1] * 9, [1] * 4 + [2] * 5, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7][:rows])
    weights = (segments != 0) * (np.arange(9) % 3 != 0)
    arrays = {"tokens": tokens, "targets": np.roll(tokens, -1, 1), "segment_ids": segments}
    arrays |= {"weights": weights.astype(np.float32), "positions": np.tile(np.arange(9), (rows, 1))}
    return {k: jnp.asarray(v if v.dtype == np.float32 else v.astype(np.int32)) for k, v in arrays.items()}


def test_the_loss_of_a_sparse_model_is_the_same_for_any_split_of_a_batch() -> None:
    model, params = sparse()
    loss, rows = causal_lm(model), batch()

    def numerator(params: Any, part: dict[str, jax.Array]) -> Any:
        sums = loss({"params": params}, part, None)
        return sums["loss"][0], sums

    grad = jax.jit(jax.grad(numerator, has_aux=True))
    whole, sums = grad(params, rows)
    parts = [grad(params, {k: v[i : i + 1] for k, v in rows.items()}) for i in range(4)]
    summed = jax.tree.map(lambda *of: sum(of), *(gradient for gradient, _ in parts))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), summed, whole)
    found, wanted = functools.reduce(add, (own for _, own in parts)), sums
    assert found.keys() == wanted.keys() == {"loss", "nll", "accuracy", "load_balance", "router_z"}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, wanted)
    # The router is drawn by the balance, not by the text alone.
    plain = jax.jit(
        jax.grad(
            lambda p: causal_lm(sparse(load_balance=0.0, router_z_loss=0.0)[0])({"params": p}, rows, None)[
                "loss"
            ][0]
        )
    )(params)
    kernels = [tree["layers_0"]["experts"]["router"]["kernel"] for tree in (whole, plain)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-2


def test_what_is_dropped_is_said_while_training_and_nothing_is_in_evaluation() -> None:
    model, params = sparse(capacity_factor=0.5)
    loss = jax.jit(causal_lm(model))
    assert 0.1 < mean(loss({"params": params}, batch(), jax.random.key(0)))["dropped"] < 0.9
    assert mean(loss({"params": params}, batch(), None))["dropped"] == 0


@pytest.mark.peers
@pytest.mark.parametrize("padded", [False, True])
def test_the_balance_that_transformers_computes(padded: bool) -> None:
    """Theirs pools the tokens of all rows and layers; ours of the same pool is the same number."""
    model, params = sparse()
    rows = batch()
    segments = rows["segment_ids"] if padded else None
    states: Any = {"params": params}
    _, noted = jax.jit(lambda t, s: model.apply(states, t, s, mutable=[ROUTING]))(rows["tokens"], segments)
    layers = [noted[ROUTING][name]["experts"]["sums"][0] for name in ("layers_0", "layers_1")]
    pooled = jax.tree.map(lambda *of: sum(x.sum(0) for x in of), *layers)

    _, seen = jax.jit(
        lambda t, s: model.apply(states, t, s, capture_intermediates=_router, mutable=["intermediates"])
    )(rows["tokens"], segments)
    logits = [seen["intermediates"][f"layers_{i}"]["experts"]["router"]["__call__"][0] for i in range(2)]
    given = {
        "logits": [np.asarray(x).reshape(-1, 4).tolist() for x in logits],
        "mask": (np.asarray(rows["segment_ids"]) != 0).astype(int).tolist() if padded else None,
    }
    code = (
        "import json, sys, torch\n"
        "from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as f\n"
        "g = json.load(sys.stdin); t = torch.tensor\n"
        "m = None if g['mask'] is None else t(g['mask'])\n"
        "print(float(f(tuple(t(x) for x in g['logits']), 4, 2, m)))"
    )
    said = subprocess.run(
        [PEERS, "-c", code], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    np.testing.assert_allclose(load_balance(pooled), float(said.stdout), rtol=1e-5)


def _router(module: Any, method: str) -> bool:
    return module.name == "router"
