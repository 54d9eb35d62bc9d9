"""The models of PPO as views of one tree of variables.

    params                the base: the policy's weights
    lora                  the policy's adapters
    value/params/score    the head of the value model; all of its weights where it stands alone
    value/lora            its adapters
    reward/…              the same of the reward model, which is never trained
    reference/params      the weights that the policy began with, where it does not leave its own alone

With adapters the base is there once, whatever the number of models: nothing changes it, so it is the reference
too. Without, four models are four trees. What a model has of its own stands over the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from hllm_jax.models.config import LoRAConfig
from hllm_jax.models.layout import Model, init_variables
from hllm_jax.models.lora import begin_adapters, is_adapter, with_adapters
from hllm_jax.nn.adapters import COLLECTION
from hllm_jax.objectives.sums import Variables
from hllm_jax.parallel.state import Tree, flatten, unflatten

Name: TypeAlias = Literal["policy", "reference", "value", "reward"]

#: Those with a part of the tree of their own; the policy's is the tree itself.
APART: tuple[Name, ...] = ("reference", "value", "reward")


@dataclasses.dataclass(frozen=True)
class Roles:
    """The models, without their variables.

    Attributes:
        policy: goes on with a prompt; the reference is the same.
        value: the same architecture with a head that gives one number a place.
        reward: such a model too, on the devices; None: rewards come from elsewhere.
        adapters: what is trained of policy and value model, beside the head of the latter; None: all of both.
        reward_adapters: the reward model is these on the base of the others; None: it stands alone.
        value_head: how the head of the value model begins.

    Raises:
        ValueError: a reward model on a base that is trained.
    """

    policy: Model
    value: Model
    reward: Model | None = None
    adapters: LoRAConfig | None = None
    reward_adapters: LoRAConfig | None = None
    value_head: Literal["zeros", "normal"] = "zeros"

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
        else:
            tree["reference"] = init_variables(self.policy, key)
        value = _own(self.value, self.adapters, whole, jax.random.fold_in(key, 2))
        if self.value_head == "zeros":
            heads = {name: jax.tree.map(jnp.zeros_like, value["params"][name]) for name in _head(self.value)}
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
        own: Mapping[str, Any] = variables.get(name, {})
        if name == "policy":
            return {part: tree for part, tree in variables.items() if part not in APART}
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

    def _alone(self, name: Name) -> bool:
        """Whether a model has all of its weights in its own part."""
        return self.adapters is None or (name == "reward" and self.reward_adapters is None)


def _own(model: Model, adapters: LoRAConfig | None, base: Tree, key: jax.Array) -> Tree:
    """What a model has beside the base: all of it, or its head and adapters of the base's weights."""
    made = init_variables(model, key)
    if adapters is None:
        return dict(made)
    head = {name: made["params"][name] for name in _head(model)}
    return {"params": head, COLLECTION: begin_adapters(adapters, base["params"], key)}


def _head(model: Model) -> tuple[str, ...]:
    return model.config.added
