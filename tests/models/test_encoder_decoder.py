"""An encoder and a decoder: cached steps, packed rows, dropout, initial weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from hllm_jax.config.declare import Invalid
from hllm_jax.models import EncoderDecoder, EncoderDecoderConfig, Execution
from hllm_jax.models.families.t5 import PRESETS
from hllm_jax.models.layout import init_variables
from hllm_jax.objectives.sequence_to_sequence import seq2seq
from hllm_jax.testing.models import compiled
from tests.models.families.contract import Case, recorded

SMALL = EncoderDecoderConfig(
    vocab_size=50, layers=2, embed=32, heads=4, kv_heads=4, head_dim=8, mlp=48, max_length=64
)
POST = dataclasses.replace(
    SMALL,
    norm="layer",
    norm_placement="post",
    position="sinusoidal",
    attention_scale=None,
    scale_logits=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    embed_scale=32**0.5,
    logit_bias=True,
)
KINDS = {"relative": SMALL, "sinusoidal": POST}
CASES = [case for case in recorded() if isinstance(case.spec, EncoderDecoderConfig)]


def made(config: EncoderDecoderConfig, **execution: Any) -> tuple[EncoderDecoder, dict[str, Any]]:
    """A model in float32 and its variables."""
    model = config.build(Execution(dtype="float32", **execution))
    return model, nn.unbox(jax.jit(lambda: init_variables(model, jax.random.key(3)))())


def rows(shape: tuple[int, int], seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(2, 50, shape).astype(np.int32))


# ---- steps with a cache ----


def test_there_are_recorded_models_to_decode() -> None:
    assert {case.family for case in CASES} == {"t5", "transformer"}
    assert max(case.inputs["decoder_tokens"].shape[1] for case in CASES) > 128


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_cached_steps_say_what_transformers_says(case: Case, scan_layers: bool) -> None:
    """Beyond the last bucket of relative distances too, with sources padded on the right."""
    if scan_layers and case.name not in ("v1", "relu"):
        pytest.skip("one model of each family stands for the others")
    spec: Any = case.spec
    model = spec.build(Execution(dtype="float32", scan_layers=scan_layers))
    variables = {"params": case.params(scan_layers)}
    valid, written = jnp.asarray(case.inputs["right"]), jnp.asarray(case.inputs["decoder_tokens"])

    @jax.jit
    def steps() -> jax.Array:
        encoded: Any = model.apply(variables, case.inputs["tokens"], valid, method="encode")
        cache: Any = model.apply(variables, encoded, valid, written.shape[1], method="cache")

        def step(cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
            x, cache = model.apply(variables, token[:, None], cache=cache, method="hidden")
            return cache, model.apply(variables, x, method="head")[:, 0]

        return jax.lax.scan(step, cache, written.T)[1].swapaxes(0, 1)

    np.testing.assert_allclose(steps(), case.outputs["right/logits"], atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_neighbours_share_what_they_look_at(name: str) -> None:
    """Six rows over two sources, of which each is kept once, are six rows over their own copies."""
    model, variables = made(KINDS[name])
    source, valid = rows((2, 9), 0), jnp.asarray([[1] * 9, [1] * 5 + [0] * 4], jnp.int32)
    encoded: Any = compiled(model, "encode")(variables, source, valid)
    cache: Any = jax.jit(lambda *given: model.apply(*given, 4, method="cache"))(variables, encoded, valid)
    neighbours, tokens = jnp.repeat(jnp.arange(2), 3), rows((6, 3), 1)
    shared, copied = (cache.take(neighbours, cross) for cross in (False, True))
    assert jax.tree.leaves(shared.cross)[0].shape[0] == 2
    for at in range(3):
        token = tokens[:, at : at + 1]
        x, shared = compiled(model, "hidden")(variables, token, cache=shared)
        y, copied = compiled(model, "hidden")(variables, token, cache=copied)
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_step_needs_what_the_encoder_said() -> None:
    model, variables = made(SMALL)
    with pytest.raises(ValueError, match="needs a cache that remembers"):
        model.apply(variables, rows((1, 1), 0), method="hidden")


# ---- packed rows ----


def batch(pairs: list[tuple[np.ndarray, np.ndarray]], length: int, targets: int) -> dict[str, Any]:
    """One row with all pairs, one segment each."""
    names = ("tokens", "segment_ids", "positions")
    out = {name: np.zeros((1, length), np.int32) for name in names}
    out |= {f"decoder_{name}": np.zeros((1, targets), np.int32) for name in names}
    out |= {"targets": np.zeros((1, targets), np.int32), "weights": np.zeros((1, targets), np.float32)}
    at = to = 0
    for number, (source, target) in enumerate(pairs, start=1):
        here, there = slice(at, at + len(source)), slice(to, to + len(target))
        out["tokens"][0, here], out["segment_ids"][0, here] = source, number
        out["positions"][0, here] = np.arange(len(source))
        out["decoder_tokens"][0, there] = np.concatenate([[0], target[:-1]])
        out["decoder_segment_ids"][0, there] = number
        out["decoder_positions"][0, there] = np.arange(len(target))
        out["targets"][0, there], out["weights"][0, there] = target, 1.0
        at, to = here.stop, there.stop
    return {name: jnp.asarray(array) for name, array in out.items()}


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_of_packed_pairs_is_the_sum_of_their_losses(name: str) -> None:
    model, variables = made(KINDS[name])
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(2, 50, s), rng.integers(2, 50, t)) for s, t in ((7, 3), (4, 6), (1, 2))]
    loss = jax.jit(seq2seq(model))
    alone = [loss(variables, batch([pair], 12, 11), None)["loss"] for pair in pairs]
    packed = loss(variables, batch(pairs, 15, 13), None)["loss"]
    np.testing.assert_allclose(packed[0], sum(nll for nll, _ in alone), rtol=1e-5)
    assert float(packed[1]) == sum(float(count) for _, count in alone) == 11


@pytest.mark.parametrize("name", KINDS)
def test_a_segment_of_the_decoder_sees_only_its_own_of_the_encoder(name: str) -> None:
    model, variables = made(KINDS[name])
    rng = np.random.default_rng(1)
    first, second = ((rng.integers(2, 50, s), rng.integers(2, 50, t)) for s, t in ((6, 4), (5, 3)))

    def logits(*pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        given = batch(list(pairs), 11, 7)
        out: Any = compiled(model)(
            variables,
            given["tokens"],
            given["decoder_tokens"],
            given["segment_ids"],
            given["decoder_segment_ids"],
        )
        return np.asarray(out[0][0])

    changed = (second[0] + 1) % 50, second[1]
    before, after = logits(first, second), logits(first, changed)
    assert (before[:4] == after[:4]).all()
    assert (before[4:7] != after[4:7]).any()
    np.testing.assert_allclose(before[4:7], logits(second)[:3], atol=2e-5)


def test_what_is_padding_in_the_source_does_not_matter() -> None:
    model, variables = made(SMALL)
    source, target = rows((2, 8), 4), rows((2, 5), 5)
    valid = jnp.asarray([[1] * 8, [0] * 3 + [1] * 5], jnp.int32)
    whole: Any = compiled(model)(variables, source, target, valid)
    other: Any = compiled(model)(variables, source.at[1, :3].set(9), target, valid)
    short: Any = compiled(model)(variables, source[1:, 3:], target[1:])
    np.testing.assert_array_equal(whole[0], other[0])
    np.testing.assert_allclose(whole[0][1:], short[0], atol=2e-5)


# ---- training ----


@pytest.mark.parametrize("where", ["dropout", "attention_dropout", "mlp_dropout"])
def test_each_dropout_drops(where: str) -> None:
    model, variables = made(dataclasses.replace(SMALL, **{where: 0.5}))
    source, target = rows((2, 8), 4), rows((2, 5), 5)

    def logits(key: int, deterministic: bool = False) -> np.ndarray:
        out: Any = compiled(model)(
            variables, source, target, deterministic=deterministic, rngs={"dropout": jax.random.key(key)}
        )
        return np.asarray(out[0])

    assert (logits(0) == logits(0)).all()
    assert np.abs(logits(0) - logits(1)).max() > 0.01
    plain: Any = compiled(model)(variables, source, target)
    np.testing.assert_array_equal(logits(0, deterministic=True), plain[0])


def test_dropout_follows_the_last_norm_of_both_sides() -> None:
    """As in T5: the head reads zeros where the decoder's last state was dropped."""
    model, variables = made(dataclasses.replace(SMALL, dropout=0.5))
    states: Any = model.apply(
        variables,
        rows((2, 8), 4),
        rows((2, 5), 5),
        deterministic=False,
        rngs={"dropout": jax.random.key(0)},
        method="states",
    )
    assert 0.4 < float(np.mean(np.asarray(states) == 0)) < 0.6


