"""A new head on a loaded encoder: what is kept, what is drawn, and the recipe from end to end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hllm_jax.models import DecoderConfig, EncoderConfig
from hllm_jax.models.layout import parameter_shapes
from hllm_jax.models.spec import EncoderDecoderConfig
from hllm_jax.parallel.state import flatten
from hllm_jax.recipes import load_run_config
from hllm_jax.testing.corpora import write_jsonl
from hllm_jax.training.checkpoints import read_manifest
from hllm_jax.training.head import with_head, with_score
from hllm_jax.training.pretrained import load_pretrained

SIZES: dict[str, Any] = {"layers": 1, "embed": 16, "heads": 2, "kv_heads": 2, "mlp": 32, "max_length": 64}
ENCODER = EncoderConfig(**SIZES, vocab_size=60)
LABELS = ("a", "b", "c")


def test_heads_of_pretraining_make_room_for_the_new_one() -> None:
    """A class of texts reads the pooler; other tasks do not need it; without one there is a dense layer."""
    before = set(parameter_shapes(ENCODER))
    sequence = parameter_shapes(with_head(ENCODER, "sequence", LABELS))
    assert sequence["sequence_head/out/kernel"] == (16, 3)
    gone = {name.partition("/")[0] for name in before - set(sequence)}
    assert gone == {"masked_dense", "masked_norm", "masked_bias", "pair"}
    span = parameter_shapes(with_head(ENCODER, "span", ()))
    assert span["span_head/out/kernel"] == (16, 2)
    assert not any(name.startswith("pool") for name in span)
    bare = with_head(dataclasses.replace(ENCODER, pooler=False, pair_head=False), "sequence", LABELS)
    assert parameter_shapes(bare)["sequence_head/dense/kernel"] == (16, 16)


def test_a_head_of_the_same_task_stays() -> None:
    tuned = with_head(ENCODER, "tokens", LABELS)
    assert with_head(tuned, "tokens", LABELS) is tuned
    assert with_head(tuned, "tokens", LABELS[:2]).task != tuned.task


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="of the kind decoder: heads for tasks stand on encoders"):
        with_head(DecoderConfig(**SIZES), "sequence", LABELS)


def test_a_score_takes_the_place_of_the_other_heads() -> None:
    untied = DecoderConfig(**SIZES, vocab_size=60, tie_embeddings=False)
    shapes = parameter_shapes(with_score(untied))
    assert shapes["score"] == (16,)
    assert set(parameter_shapes(untied)) - set(shapes) == {"head/kernel"}
    assert with_score(with_score(untied)) == with_score(untied)
    assert parameter_shapes(with_score(ENCODER))["sequence_head/out/kernel"] == (16, 1)
    rated = with_head(ENCODER, "sequence", ("stars",))
    assert with_score(rated) is rated
    with pytest.raises(ValueError, match="of the kind encoder_decoder: scores are for"):
        with_score(EncoderDecoderConfig(**SIZES, vocab_size=60))


CONFIG = """
recipe: RECIPE
run: {dir: DIR}
data: {sources: [{path: examples.jsonl}], holdout: 0.2}
train: {steps: 3, batch_size: 8, sequence_length: 32}
checkpoint: {every: 2}
eval: {every: 3, batches: 1}
log: {every: 1, progress: false}
"""


def run(recipe: str, folder: str, *overrides: str) -> Any:
    Path("run.yaml").write_text(CONFIG.replace("RECIPE", recipe).replace("DIR", folder), encoding="utf-8")
    module, config = load_run_config("run.yaml", overrides)
    return module.main(config)


@pytest.mark.slow
def test_an_encoder_learns_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [
        {"text": f"{n} {side}", "label": side} for n in range(60) for side in ("good", "bad", "so so")
    ]
    write_jsonl(tmp_path / "examples.jsonl", examples)
    run(
        *("pretrain", "runs/base", "objective.kind=masked_lm", "tokenizer.kind=wordpiece"),
        *("tokenizer.vocab_size=40", f"model.encoder={json.dumps(SIZES)}", "eval.every=0", "train.steps=1"),
    )
    frozen = ("schedule.peak=0", "schedule.warmup=0")
    state = run("finetune", "runs/task", "model.load=runs/base", *frozen)
    base, tuned = (load_pretrained(folder) for folder in ("runs/base", "runs/task"))
    assert isinstance(tuned.config, EncoderConfig)
    assert tuned.config.task is not None
    assert tuned.config.task.labels == ("bad", "good", "so so")
    # At a learning rate of 0 the encoder is what was loaded, and the head is what the seed says.
    np.testing.assert_array_equal(tuned.params["embed"]["embedding"], base.params["embed"]["embedding"])
    assert np.std(tuned.params["sequence_head"]["out"]["kernel"]) > 0
    assert "masked_dense" not in state.variables["params"]
    lines = [json.loads(line) for line in (tmp_path / "runs/task/metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "eval/f1" in line]
    assert scored
    assert {"eval/loss", "eval/accuracy", "eval/examples"} <= scored[-1].keys()
    # It goes on where it is, and another task may start from it.
    again = run("finetune", "runs/task", "model.load=runs/base", "train.steps=4", *frozen)
    assert int(again.step) == 4
    # With adapters these and the head are trained, and nothing else is, or is saved; it goes on bit for bit.
    lora = ("model.load=runs/base", "lora={rank: 2}", "eval.every=0")
    whole = run("finetune", "runs/adapted", *lora)
    trained = {"/".join(path[:2]) for path in flatten(whole.trainable)}
    assert trained == {"lora/layers_0", "params/sequence_head"}
    saved = Path("runs/adapted/checkpoints")
    assert not any(name.startswith("frozen/params") for name in read_manifest(saved / "00000003").arrays)
    merged = load_pretrained("runs/adapted")
    np.testing.assert_array_equal(
        merged.params["sequence_head"]["out"]["kernel"],
        whole.trainable["params"]["sequence_head"]["out"]["kernel"],
    )
    assert merged.params.keys() == tuned.params.keys()
    beside = load_pretrained("runs/base", adapter="runs/adapted")
    assert beside.config == merged.config
    shutil.rmtree(saved / "00000003")
    jax.tree.map(np.testing.assert_array_equal, run("finetune", "runs/adapted", *lora), whole)
    other = run("finetune", "runs/next", "model.load=runs/task", "eval.every=0", *frozen)
    np.testing.assert_array_equal(
        other.variables["params"]["sequence_head"]["out"]["kernel"],
        tuned.params["sequence_head"]["out"]["kernel"],
    )
