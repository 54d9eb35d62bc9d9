"""A recipe from text to a model and on to fine-tuning, on tiny data; and what `model.load` brings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hllm_jax.conversion import export_adapter, merge
from hllm_jax.models.layout import is_stacked, unstack_layers
from hllm_jax.models.lora import LoRAError, merge_adapters
from hllm_jax.nn.quantised import dequantise
from hllm_jax.recipes import load_run_config
from hllm_jax.testing.corpora import write_conversations, write_documents
from hllm_jax.tokenizers import load_tokenizer
from hllm_jax.training import CheckpointError, RunError, load_pretrained
from hllm_jax.training.checkpoints import read_manifest
from hllm_jax.training.metrics import read_lines

SMALL = (
    "model.decoder={layers: 2, embed: 16, heads: 2, kv_heads: 2, mlp: 32, max_length: 32}",
    "model.attention=plain",
    "tokenizer.vocab_size=300",
    "train.batch_size=8",
    "train.sequence_length=32",
    "train.steps=4",
    "checkpoint.every=2",
    "eval.every=2",
    "eval.batches=1",
    "log.progress=false",
    "data.holdout=0.2",
)


def run(config: str, *overrides: str) -> Any:
    recipe, settings = load_run_config(config, overrides)
    return recipe.main(settings)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    texts = write_documents(folder / "texts.jsonl", 60)
    run("pretrain/tiny", *SMALL, f"run.dir={folder / 'run'}", f"data.sources=[{{path: {texts}}}]")
    return folder / "run"


def test_a_run_folder_holds_what_the_interface_says(base: Path) -> None:
    lines = read_lines(base / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    held_out = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in held_out] == [0, 2, 4]
    assert all(line["eval/bits_per_byte"] > 0 for line in held_out)
    assert load_tokenizer(base / "tokenizer").vocab_size == 300
    assert (base / "config.yaml").is_file()


def test_load_pretrained_takes_a_run_and_a_checkpoint(base: Path) -> None:
    config, params, tokenizer = load_pretrained(base)
    assert (config.layers, config.vocab_size, tokenizer.vocab_size) == (2, 300, 300)
    assert not is_stacked(params)
    newest = load_pretrained(base / "checkpoints" / "00000004")
    jax.tree.map(np.testing.assert_array_equal, newest.params, params)
    older = load_pretrained(base / "checkpoints" / "00000002")
    assert not np.array_equal(older.params["embed"]["embedding"], params["embed"]["embedding"])
    assert is_stacked(load_pretrained(base, scan_layers=True).params)


def test_fine_tuning_starts_from_these_weights_and_that_tokenizer(base: Path, tmp_path: Path) -> None:
    chats = write_conversations(tmp_path / "chats.jsonl", 40)
    tuned = [
        *(each for each in SMALL if not each.startswith(("model.decoder", "tokenizer"))),
        f"run.dir={tmp_path / 'run'}",
        f"model.load={base}",
        "base=null",
        "data.overlong=truncate",
        "schedule.peak=0",
        f"data.sources=[{{path: {chats}}}]",
    ]
    state = run("sft/tiny", *tuned)
    jax.tree.map(np.testing.assert_array_equal, state.trainable["params"], load_pretrained(base).params)
    assert (
        load_pretrained(tmp_path / "run").tokenizer.fingerprint == load_pretrained(base).tokenizer.fingerprint
    )
    # What it started from may be gone when it goes on.
    moved = base.with_name("moved")
    shutil.move(base, moved)
    try:
        longer = [each for each in tuned if not each.startswith("train.steps")]
        assert int(run("sft/tiny", *longer, "train.steps=6").step) == 6
    finally:
        shutil.move(moved, base)


def test_another_tokenizer_in_the_folder_is_refused(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    texts = write_documents(tmp_path / "other.jsonl", 90)
    run(
        "tokenizer/tiny",
        f"run.dir={tmp_path}",
        "tokenizer.vocab_size=290",
        f"data.sources=[{{path: {texts}}}]",
    )
    shutil.rmtree(copy / "tokenizer")
    shutil.copytree(tmp_path / "tokenizer", copy / "tokenizer")
    with pytest.raises(CheckpointError, match=r"is not the tokenizer that .* was trained with"):
        load_pretrained(copy)


def test_a_run_without_a_checkpoint_says_so(base: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(base / "config.yaml", tmp_path / "config.yaml")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_pretrained(tmp_path)


def tuned_with_adapters(base: Path, folder: Path, *more: str, lora: str = "dora: true, dropout: 0.1") -> Any:
    chats = write_conversations(folder.parent / "chats.jsonl", 40)
    return run(
        "sft/tiny",
        *(each for each in SMALL if not each.startswith(("model.decoder", "tokenizer"))),
        f"run.dir={folder}",
        f"model.load={base}",
        "base=null",
        "data.overlong=truncate",
        "schedule.peak=0.01",
        f"data.sources=[{{path: {chats}}}]",
        f"lora={{rank: 2, {lora}}}",
        *more,
    )


def test_adapters_train_alone_and_their_run_is_a_model(base: Path, tmp_path: Path) -> None:
    state = tuned_with_adapters(base, tmp_path / "run")
    before = load_pretrained(base).params
    jax.tree.map(np.testing.assert_array_equal, state.frozen["params"], before)
    trained = jax.tree.leaves(state.trainable)
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state.trainable)} == {
        "a",
        "b",
        "magnitude",
    }
    assert all(np.abs(leaf).max() > 0 for leaf in trained)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in trained)
    arrays = read_manifest(tmp_path / "run" / "checkpoints" / "00000004").arrays
    assert not any(name.startswith("frozen/params") for name in arrays)

    # The run is the base with its adapters merged; so is the base with the adapters of the run.
    merged = merge_adapters(jax.device_get(state.variables))
    alone, beside = load_pretrained(tmp_path / "run"), load_pretrained(base, adapter=tmp_path / "run")
    for loaded in (alone, beside, load_pretrained(tmp_path / "run", scan_layers=True)):
        params = unstack_layers(loaded.params) if is_stacked(loaded.params) else loaded.params
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), params, merged)
    assert not np.allclose(
        merged["layers_0"]["mlp"]["up"]["kernel"], before["layers_0"]["mlp"]["up"]["kernel"]
    )

    # As a folder of peft's, and back.
    export_adapter(tmp_path / "run", tmp_path / "peft")
    again = load_pretrained(base, adapter=tmp_path / "peft").params
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), again, merged)
    done = merge(base, tmp_path / "peft", tmp_path / "merged")
    assert done["max_difference"] < 1e-4
    with pytest.raises(LoRAError, match="holds no adapters"):
        load_pretrained(base, adapter=base)


def test_a_run_of_adapters_goes_on_bit_for_bit_and_on_its_own_base_only(base: Path, tmp_path: Path) -> None:
    own, folder = tmp_path / "base", tmp_path / "parts"
    shutil.copytree(base, own)
    whole = tuned_with_adapters(own, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", folder)
    shutil.rmtree(folder / "checkpoints" / "00000004")
    resumed = tuned_with_adapters(own, folder)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)

    shutil.rmtree(own / "checkpoints" / "00000004")
    with pytest.raises(LoRAError, match="trained on other weights than those of"):
        load_pretrained(own, adapter=tmp_path / "whole")
    with pytest.raises(CheckpointError, match="with another base"):
        tuned_with_adapters(own, folder, "train.steps=6")
    shutil.rmtree(own)
    with pytest.raises(CheckpointError, match=r"holds adapters, and their base .* is not there"):
        load_pretrained(tmp_path / "whole")


@pytest.mark.slow
def test_adapters_on_a_base_in_few_bits_are_loaded_on_those_weights(base: Path, tmp_path: Path) -> None:
    run_folder, options = tmp_path / "run", {"lora": "base: nf4, targets: [mlp/*]"}
    state = tuned_with_adapters(base, run_folder, "train.steps=2", **options)
    path = ("layers_1", "mlp", "up", "kernel")
    parts = jax.device_get(_at(state.frozen["params"], path))
    assert set(parts) == {"codes", "scales", "blocks", "offset"}
    adapter = jax.device_get({**state.trainable["lora"]["layers_1"]["mlp"]["up"]})
    rounded = np.asarray(dequantise(parts, 16, "float32"))
    merged = rounded + 16.0 * adapter["a"] @ adapter["b"]
    assert np.abs(rounded - _at(load_pretrained(base).params, path)).max() > 1e-3
    export_adapter(run_folder, tmp_path / "peft")
    for loaded in (load_pretrained(run_folder), load_pretrained(base, adapter=tmp_path / "peft")):
        np.testing.assert_allclose(_at(loaded.params, path), merged, atol=1e-6)
    assert merge(base, run_folder, tmp_path / "merged")["max_difference"] < 1e-4
    resumed = tuned_with_adapters(base, run_folder, "train.steps=3", **options)
    assert int(resumed.step) == 3
    with pytest.raises(RunError, match="Adapters keep what they began with"):
        tuned_with_adapters(base, run_folder, "lora.alpha=400", "run.allow_changes=true", **options)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
