"""The train state: what a step changes, what it only reads, and the predicate that divides them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.struct
from flax import traverse_util

#: Says of the path of a variable, e.g. `("params", "layers", "mlp", "up", "kernel")`, whether it is trained.
Predicate: TypeAlias = Callable[[tuple[str, ...]], bool]

#: Linen variables without boxes: collection -> nested dict of arrays (or of their shapes).
Tree: TypeAlias = dict[str, Any]


def flatten(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Nested dicts as one dict from paths to leaves."""
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(tree))
    return flat


def unflatten(flat: Mapping[tuple[str, ...], Any]) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = traverse_util.unflatten_dict(dict(flat))
    return tree


class TrainState(flax.struct.PyTreeNode):
    """A plain pytree; a step maps it to the next one.

    Attributes:
        step: int32 scalar, updates attempted so far; batch number `step` comes next.
        trainable: variables that the optimizer changes.
        frozen: variables that are only read (the base under adapters); no gradient, no optimizer state.
        opt_state: state of the optimizer over `trainable`.
        rng: uint32 `[2]`, key data from which each step folds its own key; never changes.
        control: float32 scalars by name that an objective changes by rule, not by gradient (the coefficient
            of a KL); None for the objectives without.
    """

    step: Any
    trainable: Tree
    frozen: Tree
    opt_state: Any
    rng: Any
    control: Any = None

    @property
    def variables(self) -> Tree:
        """All variables, as `model.apply` takes them."""
        return merge(self.trainable, self.frozen)


def everything(path: tuple[str, ...]) -> bool:
    """The predicate of full training."""
    del path
    return True


def nothing(path: tuple[str, ...]) -> bool:
    """The predicate that no variable fulfils."""
    del path
    return False


def matching(*prefixes: str) -> Predicate:
    """The predicate that trains the variables whose path, joined by `/`, starts with one of the prefixes."""
    return lambda path: any("/".join(path).startswith(prefix) for prefix in prefixes)


def split(variables: Mapping[str, Any], trainable: Predicate = everything) -> tuple[Tree, Tree]:
    """Divide variables into (trainable, frozen); both keep the full paths.

    Raises:
        ValueError: nothing is trainable.
    """
    flat = flatten(variables)
    chosen = {path: leaf for path, leaf in flat.items() if trainable(path)}
    if not chosen:
        names = ", ".join(sorted("/".join(path) for path in flat)[:8])
        raise ValueError(
            f"the predicate of what trains matches none of the {len(flat)} variables ({names}, …)"
        )
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten(chosen), unflatten(rest)


def merge(trainable: Tree, frozen: Tree) -> Tree:
    """The inverse of `split`."""
    if not frozen:
        return trainable
    return unflatten({**flatten(frozen), **flatten(trainable)})
