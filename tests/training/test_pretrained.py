"""A recipe from text to a model and on to fine-tuning, on tiny data; and what `model.load` brings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hllm_jax.models.layout import is_stacked
from hllm_jax.recipes import load_run_config
from hllm_jax.testing.corpora import write_conversations, write_documents
from hllm_jax.tokenizers import load_tokenizer
from hllm_jax.training import CheckpointError, load_pretrained
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