def test_initial_weights_are_those_of_t5() -> None:
    """Mesh TensorFlow's standard deviations: query (D·h)^-1/2, key, value and wi D^-1/2, out (H·h)^-1/2,
    wo F^-1/2, embedding 1, relative positions D^-1/2; the head that is not tied D^-1/2 as in T5X."""
    sizes = {"layers": 1, "embed": 96, "heads": 6, "kv_heads": 6, "head_dim": 32, "mlp": 160}
    config = dataclasses.replace(PRESETS["t5-v1.1-small"], vocab_size=500, **sizes)
    _, variables = made(config)
    D, h, H, F = 96, 32, 6, 160
    wanted = {
        "query/kernel": (D * h) ** -0.5,
        "key/kernel": D**-0.5,
        "value/kernel": D**-0.5,
        "out/kernel": (H * h) ** -0.5,
        "gate/kernel": D**-0.5,
        "up/kernel": D**-0.5,
        "down/kernel": F**-0.5,
        "embed/embedding": 1.0,
        "relative/embedding": D**-0.5,
        "head/kernel": D**-0.5,
    }
    found = {"/".join(path): np.std(leaf) for path, leaf in flatten_dict(variables["params"]).items()}
    checked = 0
    for path, std in found.items():
        for ending, value in wanted.items():
            if path.endswith(ending):
                # 5 standard errors: a table of 32 · 6 relative positions has few entries.
                assert std == pytest.approx(value, rel=0.26 if "relative" in path else 0.05), path
                checked += 1
    assert checked == sum("scale" not in path for path in found) == 22


def test_it_begins_knowing_nothing() -> None:
    """The first logits have variance 1, so that the first loss is about log V + 1/2."""
    model, variables = made(dataclasses.replace(PRESETS["t5-v1.1-small"], vocab_size=1000, layers=2))
    rng = np.random.default_rng(0)
    given = batch([(rng.integers(2, 1000, 60), rng.integers(2, 1000, 60))], 64, 64)
    nll, count = jax.jit(seq2seq(model))(variables, given, None)["loss"]
    assert float(nll / count) == pytest.approx(np.log(1000) + 0.5, abs=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_start": 50}, "decoder_start: 50 is outside"),
        ({"stop_ids": (1, 50)}, r"stop_ids: \(1, 50\) are not all"),
        ({"relative_buckets": 2}, "relative_distance: 128 with 2 buckets"),
        ({"relative_distance": 16}, "relative_distance: 16 with 32 buckets"),
        ({"decoder_layers": 0}, "decoder_layers: 0 must be at least 1"),
        ({"mlp_dropout": 1.0}, "mlp_dropout: 1.0 must be"),
    ],
)
def test_impossible_models_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        dataclasses.replace(SMALL, **change)
