"""What PPO refuses to be told."""

from __future__ import annotations

from typing import Any

import pytest

from hllm_jax.config import ConfigError, Invalid, load_config
from hllm_jax.models.config import LoRAConfig
from hllm_jax.recipes import load_run_config
from hllm_jax.rl.ppo_config import PPOConfig, check_ppo


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lam", 1.5, "1.5: in [0, 1]"),
        ("clip", 1.0, "below 1, a ratio is never negative"),
        ("dual_clip", 0.5, "above 1, or null"),
        ("value_clip", 0, "above 0"),
        ("kl.coefficient", 0.0, "above 0, for it is multiplied; kind: fixed allows 0"),
        ("kl.target", 0, "above 0 nats"),
        ("kl.estimator", "k4", "k1"),
        ("kl_limit", -1.0, "above 0"),
        ("truncation", "penalise", "it is subtracted from the score"),
    ],
)
def test_values_without_a_meaning_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(PPOConfig, overrides=[f"{key}={value}"])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["kl.kind=fixed", "kl.target=3"], "kl.target = 3: is not used by fixed"),
        (["truncation=mask", "truncation_value=-2"], "is not used by truncation: mask"),
    ],
)
def test_what_would_be_ignored_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(PPOConfig, overrides=overrides)
    assert message in str(refused.value)


def test_sections_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(Invalid, match=r"reward\.kind is function"):
        check_ppo(PPOConfig(value_init="reward"), "function", None)
    with pytest.raises(Invalid, match="each would measure its columns anew"):
        check_ppo(PPOConfig(), "model", LoRAConfig(dora=True))
    for overrides, message in (
        (["model.load=null", "model.preset=llama-2-7b"], "PPO starts from a model that writes"),
        (["reward_base=configs/reward/tiny.yaml"], "trains a reward model, and reward.kind is verifier"),
        (["rollout.minibatches=7"], "do not divide into 7 minibatches"),
        (["lora.dropout=0.1"], "there is none when answers are sampled"),
        (["rollout.top_p=0.9"], "what was cut off would have a probability in the policy"),
    ):
        with pytest.raises(ConfigError) as refused:
            load_run_config("configs/ppo/tiny.yaml", overrides)
        assert message in str(refused.value)
