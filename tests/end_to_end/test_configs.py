"""Every shipped configuration is valid, says what its name says, and trains: two updates of a shrunk copy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hllm_jax.inspection import inspect
from hllm_jax.recipes import home, load_run_config, recipes
from hllm_jax.testing.corpora import write_jsonl
from hllm_jax.training import with_score
from hllm_jax.training.pretrained import load_pretrained, save_weights

CONFIGS = {f"{recipe.name}/{path.stem}": path for recipe in recipes() for path in recipe.configs}
# Of a recipe, but in a folder of their own: what they are for is to be planned, or adapters.
APART = {"plan": "pretrain", "lora": "sft"}
CONFIGS |= {
    f"{folder}/{path.stem}": path
    for folder in APART
    for path in sorted((home() / "configs" / folder).glob("*.yaml"))
}

PARAMETERS = {
    "pretrain/book-82m": 82_594_560,
    "pretrain/book-215m": 215_127_040,
    "sft/book-215m": 215_127_040,
    "pretrain/llama2-7b": 6_738_415_616,
    "pretrain/llama2-13b": 13_015_864_320,
    "pretrain/llama2-70b": 68_976_648_192,
    "plan/zero-figure1": 7_501_811_712,
    "plan/llama3.1-405b": 405_853_388_800,
}

SIZES = "{layers: 2, embed: 32, heads: 4, kv_heads: 4, mlp: 64, max_length: 64}"
SMALL = {
    "train.steps": "2",
    "train.epochs": "null",
    "train.batch_size": "8",
    "train.sequence_length": "32",
    "train.accumulation": "1",
    "eval.batches": "1",
    "schedule.warmup": "1",
    "model.dtype": "float32",
    "mesh": "{}",
}
SHRUNK = {
    "tokenizer": {"tokenizer.vocab_size": "512"},
    "pretrain": SMALL | {"model.preset": "null"},
    "sft": SMALL | {"model.load": "runs/base", "model.scan_layers": "false", "base": "null"},
    "finetune": SMALL | {"model.load": "runs/encoder", "base": "null"},
    "distill": SMALL | {"distill.teacher": "runs/base", "teacher_base": "null", "model.decoder": SIZES},
    "grpo": {name: value for name, value in SMALL.items() if name != "train.sequence_length"}
    | {
        "model.load": "runs/base",
        "model.scan_layers": "false",
        "base": "null",
        "data.holdout": "0.1",
        "rollout.group": "2",
        "rollout.minibatches": "2",
        "rollout.prompt_window": "48",
        "rollout.max_tokens": "8",
        "grpo.kl_limit": "null",
        "reward.kind": "verifier",
        "reward.path": "number",
        "reward.options": "{}",
    },
}
SHRUNK["reward"] = SHRUNK["dpo"] = SHRUNK["sft"] | {"train.sequence_length": "64"}
SCORED = {"reward.kind": "model", "reward.path": "runs/scorer", "reward.options": "{}"}
SHRUNK["ppo"] = {name: value for name, value in SHRUNK["grpo"].items() if name != "grpo.kl_limit"} | SCORED
SHRUNK["ppo"] |= {"ppo.kl_limit": "null"}
SOURCES = {
    "tokenizer": "[{name: shakespeare, limit: 1}]",
    "pretrain": "[{name: shakespeare, limit: 1}]",
    "sft": "[{name: chatterbot-en, limit: 100}]",
    "finetune": "[{path: examples.jsonl}]",
    "distill": "[{name: chatterbot-en, limit: 100}]",
    "reward": "[{path: pairs.jsonl}]",
    "dpo": "[{path: pairs.jsonl}]",
    "grpo": "[{path: questions.jsonl}]",
    "ppo": "[{path: questions.jsonl}]",
}
# What a run evaluates beside the loss, where it is not the text as a whole that it predicts.
SCORES = {"pretrain/bert-tiny": "eval/pair_accuracy", "pretrain/t5-tiny": "eval/perplexity"}
SCORES |= {"finetune/tiny": "eval/f1", "grpo/verse": "eval/reward"}
SCORES |= {name: "eval/longer_wins" for name in CONFIGS if name.startswith(("reward/", "dpo/"))}
SCORES |= {
    f"{recipe}/{name}": "eval/reward"
    for recipe in ("grpo", "ppo")
    for name in ("tiny", "smollm2-135m", "llama2-7b")
}
SCORES["ppo/reviews"] = "eval/reward"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_is_valid(name: str) -> None:
    module, config = load_run_config(CONFIGS[name])
    assert config.recipe == recipe_of(name)
    assert callable(module.main)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_named_size_has_exactly_its_parameters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert inspect(str(CONFIGS[name]))["parameters"] == PARAMETERS[name]


def test_the_tiny_config_divides_over_any_eight_devices() -> None:
    _, config = load_run_config(CONFIGS["pretrain/tiny"])
    spec = config.model.spec(config.tokenizer.vocab_size)
    sizes = (spec.embed, spec.heads, spec.kv_heads, spec.mlp_size, spec.vocab_size, config.train.batch_size)
    assert [size for size in sizes if size % 8] == []
    assert config.train.sequence_length % 16 == 0
    assert spec.layers % 4 == 0
    assert config.train.steps == 60


def test_the_llama_config_is_that_of_the_paper() -> None:
    _, config = load_run_config(CONFIGS["pretrain/llama2-7b"])
    assert (config.train.batch_size, config.train.sequence_length) == (64, 4096)


def test_the_sweep_saw_every_config() -> None:
    folders = {
        "pretrain",
        "sft",
        "tokenizer",
        "finetune",
        "plan",
        "lora",
        "distill",
        "reward",
        "dpo",
        "grpo",
        "ppo",
    }
    assert folders == {name.split("/")[0] for name in CONFIGS}
    assert set(PARAMETERS) | set(SCORES) <= set(CONFIGS)
    assert len(CONFIGS) >= 32


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models for fine-tuning in `runs/base` and `runs/encoder`, and examples of a task."""
    folder = tmp_path_factory.mktemp("configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train("pretrain/tiny", "runs/base")
        train("pretrain/bert-tiny", "runs/encoder")
        save_scorer("runs/scorer")
        sides = (("坏", "negative"), ("好", "positive"))
        examples = [{"text": f"{n} {side}", "label": label} for n in range(200) for side, label in sides]
        write_jsonl(folder / "examples.jsonl", examples)
        answers = [{"prompt": f"{n}?", "chosen": "好", "rejected": "坏" * (n % 3 + 1)} for n in range(200)]
        write_jsonl(folder / "pairs.jsonl", answers)
        questions = [{"question": f"{n} and 1?", "answer": f"{n + 1}"} for n in range(200)]
        write_jsonl(folder / "questions.jsonl", questions)
    return folder


def save_scorer(run: str) -> None:
    """A reward model that was trained on nothing: `runs/base` with a head of ones."""
    spec, params, tokenizer = load_pretrained("runs/base")
    scored = {**params, "score": np.ones((spec.embed,), np.float32)}
    save_weights(Path(run), with_score(spec), scored, tokenizer)


def recipe_of(name: str) -> str:
    folder = name.split("/")[0]
    return APART.get(folder, folder)


def train(name: str, run: str) -> None:
    recipe = recipe_of(name)
    by_model = SCORED if name == "grpo/llama2-7b" else {}
    overrides = SHRUNK[recipe] | by_model | {"run.dir": run, "data.sources": SOURCES[recipe]}
    if recipe == "pretrain":
        _, whole = load_run_config(CONFIGS[name])
        kind = next((k for k in ("encoder", "encoder_decoder") if getattr(whole.model, k)), "decoder")
        # Every character of the text has to fit into a WordPiece vocabulary.
        overrides |= {f"model.{kind}": SIZES, "tokenizer.vocab_size": "512"}
    module, config = load_run_config(CONFIGS[name], [f"{key}={value}" for key, value in overrides.items()])
    module.main(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_trains_two_updates(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    train(name, f"runs/{name}")
    run = workplace / "runs" / name
    assert (run / "config.yaml").is_file()
    assert (run / "tokenizer").is_dir()
    if name.startswith("tokenizer/"):
        return
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(line["step"] for line in lines) == 2
    trained = [line for line in lines if "loss" in line]
    wanted = {
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "mfu",
        "step_time_s",
    }
    assert wanted <= set(trained[-1])
    evaluated = load_run_config(CONFIGS[name])[1].eval.every > 0
    assert any(SCORES.get(name, "eval/bits_per_byte") in line for line in lines) == evaluated
