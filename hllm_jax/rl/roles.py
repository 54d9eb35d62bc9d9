"""The models that learn from rewards as views of one tree of variables.

    params                the base: the policy's weights
    lora                  the policy's adapters
    value/params/score    the head of the value model; all of its weights where it stands alone
    value/lora            its adapters
    reward/…              the same of the reward model, which is never trained
    reference/params      the weights that the policy began with, where it does not leave its own alone

With adapters the base is there once, whatever the number of models: nothing changes it, so it is the
reference too. Without, four models are four trees. What a model has of its own stands over the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from hllm_jax.models.config import LoRAConfig
from hllm_jax.models.decoder import Decoder
from hllm_jax.models.layout import Model, init_variables
from hllm_jax.models.lora import begin_adapters, is_adapter, with_adapters
from hllm_jax.nn.adapters import COLLECTION
from hllm_jax.objectives.sums import Variables
from hllm_jax.parallel.layout import Layout, Load
from hllm_jax.parallel.state import Predicate, TrainState, Tree, flatten, unflatten
from hllm_jax.rl.ppo_config import PPOConfig
from hllm_jax.rl.reward_model import RewardModel
from hllm_jax.training.adapters import Base, unused_names
from hllm_jax.training.head import with_score

#: A tree of arrays, or what makes it.
Weights: TypeAlias = Mapping[str, Any] | Load

Name: TypeAlias = Literal["policy", "reference", "value", "reward"]

#: Those with a part of the tree of their own; the policy's is the tree itself.
APART: tuple[Name, ...] = ("reference", "value", "reward")


@dataclasses.dataclass(frozen=True)
class Roles:
    """The models, without their variables.

    Attributes:
        policy: goes on with a prompt; the reference is the same.
        value: the same architecture with a head that gives one number a place; None: there is none (GRPO).
        reward: such a model too, on the devices; None: rewards come from elsewhere.
        adapters: what is trained of policy and value model, beside the head of the latter; None: all of both.
        reward_adapters: the reward model is these on the base of the others; None: it stands alone.
        value_head: how the head of the value model begins.
        reference: whether there is one; with adapters it costs nothing.

    Raises:
        ValueError: a reward model on a base that is trained.
    """

    policy: Decoder
    value: Decoder | None = None
    reward: Model | None = None
    adapters: LoRAConfig | None = None
    reward_adapters: LoRAConfig | None = None
    value_head: Literal["zeros", "normal"] = "zeros"
    reference: bool = True

    def __post_init__(self) -> None:
        if self.reward_adapters is not None and self.adapters is None:
            raise ValueError(
                "the reward model is adapters on the base of the policy, which is trained itself: give the "
                "run a section lora, or a reward model with its adapters merged"
            )

    def variables(self, key: jax.Array) -> Tree:
        """Fresh variables of all, boxed with the names of their axes; for `Layout(variables=…)`."""
        whole = init_variables(self.policy, key)
        tree: Tree = dict(whole)
        if self.adapters is not None:
            tree = with_adapters(self.adapters, whole, jax.random.fold_in(key, 1))
        elif self.reference:
            tree["reference"] = init_variables(self.policy, key)
        if self.value is not None:
            value = _own(self.value, self.adapters, whole, jax.random.fold_in(key, 2))
            if self.value_head == "zeros":
                names = _head(self.value)
                heads = {name: jax.tree.map(jnp.zeros_like, value["params"][name]) for name in names}
                value["params"] = {**value["params"], **heads}
            tree["value"] = value
        if self.reward is not None:
            tree["reward"] = _own(self.reward, self.reward_adapters, whole, jax.random.fold_in(key, 3))
        return tree

    def view(self, name: Name, variables: Variables) -> Tree:
        """The variables of one of the models, as its `apply` takes them; nothing is copied.

        Args:
            name: of the model.
            variables: the tree (arrays or their shapes).
        """
        if name == "policy":
            return policy_of(variables)
        if name == "reference":
            return reference_of(variables)
        own: Mapping[str, Any] = variables.get(name, {})
        if self._alone(name):
            return dict(own)
        params = {**flatten(variables["params"]), **flatten(own.get("params", {}))}
        return {**own, "params": unflatten(params)}

    def trainable(self, path: tuple[str, ...]) -> bool:
        """The predicate of what trains: policy and value model, or their adapters and the value head."""
        if path[0] in ("reference", "reward"):
            return False
        if self.adapters is None:
            return True
        if path[0] == "value":
            return path[1] == "params" or is_adapter(path[1:])
        return is_adapter(path)

    def parts(
        self, base: Weights, reward: Weights | None = None, value_init: Literal["policy", "reward"] = "policy"
    ) -> dict[tuple[str, ...], Weights]:
        """What is loaded beside the policy's `params`, for `Layout.init(others=…)`.

        Args:
            base: the policy's weights, the tree under `params` or what reads it.
            reward: all of the reward model's part of the tree (`params`, and `lora` if it has adapters).
            value_init: the value model begins as the policy, or as the reward model.

        Raises:
            ValueError: a value model of adapters that should begin as a whole reward model.
        """
        parts: dict[tuple[str, ...], Weights] = {}
        if self.adapters is None and self.reference:
            parts["reference", "params"] = base
        if self.adapters is None and self.value is not None:
            parts["value", "params"] = _without(unused_names(self.policy.config, self.value.config), base)
        if reward is not None:
            parts["reward",] = reward
        if value_init == "reward":
            if reward is None or self._alone("reward") != self._alone("value"):
                raise ValueError(
                    "ppo.value_init=reward: the value model is "
                    + ("a whole model" if self._alone("value") else "adapters on the base")
                    + (", and there is no reward model" if reward is None else ", the reward model is not")
                    + "; ppo.value_init=policy begins with the weights of the policy"
                )
            parts.pop(("value", "params"), None)
            parts["value",] = reward
        return parts

    def fresh(self, value_init: Literal["policy", "reward"] = "policy") -> Predicate:
        """What comes from the seed beside the adapters, for `Layout.init(fresh=…)`: the new head."""
        new = _head(self.value) if self.value is not None and value_init == "policy" else ()
        return lambda path: path[:2] == ("value", "params") and path[2] in new

    def _alone(self, name: Name) -> bool:
        """Whether a model has all of its weights in its own part."""
        return self.adapters is None or (name == "reward" and self.reward_adapters is None)


def policy_of(variables: Variables) -> Tree:
    """The variables of the policy, without those of the models beside it."""
    return {part: tree for part, tree in variables.items() if part not in APART}


def reference_of(variables: Variables) -> Tree:
    """The variables of the reference: weights of its own, or the base without the policy's adapters."""
    if "reference" in variables:
        return dict(variables["reference"])
    return {part: tree for part, tree in policy_of(variables).items() if part != COLLECTION}


