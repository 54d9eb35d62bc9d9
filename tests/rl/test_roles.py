"""Several models on one base: what is there once, what is each one's own, and how it all begins."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.models.config import Execution, LoRAConfig, ModelConfig
from hllm_jax.models.spec import EncoderConfig, spec_to_dict
from hllm_jax.parallel import Layout, make_mesh, make_rules
from hllm_jax.parallel.planning.topology import parse_topology
from hllm_jax.parallel.state import TrainState, flatten, split, unflatten
from hllm_jax.planning.compiling import Planning, roles_of, spec_of_run, states_of
from hllm_jax.recipes import load_run_config
from hllm_jax.rl import ppo, reward_model
from hllm_jax.rl.ppo_config import PPOConfig
from hllm_jax.rl.reward_model import RewardModel
from hllm_jax.rl.roles import Roles, begin_roles, make_roles
from hllm_jax.testing.models import draw_params, tiny_config, tiny_model
from hllm_jax.testing.tokenizer import ByteTokenizer
from hllm_jax.training.checkpoints import Checkpoints
from hllm_jax.training.pretrained import OpenPretrained, save_weights

LORA = LoRAConfig(rank=2)
SCORE = tiny_config(head="score", layers=1)
POLICY, PARAMS = tiny_model(tiny_config(layers=1))


def as_tree(tree: Any) -> Any:
    """A reward model's part, as something that reads it."""
    return lambda put: jax.tree.map(np.asarray, tree)


def reward_of(alone: bool, seed: int = 5) -> RewardModel:
    params = draw_params(SCORE, seed)
    if alone:
        return RewardModel(SCORE, None, as_tree({"params": params}), None)
    lora = {"a": np.full((24, 2), 0.1), "b": np.full((2, 40), 0.2), "scale": np.full((), 2.0)}
    tree = {"layers_0": {"attention": {"query": jax.tree.map(np.float32, lora)}}}
    adapters = LoRAConfig(rank=2, alpha=4, targets=("attention/query",))
    return RewardModel(SCORE, adapters, as_tree({"params": {"score": params["score"]}, "lora": tree}), None)


def begun(
    lora: LoRAConfig | None, reward: RewardModel | None, config: PPOConfig = PPOConfig()
) -> tuple[Roles, Any]:
    """The models, and the variables of a new state."""
    roles = make_roles(config, POLICY, lora, reward is not None, reward)
    layout = Layout(
        make_mesh(None, "ddp", jax.devices()[:1]),
        make_rules("ddp"),
        POLICY,
        None,
        trainable=roles.trainable,
        adapters=lora,
        variables=roles.variables,
        control=ppo.first_control(config),
    )
    return roles, begin_roles(roles, layout, 0, PARAMS, config.value_init, reward).variables


def same(left: Any, right: Any) -> bool:
    left, right = flatten(left), flatten(right)
    return left.keys() == right.keys() and all(np.array_equal(left[path], right[path]) for path in left)


def test_with_adapters_one_base_is_all_four() -> None:
    roles, variables = begun(LORA, reward_of(alone=False))
    views: dict[str, Any] = {
        name: roles.view(name, variables) for name in ("policy", "reference", "value", "reward")
    }  # pyrefly: ignore
    for view in views.values():
        for path, leaf in flatten(variables["params"]).items():
            assert flatten(view["params"])[path] is leaf
    assert set(variables) == {"params", "lora", "value", "reward"}
    assert set(views["reference"]) == {"params"}
    assert same(views["reference"]["params"], PARAMS)
    assert views["policy"]["lora"] is variables["lora"]
    assert views["value"]["lora"] is variables["value"]["lora"]
    assert set(views["reward"]["params"]) - set(PARAMS) == {"score"}
    trained, frozen = split(variables, roles.trainable)
    assert set(trained) == {"lora", "value"}
    assert set(trained["value"]["params"]) == {"score"}
    assert {path[-1] for path in flatten(trained["lora"])} == {"a", "b"}
    assert {"params", "reward"} <= set(frozen)


def test_without_adapters_there_are_four_models() -> None:
    roles, variables = begun(None, reward_of(alone=True))
    assert same(roles.view("policy", variables), {"params": PARAMS})
    assert same(roles.view("reference", variables), {"params": PARAMS})
    value = roles.view("value", variables)["params"]
    assert same({**value, "score": 0}, {**PARAMS, "score": 0})
    assert same(roles.view("reward", variables)["params"], draw_params(SCORE, 5))
    assert set(split(variables, roles.trainable)[1]) == {"reference", "reward"}


def test_the_first_values_are_0_or_those_of_the_reward_model() -> None:
    _, variables = begun(LORA, None)
    assert not variables["value"]["params"]["score"].any()
    reward = reward_of(alone=False)
    roles, variables = begun(reward.adapters, reward, PPOConfig(value_init="reward"))

    @jax.jit
    def both(variables: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = ppo.state_values(roles, variables, tokens, jnp.full((1,), 3))
        held = (jnp.arange(4) < 3).astype(jnp.int32)[None]
        return values, ppo.reward_scores(roles, variables, tokens, held)

    values, score = both(variables, jnp.asarray([[1, 2, 3, 0]]))
    # Index t speaks of what stands before t: the score of the whole text is the value behind it.
    assert float(score[0]) == pytest.approx(float(values[0, 3]))
    assert float(score[0]) != 0


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="the value model is adapters on the base, the reward model is not"):
        begun(LORA, reward_of(alone=True), PPOConfig(value_init="reward"))
    with pytest.raises(ValueError, match="the base of the policy, which is trained itself"):
        begun(None, reward_of(alone=False))
    config, first = PPOConfig(), reward_of(alone=False)._replace(base="of other weights")
    roles = make_roles(config, POLICY, LORA, True, first)
    mesh, rules = make_mesh(None, "ddp", jax.devices()[:1]), make_rules("ddp")
    layout = Layout(
        mesh, rules, POLICY, None, trainable=roles.trainable, adapters=LORA, variables=roles.variables
    )

    read: Any = types.SimpleNamespace(facts={"fingerprint": "of these"})
    with pytest.raises(ValueError, match=r"trained on other weights than those of model\.load"):
        begin_roles(roles, layout, 0, PARAMS, config.value_init, first, read)


