"""Rollouts: their log-probabilities are those of the policy that learns, and nothing but a row's own prompt,
seed, update and number matters to it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.config import ConfigError, load_config
from hllm_jax.models.config import LoRAConfig
from hllm_jax.models.decoder import Decoder
from hllm_jax.objectives import grpo_sums, kl_estimate
from hllm_jax.parallel import Layout, make_mesh, make_rules
from hllm_jax.parallel.config import MeshConfig, Strategy
from hllm_jax.parallel.state import flatten, unflatten
from hllm_jax.rl.config import RolloutConfig
from hllm_jax.rl.rollout import Rollout, answer_likelihood, check_rollout, sample_rollout
from hllm_jax.testing.models import tiny_config, tiny_model

SETTINGS = RolloutConfig(group=2, prompt_window=6, max_tokens=5, temperature=0.6)
VOCAB = 60  # of the tokenizer; the model has 68
STOPS = (0, *range(50, 58))  # padding is a stop token too
P = 4


def policy(
    devices: int = 1, strategy: Strategy = "ddp", lora: bool = False, mesh: MeshConfig | None = None
) -> tuple[Decoder, Layout, Any]:
    """A model of one layer, its layout, and its variables on the devices."""
    model, params = tiny_model(tiny_config(vocab_size=68, layers=1), scan_layers=strategy != "ddp")
    made = make_mesh(mesh, strategy, jax.devices()[:devices])
    adapters = LoRAConfig(rank=2) if lora else None
    layout = Layout(made, make_rules(strategy), model, None, adapters=adapters)
    if not lora:
        return model, layout, layout.place({"params": params})
    # As after training: the product of the adapters is not 0.
    rng = np.random.default_rng(1)
    flat = flatten(layout.init(0, params).variables)
    moved = {
        path: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32) if path[-1] == "b" else leaf
        for path, leaf in flat.items()
    }
    return model, layout, layout.place(unflatten(moved))


def prompts(seed: int = 0, window: int = 6, pad: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, P).astype(np.int32)
    lengths[0] = 6
    tokens = np.full((P, window), pad, np.int32)
    tokens[:, :6] = rng.integers(1, 50, (P, 6))
    tokens[np.arange(window)[None, :] >= lengths[:, None]] = pad
    return {"tokens": tokens, "lengths": lengths}


@functools.cache
def sampler(temperature: float = 0.6, window: int = 6) -> Any:
    """`(prompt batch, update) -> Rollout` of NumPy arrays, on one device; and the policy."""
    model, layout, variables = policy()
    settings = RolloutConfig(group=2, prompt_window=window, max_tokens=5, temperature=temperature)
    sample = jax.jit(functools.partial(sample_rollout, model, layout, settings, STOPS, VOCAB))

    def run(batch: Any, update: int = 0) -> Rollout:
        rng = jax.random.key_data(jax.random.key(7))
        placed = layout.put(batch)
        found = sample(variables, placed["tokens"], placed["lengths"], rng, jnp.int32(update))
        return jax.tree.map(np.asarray, found)

    return run, model, variables


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_the_training_pass_gives_ratio_1_and_kl_0(temperature: float) -> None:
    run, model, variables = sampler(temperature)
    rollout = run(prompts())
    again = functools.partial(answer_likelihood, model, vocab=VOCAB, chunks=5)
    told = jax.jit(again, static_argnames="config")
    row = variables, rollout.tokens, rollout.lengths, rollout.begins
    found = told(*row, config=dataclasses.replace(SETTINGS, temperature=temperature))
    assert rollout.actions.sum() >= 2 * P
    assert (rollout.log_probs[rollout.actions == 1] < 0).all()
    assert (rollout.log_probs[rollout.actions == 0] == 0).all()
    sums = grpo_sums(found.log_probs, rollout.log_probs, np.ones(2 * P, np.float32), rollout.actions)
    assert float(sums["ratio"][0] / sums["ratio"][1]) == pytest.approx(1.0, abs=1e-5)
    kl = kl_estimate(rollout.log_probs, found.log_probs, "k1") * rollout.actions
    assert np.abs(kl).max() < 2e-5
    other = told(*row, config=dataclasses.replace(SETTINGS, temperature=0.8))
    assert np.abs((other.log_probs - rollout.log_probs) * rollout.actions).max() > 1e-2


def test_rows_are_prompts_and_right_behind_them_the_answers() -> None:
    run, _, _ = sampler()
    batch = prompts()
    rollout = run(batch)
    places = np.arange(SETTINGS.length)[None, :]
    begin, end = np.repeat(batch["lengths"], 2)[:, None], rollout.lengths[:, None]
    np.testing.assert_array_equal(rollout.actions, ((places >= begin) & (places < end)).astype(np.float32))
    asked = np.repeat(batch["tokens"], 2, axis=0)
    before = places[:, :6] < begin
    np.testing.assert_array_equal(rollout.tokens[:, :6][before], asked[before])
    assert (rollout.tokens[places >= end] == 0).all()
    assert (rollout.tokens < VOCAB).all()
    made = (end - begin)[:, 0]
    last = rollout.tokens[np.arange(2 * P), rollout.lengths - 1]
    # The stop token is an action; a row without one was cut off at its longest.
    np.testing.assert_array_equal(rollout.ended, np.isin(last, STOPS))
    assert rollout.ended.any()
    assert not rollout.ended.all()
    assert (made[~rollout.ended] == 5).all()
    inner = (rollout.actions == 1) & (places < end - 1)
    assert not np.isin(rollout.tokens[inner], STOPS).any()
    assert any((rollout.tokens[i] != rollout.tokens[i + 1]).any() for i in range(0, 2 * P, 2))


@pytest.mark.parametrize("more", [pytest.param(3, marks=pytest.mark.slow), 7])
def test_a_wider_window_changes_nothing(more: int) -> None:
    narrow, _, _ = sampler()
    wide, _, _ = sampler(window=6 + more)
    few, many = narrow(prompts()), wide(prompts(window=6 + more))
    np.testing.assert_array_equal(few.tokens, many.tokens[:, : SETTINGS.length])
    np.testing.assert_array_equal(few.actions, many.actions[:, : SETTINGS.length])
    np.testing.assert_array_equal(few.lengths, many.lengths)
    assert np.abs(few.log_probs - many.log_probs[:, : SETTINGS.length]).max() < 1e-5
    assert (many.actions[:, SETTINGS.length :] == 0).all()


def test_neither_pads_nor_batch_mates_matter_but_the_update_does() -> None:
    run, _, _ = sampler()
    rollout = run(prompts())
    padded = run(prompts(pad=33))
    jax.tree.map(np.testing.assert_array_equal, rollout, padded)
    batch, others = prompts(), prompts(seed=5)
    mixed = {name: np.concatenate([others[name][:2], batch[name][2:]]) for name in batch}
    beside = run(mixed)
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one[4:], other[4:]), rollout, beside)
    later = run(prompts(), update=1)
    assert (later.tokens != rollout.tokens).any()
    jax.tree.map(np.testing.assert_array_equal, rollout, run(prompts()))


@pytest.mark.slow
def test_adapters_on_several_devices() -> None:
    found: list[Rollout] = []
    for devices, strategy, mesh in (
        (1, "ddp", None),
        (4, "zero3", None),
        (4, "ddp", MeshConfig(data=2, tensor=2)),
    ):
        model, layout, variables = policy(devices, strategy, lora=True, mesh=mesh)
        sample = jax.jit(functools.partial(sample_rollout, model, layout, SETTINGS, STOPS, VOCAB))
        placed = layout.put(prompts())
        rng = jax.random.key_data(jax.random.key(7))
        rollout = sample(variables, placed["tokens"], placed["lengths"], rng, jnp.int32(0))
        told = jax.jit(functools.partial(answer_likelihood, model, config=SETTINGS, vocab=VOCAB))
        recomputed = told(variables, rollout.tokens, rollout.lengths, rollout.begins)
        assert np.abs((recomputed.log_probs - rollout.log_probs) * rollout.actions).max() < 2e-5
        found.append(jax.tree.map(np.asarray, rollout))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].tokens, other.tokens)
    without = sampler()[0](prompts())
    assert (without.tokens != found[0].tokens).any()


def test_what_cannot_be_rolled_out_is_refused() -> None:
    model, _ = tiny_model(tiny_config(max_length=10))
    with pytest.raises(ValueError, match=r"rows of 11 tokens, longer than the model's max_length 10"):
        check_rollout(model, SETTINGS)
    with pytest.raises(ValueError, match="it is a decoder, not a str"):
        check_rollout("model", SETTINGS)
    scorer, _ = tiny_model(tiny_config(head="score"))
    with pytest.raises(ValueError, match="is a reward model, which does not write"):
        check_rollout(scorer, SETTINGS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("top_p=0.9", "a probability in the policy and none in the sampler"),
        ("top_k=5", "a probability in the policy and none in the sampler"),
        ("min_p=0.1", "a probability in the policy and none in the sampler"),
        ("repetition_penalty=1.2", "a probability in the policy and none in the sampler"),
        ("temperature=0", "greedy answers have no probability to learn from"),
        ("group=0", "at least 1"),
        ("max_tokens=0", "at least 1"),
    ],
)
def test_a_config_whose_log_probs_would_be_wrong_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(RolloutConfig, overrides=(setting,))
