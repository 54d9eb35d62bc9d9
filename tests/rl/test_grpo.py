"""GRPO and RLOO: what is learned from a rollout, and settings that are refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.config import ConfigError, load_config
from hllm_jax.recipes import load_run_config
from hllm_jax.rl import GRPOConfig, Rollout, RolloutConfig, make_grpo
from hllm_jax.rl.roles import policy_of, reference_of
from hllm_jax.testing.models import tiny_config, tiny_model

SETTINGS = RolloutConfig(group=2, prompt_window=4, max_tokens=3)


def rollout() -> Rollout:
    """Four answers to two prompts of 2 and 4 tokens; the second one of the first was cut off."""
    tokens = np.random.default_rng(0).integers(2, 67, (4, 7)).astype(np.int32)
    begins, lengths = np.array([2, 2, 4, 4]), np.array([4, 5, 6, 6], np.int32)
    places = np.arange(7)[None, :]
    actions = ((places >= begins[:, None]) & (places < lengths[:, None])).astype(np.float32)
    ended = np.array([True, False, True, True])
    return Rollout(tokens, lengths, actions, -1.0 * actions, ended)


def experience(scores: list[float], **method: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    model, params = tiny_model(tiny_config(layers=1))
    learn, _ = make_grpo(model, GRPOConfig(**method), SETTINGS, 67)
    if method.get("beta"):  # a model is asked
        learn = jax.jit(learn)
    return learn({"params": params}, rollout(), jnp.asarray(scores, jnp.float32))


def test_each_answer_against_the_others_to_its_prompt() -> None:
    batch, sums = experience([1.0, 0.0, 5.0, 5.0])
    # Of (1, 0): mean 1/2, standard deviation sqrt(1/2); epsilon is 1e-4.
    wanted = 0.5 / (0.5**0.5 + 1e-4)
    np.testing.assert_allclose(batch["advantage"], [wanted, -wanted, 0, 0], rtol=1e-5)
    assert [float(each) for each in sums["degenerate"]] == [1, 2]
    assert batch["begins"].tolist() == [2, 2, 4, 4]
    assert "reference" not in batch
    plain, _ = experience([1.0, 0.0, 5.0, 5.0], loss="dr_grpo")
    assert plain["advantage"].tolist() == [0.5, -0.5, 0, 0]


def test_what_was_cut_off_and_what_has_no_score() -> None:
    masked, sums = experience([1.0, 0.0, 5.0, 3.0], truncation="mask")
    assert masked["actions"][1].sum() == 0
    assert masked["begins"].tolist() == [2, 2, 4, 4]
    # Alone in its group, an answer is compared with nothing.
    assert masked["advantage"][:2].tolist() == [0, 0]
    assert float(sums["degenerate"][0]) == 1
    fined, _ = experience([1.0, 1.0, 5.0, 3.0], loss="dr_grpo", truncation="penalise", truncation_value=2.0)
    assert fined["advantage"].tolist() == [1, -1, 1, -1]
    unknown, _ = experience([1.0, float("nan"), 5.0, 3.0], loss="dr_grpo")
    assert unknown["advantage"].tolist() == [0, 0, 1, -1]
    assert unknown["actions"][1].sum() == 0


def test_rloo_pays_for_the_kl_of_whole_answers() -> None:
    free, _ = experience([3.0, 0.0, 1.0, 1.0], loss="rloo")
    assert free["advantage"].tolist() == [3, -3, 0, 0]
    held, sums = experience([3.0, 0.0, 1.0, 1.0], loss="rloo", beta=0.5)
    kl = np.asarray(held["kl"])
    sampled = rollout()
    np.testing.assert_allclose(
        kl, ((sampled.log_probs - held["reference"]) * sampled.actions).sum(axis=1), rtol=1e-5
    )
    rewards = np.array([3.0, 0.0, 1.0, 1.0]) - 0.5 * kl
    other = rewards.reshape(2, 2)[:, ::-1].reshape(-1)
    np.testing.assert_allclose(held["advantage"], rewards - other, rtol=1e-4)
    assert float(sums["kl"][1]) == sampled.actions.sum()


def test_the_reference_is_the_base_or_has_weights_of_its_own() -> None:
    assert reference_of({"params": 1, "lora": 2}) == {"params": 1}
    both = {"params": 1, "reference": {"params": 0}}
    assert reference_of(both) == {"params": 0}
    assert policy_of(both) == {"params": 1}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("beta=-1", "beta"),
        ("clip_low=1", "above 0 and below 1"),
        ("dual_clip=1", "larger than 1"),
        ("kl_limit=0", "above 0, or null for none"),
        ("truncation_value=1", "is not used by truncation: keep"),
        ("truncation=penalise", "truncation_value.*above 0"),
        ("loss=ppo", "loss"),
    ],
)
def test_a_method_that_cannot_be_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(GRPOConfig, overrides=(setting,))


@pytest.mark.parametrize("setting", ["scale=none", "clip_low=0.1", "clip_high=0.3", "dual_clip=3"])
def test_what_rejection_sampling_has_no_use_for_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="not used by best_of_n"):
        load_config(GRPOConfig, overrides=("loss=best_of_n", setting))


@pytest.mark.parametrize("setting", ["scale=std", "dual_clip=3"])
def test_what_rloo_has_no_use_for_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="not used by rloo"):
        load_config(GRPOConfig, overrides=("loss=rloo", setting))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rollout.group=1", "rollout.group.*an answer is compared with the others"),
        ("rollout.minibatches=3", "64 rows, which do not divide into 3 minibatches"),
        ("train.sequence_length=64", "train.sequence_length.*is not used"),
        ("train.z_loss=0.1", "it belongs to the loss of pretraining"),
        ("train.logit_chunks=3", "answers of 16 tokens .* do not divide into 3 parts"),
        ("checkpoint.best=eval/reward", "that is the worst one"),
        ("model.dropout=0.1", "model.dropout.*none when answers are sampled"),
        ("data.packing=concat", "data.packing.*every prompt has a row of its own"),
        ("pipeline.microbatches=2", "pipeline"),
        ("reward_base=configs/reward/tiny.yaml", "trains a reward model, and reward.kind is verifier"),
        ("rollout.top_p=0.9", "a probability in the policy and none in the sampler"),
    ],
)
def test_sections_that_do_not_go_together_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config("configs/grpo/tiny.yaml", [setting])