def test_a_reward_model_has_a_score_and_the_same_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    params, tokenizer = draw_params(SCORE, 3), ByteTokenizer()

    def opened(spec: Any, own: Any) -> RewardModel:
        def read(scan: Any, put: Any) -> Any:
            return unflatten({path: put("/".join(path), leaf) for path, leaf in flatten(params).items()})

        found = OpenPretrained(spec, own, read)
        monkeypatch.setattr(reward_model, "open_pretrained", lambda path: found)
        monkeypatch.setattr(reward_model, "resolve", lambda path: types.SimpleNamespace(run=None))
        return reward_model.open_reward_model("theirs", tokenizer, ModelConfig(load="ours"), LORA)

    whole = opened(SCORE, tokenizer)
    assert (whole.adapters, whole.spec, whole.base) == (None, SCORE, None)
    assert callable(whole.weights)
    assert same(whole.weights(lambda path, array: array), {"params": params})
    with pytest.raises(ValueError, match="is no reward model: it has no head that gives a score"):
        opened(POLICY.config, tokenizer)
    other = types.SimpleNamespace(fingerprint="another")
    with pytest.raises(ValueError, match="has another tokenizer than ours"):
        opened(SCORE, other)


def test_a_reward_run_on_the_same_base_shares_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(tmp_path / "base", POLICY.config, PARAMS)
    facts = {"fingerprint": "f", "kept": "none"}
    own = reward_of(alone=False).weights
    assert callable(own)
    part = own(lambda path, array: array)
    for name, base in (("near", "base"), ("far", "another")):
        run = tmp_path / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(
            f"{{recipe: reward, run: {{dir: {run}}}, model: {{load: x}}, train: {{steps: 1}}, "
            "lora: {rank: 2, alpha: 4, targets: [attention/query]}}"
        )
        state = TrainState(np.zeros((), np.int32), dict(part), {}, (), np.zeros((2,), np.uint32))
        stands = {**facts, "load": str((tmp_path / base / "checkpoints" / "00000000").resolve())}
        with Checkpoints(run / "checkpoints") as checkpoints:
            checkpoints.save(state, {"model": spec_to_dict(SCORE), "base": stands}, weights_only=True)
    model, tokenizer = ModelConfig(load=str(tmp_path / "base")), ByteTokenizer()
    opened = reward_model.open_reward_model(str(tmp_path / "near"), tokenizer, model, LORA)
    assert opened.adapters == LoRAConfig(rank=2, alpha=4, targets=("attention/query",))
    assert opened.base == "f"
    assert callable(opened.weights)
    assert same(opened.weights(lambda path, array: array), part)
    assert same(begun(LORA, opened)[1]["reward"], part)
    # On another base it is a whole model, and so it is for a policy that is trained whole.
    for path, adapters in (("far", LORA), ("near", None)):
        monkeypatch.setattr(
            reward_model, "open_pretrained", lambda path: OpenPretrained(SCORE, tokenizer, lambda *_: {})
        )
        opened = reward_model.open_reward_model(str(tmp_path / path), tokenizer, model, adapters)
        assert (opened.adapters, opened.base) == (None, None)


def test_with_adapters_a_7b_holds_less_than_a_third_of_four_models() -> None:
    """LLaMA-2-7B in bfloat16 on eight devices, by shapes and shardings."""

    def planned(*overrides: str) -> Any:
        module, config = load_run_config("configs/ppo/llama2-7b.yaml", overrides)
        topology = parse_topology("v5e:2x4", 1)
        return Planning(module, config, topology, jax.devices()[:8], spec_of_run(config)).layout

    one, four = planned(), planned("lora=null")
    shared, apart = roles_of(one), roles_of(four)
    assert shared is not None
    assert apart is not None
    assert set(shared) == {"base", "policy", "value", "reward"}
    assert set(apart) == {"policy", "reference", "value", "reward"}
    weights = 2 * spec_of_run(load_run_config("configs/ppo/llama2-7b.yaml")[1]).parameters() / 8
    assert shared["base"]["params"] == pytest.approx(weights, rel=1e-3)
    assert all(apart[name]["params"] > 0.97 * weights for name in apart)
    for of_roles, layout in ((shared, one), (apart, four)):
        for kind, size in states_of(layout).items():
            counts = size - sum(of_roles[name][kind] for name in of_roles)
            assert 0 <= counts < 100  # counts of the optimizer, which are nobody's
    assert states_of(one)["params"] <= 0.35 * states_of(four)["params"]
    assert sum(states_of(one).values()) <= 0.15 * sum(states_of(four).values())


def test_an_encoder_is_no_policy() -> None:
    encoder: Any = EncoderConfig(vocab_size=9, layers=1, embed=8, heads=2, kv_heads=2, mlp=8).build(
        Execution()
    )
    with pytest.raises(ValueError, match=r"model\.load is to be a decoder, not Encoder"):
        make_roles(None, encoder)
