"""LoRA against `peft`: its adapters here, ours there, the same logits, the same step of AdamW."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hllm_jax.interop import read_model
from hllm_jax.interop.peft import read_peft, save_peft
from hllm_jax.models import Execution
from hllm_jax.models.lora import LoRAError, is_adapter, merge_adapters
from hllm_jax.objectives.language_model import cross_entropy
from hllm_jax.parallel.state import merge, split
from tests.interop.test_llama_parity import PEERS, ROOT

ASK = ROOT / "tests" / "interop" / "ask_peft.py"
CASES = ("lora", "rslora", "dora", "ends", "ranks", "conv")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    subprocess.run([PEERS, ASK, "make", folder], check=True, capture_output=True)
    return folder


def variables_of(case: Path, adapter: str) -> tuple[Any, dict[str, Any]]:
    """The model, and its variables with an adapter of `peft`'s."""
    config, params, _ = read_model(case / "base")
    tree = read_peft(case / adapter, config).tree
    return config.build(Execution(dtype="float32")), {"params": params, "lora": tree}


@pytest.mark.peers
@pytest.mark.parametrize("case", CASES)
def test_adapters_of_peft_give_its_logits_and_its_step(case: str, made: Path) -> None:
    told = np.load(made / case / "told.npz")
    model, variables = variables_of(made / case, "adapter")
    tokens = jnp.asarray(told["tokens"], jnp.int32)

    @jax.jit
    def logits(variables: Any) -> jax.Array:
        return model.apply(variables, tokens)[0]

    def loss(trainable: Any, frozen: Any) -> jax.Array:
        rows = logits(merge(trainable, frozen))
        return jnp.mean(cross_entropy(rows[:, :-1], tokens[:, 1:])[0])

    assert np.abs(logits(variables) - told["logits"]).max() <= TOLERANCE
    assert np.abs(logits({"params": merge_adapters(variables)}) - told["logits"]).max() <= TOLERANCE
    base = logits({"params": variables["params"]})
    assert np.abs(base - told["logits"]).max() > 0.1

    trainable, frozen = split(jax.tree.map(jnp.asarray, variables), is_adapter)
    assert sum(leaf.size for leaf in jax.tree.leaves(trainable)) == told["count"]
    value, gradients = jax.value_and_grad(loss)(trainable, frozen)
    assert abs(value - told["loss"]) <= TOLERANCE
    optimizer = optax.adamw(1e-3, 0.9, 0.95, 1e-8, weight_decay=0.1)
    updates, _ = optimizer.update(gradients, optimizer.init(trainable), trainable)
    after = merge(optax.apply_updates(trainable, updates), frozen)
    assert np.abs(logits(after) - told["after"]).max() <= 10 * TOLERANCE
    assert np.abs(logits({"params": merge_adapters(after)}) - told["merged"]).max() <= 10 * TOLERANCE
    theirs = read_peft(made / case / "after", model.config).tree
    close = jax.tree.map(lambda mine, other: np.abs(mine - other).max(), after["lora"], theirs)
    assert max(jax.tree.leaves(close)) <= TOLERANCE


@pytest.mark.peers
def test_peft_loads_what_we_save_with_equal_logits(made: Path) -> None:
    for case in CASES:
        model, variables = variables_of(made / case, "adapter")
        save_peft(made / case / "ours", model.config, variables["lora"], base="base")
        again = read_peft(made / case / "ours", model.config).tree
        same = jax.tree.map(lambda one, other: np.allclose(one, other, rtol=1e-6), variables["lora"], again)
        assert jax.tree.all(same)
    subprocess.run([PEERS, ASK, "read", made], check=True, capture_output=True)
    for case in CASES:
        told, read = np.load(made / case / "told.npz"), np.load(made / case / "read.npz")
        assert np.abs(told["logits"] - read["logits"]).max() <= TOLERANCE, case


@pytest.mark.peers
def test_what_is_not_an_adapter_of_the_base_is_refused(made: Path, tmp_path: Path) -> None:
    config = read_model(made / "lora" / "base").config
    folder = tmp_path / "adapter"
    shutil.copytree(made / "lora" / "adapter", folder)
    said = json.loads((folder / "adapter_config.json").read_text())
    for changes, message in (
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "changes the weights of the base"),
        ({"use_dora": True}, "use_dora is True"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(said | changes))
        with pytest.raises(LoRAError, match=message):
            read_peft(folder, config)
    (folder / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(LoRAError, match="is not an adapter of a weight of this base"):
        read_peft(folder, read_model(made / "conv" / "base").config)
    with pytest.raises(LoRAError, match="its weight maps 24 to 48"):
        read_peft(folder, type(config)(**vars(config) | {"head_dim": 12}))
