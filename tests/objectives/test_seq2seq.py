"""Label smoothing by hand and against PyTorch; the loss of an encoder–decoder over packed pairs."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.objectives import mean, seq2seq, token_sums

PEERS = Path(__file__).resolve().parents[2] / ".venv-peers" / "bin" / "python"


def test_label_smoothing_by_hand() -> None:
    """softmax(0, ln 3) = (1/4, 3/4), target 1, ε = 0.2: 0.8 · ln 4/3 + 0.2 · (ln 4 + ln 4/3) / 2."""
    logits = jnp.asarray([[0.0, math.log(3)]])
    sums = mean(token_sums(logits, jnp.asarray([1]), jnp.asarray([1.0]), label_smoothing=0.2))
    expected = 0.8 * math.log(4 / 3) + 0.2 * (math.log(4) + math.log(4 / 3)) / 2
    assert float(sums["loss"]) == pytest.approx(expected, abs=1e-7)
    assert float(sums["nll"]) == pytest.approx(math.log(4 / 3), abs=1e-7)


def test_smoothing_and_z_loss_add_up() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 3, 7)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 7, (2, 3)), jnp.int32)
    weights = jnp.asarray(rng.uniform(size=(2, 3)), jnp.float32)
    plain, smooth, z, both = (
        float(token_sums(logits, targets, weights, z_loss, smoothing)["loss"][0])
        for z_loss, smoothing in ((0.0, 0.0), (0.0, 0.1), (0.01, 0.0), (0.01, 0.1))
    )
    assert both - smooth == pytest.approx(z - plain, rel=1e-4)
    assert both != smooth != plain


PROGRAM = """
import json, sys, torch
logits, targets, smoothing = json.load(sys.stdin)
logits = torch.tensor(logits, requires_grad=True)
loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, torch.tensor(targets))
loss.backward()
json.dump([loss.item(), logits.grad.tolist()], sys.stdout)
"""


@pytest.mark.peers
@pytest.mark.skipif(not PEERS.exists(), reason="needs the peers environment: `make peers`")
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_that_of_pytorch(smoothing: float) -> None:
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(6, 11)) * 3).astype(np.float32)
    targets = rng.integers(0, 11, 6)
    targets[2] = -100  # what it leaves out
    given = json.dumps([logits.tolist(), targets.tolist(), smoothing])
    done = subprocess.run(
        [str(PEERS), "-c", PROGRAM], input=given, capture_output=True, text=True, check=True
    )
    theirs, their_gradient = json.loads(done.stdout)

    def ours(logits: jax.Array) -> jax.Array:
        weights = jnp.asarray(targets != -100, jnp.float32)
        ids = jnp.asarray(np.maximum(targets, 0), jnp.int32)
        return mean(token_sums(logits, ids, weights, label_smoothing=smoothing))["loss"]

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
    assert float(value) == pytest.approx(theirs, abs=1e-6)
    np.testing.assert_allclose(gradient, their_gradient, atol=1e-6)


class Copier(nn.Module):
    """Remembers how it was called and wants the decoder's own input, which is one place behind the target."""

    vocab_size: int = 9

    def __call__(self, tokens: jax.Array, decoder_tokens: jax.Array, **rest: Any) -> tuple[jax.Array, None]:
        names = {"segment_ids", "decoder_segment_ids", "positions", "decoder_positions", "deterministic"}
        assert set(rest) == names
        assert tokens.shape == rest["segment_ids"].shape == rest["positions"].shape
        assert decoder_tokens.shape == rest["decoder_segment_ids"].shape == rest["decoder_positions"].shape
        return 50.0 * jax.nn.one_hot(decoder_tokens, self.vocab_size), None


def test_targets_of_the_decoder_are_counted_by_weight() -> None:
    encoder, decoder = jnp.zeros((1, 4), jnp.int32), jnp.asarray([[1, 2, 3]], jnp.int32)
    batch = {
        **dict.fromkeys(("tokens", "segment_ids", "positions"), encoder),
        **dict.fromkeys(("decoder_tokens", "decoder_segment_ids", "decoder_positions"), decoder),
        "targets": jnp.asarray([[1, 2, 7]], jnp.int32),
        "weights": jnp.asarray([[1.0, 1.0, 0.0]]),
    }
    sums = seq2seq(Copier())({}, batch, None)
    assert float(sums["loss"][0]) == pytest.approx(0.0, abs=1e-6)
    assert float(sums["loss"][1]) == float(sums["accuracy"][0]) == 2
