"""A reward model that is to score beside a policy: whole, or adapters and a head on the same base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hllm_jax.interop.registry import resolve
from hllm_jax.models.config import LoRAConfig, ModelConfig
from hllm_jax.models.layout import stack_layers
from hllm_jax.models.spec import Spec
from hllm_jax.parallel.layout import Load
from hllm_jax.training.adapters import Adapter, adapter_of, lasting
from hllm_jax.training.checkpoints import read_manifest
from hllm_jax.training.pretrained import checkpoint_of, open_pretrained

if TYPE_CHECKING:
    from hllm_jax.interop.models import Place
    from hllm_jax.tokenizers.tokenizer import Tokenizer


class RewardModel(NamedTuple):
    """A reward model whose weights are not read yet.

    Attributes:
        spec: the architecture, with its head.
        adapters: of its run, where it stands on the base of the policy; None: it is whole.
        weights: reads its part of the tree of `Roles`.
        base: fingerprint of the weights it stands on, `Base.facts`; None where it is whole.
    """

    spec: Spec
    adapters: LoRAConfig | None
    weights: Load
    base: str | None


def open_reward_model(
    path: str, tokenizer: Tokenizer, model: ModelConfig, adapters: LoRAConfig | None = None
) -> RewardModel:
    """A MODEL that gives scores.

    A run with `lora:` on the weights that the policy's adapters stand on shares them; from any other, a whole
    model is made.

    Args:
        path: of the reward model.
        tokenizer: of the policy: both read the same tokens.
        model: the section of the policy.
        adapters: of the policy.

    Raises:
        ValueError: it has no score, or another tokenizer.
        UnknownModel, CheckpointError: there is no such model.
    """
    opened = open_pretrained(path)
    spec = opened.config
    if getattr(spec, "head", None) not in ("score", "both") and not spec.added:
        raise ValueError(
            f"reward.path={path} is no reward model: it has no head that gives a score. The recipe reward "
            "trains one from pairs"
        )
    own = opened.tokenizer
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"reward.path={path} has another tokenizer than {model.load}: on the devices both read the same "
            "tokens. Train the reward model from model.load, or from another run with its tokenizer"
        )
    found = _on_same_base(path, model, adapters)
    if found is not None:
        return RewardModel(spec, found[1], _part_of(found[0], spec, model.scan_layers), found[0].fingerprint)

    def read(put: Place) -> dict[str, Any]:
        def place(name: str, array: np.ndarray) -> Any:
            return put(f"params/{name}", array)

        return {"params": opened.read(model.scan_layers, place)}

    return RewardModel(spec, None, read, None)


def _on_same_base(
    path: str, model: ModelConfig, adapters: LoRAConfig | None
) -> tuple[Adapter, LoRAConfig] | None:
    """The adapters of a reward run and their section, if they stand on the base of the policy's."""
    source = resolve(path)
    if adapters is None or model.load is None or source.run is None:
        return None
    folder = checkpoint_of(source)
    manifest = read_manifest(folder)
    base = manifest.facts.get("base")
    if base is None or base["load"] != lasting(model.load) or base["kept"] != adapters.base:
        return None
    from hllm_jax.recipes import load_run_config

    return adapter_of(folder, manifest), load_run_config(source.run)[1].lora


def _part_of(adapter: Adapter, spec: Spec, scan_layers: bool) -> Load:
    tree = adapter.tree
    if scan_layers:
        tree = stack_layers(tree, len(spec.attention_pattern))
    flat: dict[str, Any] = flatten_dict({"params": dict(adapter.head), "lora": tree}, sep="/")

    def read(put: Place) -> dict[str, Any]:
        return unflatten_dict({path: put(path, np.asarray(leaf)) for path, leaf in flat.items()}, sep="/")

    return read
