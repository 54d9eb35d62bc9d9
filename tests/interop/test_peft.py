"""LoRA against `peft`: its adapters here, ours there, the same logits, the same step of AdamW."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict

from hllm_jax.interop import read_model
from hllm_jax.interop.peft import read_peft, save_peft
from hllm_jax.interop.safetensors import Safetensors, write_safetensors
from hllm_jax.models import Execution
from hllm_jax.models.families import presets
from hllm_jax.models.lora import LoRAError, is_adapter, merge_adapters
from hllm_jax.objectives.language_model import cross_entropy
from hllm_jax.parallel.state import merge, split
from hllm_jax.testing.models import draw_params, tiny_config
from hllm_jax.training import load_pretrained
from hllm_jax.training.adapters import read_adapter
from hllm_jax.training.pretrained import save_weights
from tests.interop.test_llama_parity import PEERS, ROOT

ASK = ROOT / "tests" / "interop" / "ask_peft.py"
CASES = ("lora", "rslora", "dora", "ends", "ranks", "conv")
TOLERANCE = 1e-5

UNTIED = tiny_config(tie_embeddings=False)
GPT2 = presets()["gpt2"]


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of ours on `tiny_config(tie_embeddings=False)`."""
    save_peft(tmp_path / "adapter", UNTIED, {**adapters_of("attention/query"), **adapters_of("embed")})
    return tmp_path / "adapter"


def adapters_of(name: str, rank: int = 3) -> dict[str, Any]:
    """Random adapters of one weight, in both layers if it is theirs."""
    rng = np.random.default_rng(0)
    inputs, outputs = {"attention/query": (24, 40), "mlp/up": (24, 40), "embed": (67, 24)}[name]

    def of(path: str) -> dict[str, np.ndarray]:
        a, b = rng.normal(size=(inputs, rank)), rng.normal(size=(rank, outputs))
        return {
            f"{path}/a": a.astype(np.float32),
            f"{path}/b": b.astype(np.float32),
            f"{path}/scale": np.float32(2),
        }

    paths = ["embed"] if name == "embed" else [f"layers_{i}/{name}" for i in range(2)]
    return unflatten_dict({key: leaf for path in paths for key, leaf in of(path).items()}, sep="/")


def test_what_is_not_an_adapter_of_the_base_is_refused(folder: Path) -> None:
    said = json.loads((folder / "adapter_config.json").read_text())
    for changes, message in (
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the weights of the base"),
        ({"init_lora_weights": "lora_ga"}, "changes the weights of the base"),
        ({"use_dora": True}, "use_dora is True"),
        ({"target_modules": ["q_proj", "k_proj"]}, r"not in it: model\.layers\.0\.self_attn\.k_proj"),
        ({"target_modules": r".*(q|v)_proj"}, r"not in it: .*v_proj"),
        ({"target_modules": "all-linear"}, r"not in it: .*down_proj"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(said | changes))
        with pytest.raises(LoRAError, match=message):
            read_peft(folder, UNTIED)
    one_layer = {"target_modules": ["q_proj"], "layers_to_transform": 1}
    (folder / "adapter_config.json").write_text(json.dumps(said | one_layer))
    read_peft(folder, UNTIED)
    (folder / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(LoRAError, match="is not an adapter of a weight of this base"):
        read_peft(folder, GPT2)
    with pytest.raises(LoRAError, match="its weight maps 24 to 48"):
        read_peft(folder, dataclasses.replace(UNTIED, head_dim=12))


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (".layers.1.self_attn.q_proj.", r"not in it: model\.layers\.1\.self_attn\.q_proj"),
        ("lora_B", "has only A, not A and B"),
        ("", "which are not in it"),
    ],
)
def test_adapters_that_are_not_there_are_missed(left_out: str, message: str, folder: Path) -> None:
    tensors = Safetensors(folder / "adapter_model.safetensors")
    kept = {name: np.array(tensors.read(name)) for name in tensors.shapes if left_out not in name}
    write_safetensors(folder / "adapter_model.safetensors", kept.items())
    with pytest.raises(LoRAError, match=message):
        read_peft(folder, UNTIED)


def test_dora_of_an_embedding_is_not_read(folder: Path) -> None:
    tensors = Safetensors(folder / "adapter_model.safetensors")
    kept = {name: np.array(tensors.read(name)) for name in tensors.shapes}
    name = next(name for name in kept if name.endswith("lora_embedding_A"))
    kept[name.replace("lora_embedding_A", "lora_magnitude_vector")] = np.ones(24, np.float32)
    write_safetensors(folder / "adapter_model.safetensors", kept.items())
    with pytest.raises(LoRAError, match="DoRA of the embedding"):
        read_peft(folder, UNTIED)


def test_an_adapter_of_a_tied_embedding_is_not_merged(folder: Path, tmp_path: Path) -> None:
    tied, params = dataclasses.replace(UNTIED, tie_embeddings=True), draw_params(tiny_config())
    adapter = read_adapter(folder, tied)
    with pytest.raises(LoRAError, match="no head apart from it"):
        merge_adapters({"params": params, "lora": adapter.tree})
    save_weights(tmp_path / "base", tied, params)
    with pytest.raises(LoRAError, match="no head apart from it"):
        load_pretrained(tmp_path / "base", adapter=folder)