def make_roles(
    config: PPOConfig | None,
    policy: Decoder,
    adapters: LoRAConfig | None = None,
    has_reward: bool = False,
    reward: RewardModel | None = None,
    reference: bool = True,
) -> Roles:
    """The models of a run.

    Args:
        config: of PPO; None: there is no value model.
        policy: the decoder that is trained.
        adapters: see `Roles`.
        has_reward: a reward model scores on the devices.
        reward: that one; None: it is the policy with a head (for plans).
        reference: see `Roles`.

    Raises:
        ValueError: the policy is no decoder.
    """
    if not isinstance(policy, Decoder):
        raise ValueError(
            f"a policy goes on with its prompt: model.load is to be a decoder, not {type(policy).__name__}"
        )
    scoring = with_score(policy.config).build(policy.execution)
    scorer, scorer_adapters = None, None
    if has_reward:
        scorer = reward.spec.build(policy.execution) if reward is not None else scoring
        scorer_adapters = reward.adapters if reward is not None else adapters
    assert isinstance(scoring, Decoder)
    if config is None:
        return Roles(policy, None, scorer, adapters, scorer_adapters, reference=reference)
    return Roles(policy, scoring, scorer, adapters, scorer_adapters, config.value_head, reference)


def begin_roles(
    roles: Roles,
    layout: Layout,
    seed: int,
    base: Weights | None,
    value_init: Literal["policy", "reward"] = "policy",
    reward: RewardModel | None = None,
    read: Base | None = None,
) -> TrainState:
    """The state of a new run.

    Args:
        roles: the models.
        layout: of their tree.
        seed: of the run.
        base: the policy's weights, see `Roles.parts`.
        value_init: see `Roles.parts`.
        reward: the reward model, if there is one.
        read: has the fingerprint of the base once it was read, for a reward model that stands on it.

    Raises:
        ValueError: the reward model was trained on other weights; or as `Roles.parts`.
        LayoutError: weights that do not fit.
    """
    assert base is not None, "a run that is not resumed has weights to load"
    others = roles.parts(base, reward.weights if reward is not None else None, value_init)
    state = layout.init(seed, base, roles.fresh(value_init), others)
    found = read.facts["fingerprint"] if read is not None else None
    if reward is not None and None not in (reward.base, found) and reward.base != found:
        raise ValueError(
            f"the reward model was trained on other weights than those of model.load: their fingerprint is "
            f"{str(found)[:12]}, {str(reward.base)[:12]} is wanted"
        )
    return state


def _own(model: Model, adapters: LoRAConfig | None, base: Tree, key: jax.Array) -> Tree:
    """What a model has beside the base: all of it, or its head and adapters of the base's weights."""
    made = init_variables(model, key)
    if adapters is None:
        return dict(made)
    head = {name: made["params"][name] for name in _head(model)}
    return {"params": head, COLLECTION: begin_adapters(adapters, base["params"], key)}


def _without(names: set[str], weights: Weights) -> Weights:
    """The weights but for some parts."""

    def rest(tree: Mapping[str, Any]) -> dict[str, Any]:
        return {name: part for name, part in tree.items() if name not in names}

    return (lambda put: rest(weights(put))) if callable(weights) else rest(weights)


def _head(model: Model) -> tuple[str, ...]:
    return model.config.added
