"""DPO and its kin on batches of pairs: what is compared with what, and that no split of a batch matters."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.config import Invalid
from hllm_jax.models import EncoderConfig
from hllm_jax.models.config import Execution, LoRAConfig
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.objectives import dpo_sums, mean, pairwise_reward
from hllm_jax.objectives.preference import Pair
from hllm_jax.parallel import Layout, MeshConfig, make_mesh, make_rules
from hllm_jax.parallel.state import flatten
from hllm_jax.rl.dpo import Preferences, mismatched
from hllm_jax.rl.dpo_config import DPOConfig
from hllm_jax.rl.roles import make_roles
from hllm_jax.testing.models import draw_params
from hllm_jax.training import OptimizerConfig, ScheduleConfig, make_optimizer, make_train_step

VOCAB, LENGTH, ROWS = 32, 12, 16
SPEC = DecoderConfig(
    vocab_size=VOCAB, embed=16, layers=1, heads=2, kv_heads=2, mlp=32, max_length=LENGTH, init_std=0.3
)
LOSSES = ("dpo", "ipo", "kto", "orpo", "simpo")


def pairs(seed: int = 0, pad: int = 0) -> dict[str, np.ndarray]:
    """Ragged pairs; the last row is empty."""
    rng = np.random.default_rng(seed)
    places = np.arange(LENGTH)[None, :]
    begins = rng.integers(1, 4, ROWS)[:, None]
    prompts = rng.integers(1, VOCAB, (ROWS, LENGTH))
    batch: dict[str, np.ndarray] = {"margins": rng.uniform(size=ROWS).astype(np.float32)}
    batch["pair_weights"] = np.append(rng.choice([0.5, 1.0], ROWS - 1), 0.0).astype(np.float32)
    for side in ("chosen", "rejected"):
        ends = np.append(rng.integers(5, LENGTH + 1, ROWS - 1), 0)[:, None]
        held = places < ends
        tokens = np.where(places < begins, prompts, rng.integers(1, VOCAB, (ROWS, LENGTH)))
        batch[f"{side}_tokens"] = np.where(held, tokens, pad).astype(np.int32)
        batch[f"{side}_weights"] = (held & (places >= begins)).astype(np.float32)
        batch[f"{side}_segment_ids"] = held.astype(np.int32)
        batch[f"{side}_positions"] = np.where(held, places, 0).astype(np.int32)
    return batch


@functools.cache
def model_of(head: Any = "logits") -> Any:
    return dataclasses.replace(SPEC, head=head).build(Execution(dtype="float32", attention="plain"))


@functools.cache
def variables_of(seed: int = 0) -> Any:
    return {"params": draw_params(SPEC, seed)}


def state_of(name: str, devices: int, accumulation: int, lora: LoRAConfig | None = None) -> tuple[Any, Any]:
    """(state, step) of a run at its beginning."""
    model = model_of("score" if name == "reward" else "logits")
    preferences = None if name == "reward" else Preferences(model, DPOConfig(loss=name))  # pyrefly: ignore
    loss = pairwise_reward(model, centering=0.1) if preferences is None else preferences.loss
    optimizer = make_optimizer(OptimizerConfig(name="adamw"), ScheduleConfig(peak=0.01, warmup=0), 10)
    apart: dict[str, Any] = {}
    if preferences is not None:
        roles = make_roles(None, model, lora, reference=preferences.config.needs_reference)
        apart = {"trainable": roles.trainable, "variables": roles.variables}
    mesh = make_mesh(MeshConfig(), "ddp", jax.devices()[:devices])
    layout = Layout(mesh, make_rules("ddp"), model, optimizer, adapters=lora, **apart)
    before = preferences.before if preferences is not None else None
    step = make_train_step(loss, optimizer, layout, accumulation, before=before)
    return layout, (layout.init(0), step)


def trained(name: str, devices: int, accumulation: int, lora: LoRAConfig | None = None) -> tuple[Any, Any]:
    """Metrics of two updates, and the state after them."""
    layout, (state, step) = state_of(name, devices, accumulation, lora)
    found = []
    for n in range(2):
        state, metrics = step(state, layout.put(pairs(n)))
        found.append({key: float(value) for key, value in metrics.items()})
    return found, jax.device_get(state)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2, alpha=64.0)])
def test_dpo_begins_at_ln_2_and_only_the_policy_moves(lora: LoRAConfig | None) -> None:
    (first, second), state = trained("dpo", 1, 1, lora)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["margin"], first["accuracy"]) == (0.0, 0.0)
    assert abs(second["loss"] - math.log(2)) > 1e-3
    started = jax.device_get(state_of("dpo", 1, 1, lora)[1][0])
    jax.tree.map(np.testing.assert_array_equal, state.frozen, started.frozen)
    names = {path[0] for path in flatten(state.frozen)}
    # With adapters the base is there once, and is the reference; else a copy of the first weights.
    assert names == ({"params", "lora"} if lora else {"reference"})


@pytest.mark.parametrize(
    "name", ["dpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("reward", "kto"))]
)
def test_devices_and_microbatches_change_nothing(name: str) -> None:
    wanted, one = trained(name, 1, 1)
    found, other = trained(name, 8, 2)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4, abs=2e-5)
    for path, leaf in flatten(other.trainable).items():
        np.testing.assert_allclose(leaf, flatten(one.trainable)[path], atol=2e-4, err_msg=str(path))


@functools.cache
def compiled(preferences: Preferences) -> Any:
    return jax.jit(lambda variables, batch: mean(preferences.loss(variables, batch, None)))


def metrics(preferences: Preferences, batch: Any, seeds: tuple[int, int] = (1, 2)) -> dict[str, float]:
    policy, reference = (variables_of(seed) for seed in seeds)
    found = compiled(preferences)({**policy, "reference": reference}, batch)
    return {key: float(value) for key, value in found.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_what_stands_at_padding_and_empty_rows_change_nothing(name: Any) -> None:
    preferences = Preferences(model_of(), DPOConfig(loss=name))
    found = metrics(preferences, pairs(3))
    assert all(math.isfinite(value) for value in found.values())
    # A pad id that is a word, or the end of text, is still padding.
    assert metrics(preferences, pairs(3, pad=7)) == pytest.approx(found, rel=1e-6)
    # Nor does a row that stands there to fill the batch, whatever it holds.
    other = {key: np.concatenate([rows[:-1], rows[:1]]) for key, rows in pairs(3).items()}
    other["pair_weights"] = pairs(3)["pair_weights"]
    if name != "kto":  # whose reference point has the answer of the next row
        assert metrics(preferences, other) == pytest.approx(found, rel=1e-6)


def test_dpo_is_the_log_probs_of_the_answers_alone() -> None:
    """Token by token, row by row."""
    batch = pairs(4)
    apply = jax.jit(lambda variables, tokens: jax.nn.log_softmax(model_of().apply(variables, tokens)[0][0]))

    def whole(variables: Any, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(apply(variables, tokens))

    def of_answer(variables: Any, side: str, row: int) -> float:
        end = int(batch[f"{side}_segment_ids"][row].sum())
        tokens = batch[f"{side}_tokens"][row, :end]
        begin = int(np.argmax(batch[f"{side}_weights"][row]))
        log_probs = whole(variables, np.pad(tokens, (0, LENGTH - end))[None])
        return sum(float(log_probs[t - 1, tokens[t]]) for t in range(begin, end))

    sides = {
        seed: Pair(
            *(
                jnp.array([of_answer(variables_of(seed), side, row) for row in range(3)])
                for side in ("chosen", "rejected")
            )
        )
        for seed in (1, 2)
    }
    few = {key: rows[:3] for key, rows in batch.items()}
    wanted = mean(dpo_sums(sides[1], sides[2], few["pair_weights"], 0.1, 0.2))
    found = metrics(Preferences(model_of(), DPOConfig(label_smoothing=0.2), chunks=3), few)
    assert found == pytest.approx({key: float(value) for key, value in wanted.items()}, rel=1e-4, abs=1e-5)
    # What was computed before is taken as it is.
    kept = few | {"reference_chosen": sides[2].chosen, "reference_rejected": sides[2].rejected}
    settings = DPOConfig(label_smoothing=0.2, reference="precomputed")
    assert metrics(Preferences(model_of(), settings), kept, (1, 1)) == pytest.approx(
        found, rel=1e-4, abs=1e-5
    )


def test_a_mismatched_pair_is_this_prompt_with_the_next_answer() -> None:
    def row(prompt: list[int], answer: list[int]) -> tuple[list[int], list[float], list[int]]:
        gap = 6 - len(prompt) - len(answer)
        held = [1] * (6 - gap) + [0] * gap
        return [*prompt, *answer, *[0] * gap], [0.0] * len(prompt) + [1.0] * len(answer) + [0.0] * gap, held

    rows = [row([1], [2, 3]), row([4, 5], [6, 7, 8]), row([9, 9, 9], [10])]
    batch: dict[str, Any] = {"pair_weights": np.ones(3, np.float32)}
    for side in ("chosen", "rejected"):
        for name, number, kind in (
            ("tokens", 0, np.int32),
            ("weights", 1, np.float32),
            ("segment_ids", 2, np.int32),
        ):
            batch[f"{side}_{name}"] = np.array([each[number] for each in rows], kind)
    found = mismatched(batch)
    wanted = [row([1], [6, 7, 8]), row([4, 5], [10]), row([9, 9, 9], [2, 3])]
    for side in ("chosen", "rejected"):
        np.testing.assert_array_equal(found[f"{side}_weights"], [each[1] for each in wanted])
        np.testing.assert_array_equal(found[f"{side}_segment_ids"], [each[2] for each in wanted])
        held = found[f"{side}_segment_ids"] > 0
        np.testing.assert_array_equal(
            np.where(held, found[f"{side}_tokens"], 0), [each[0] for each in wanted]
        )


def test_kto_takes_single_answers() -> None:
    """Good and bad ones as rows with an empty side: the same examples, in the same order, as in pairs."""
    whole = pairs(5)
    single: dict[str, Any] = {}
    for key, rows in whole.items():
        single[key] = np.repeat(rows, 2, axis=0)
        if key.startswith(("chosen", "rejected")):
            single[key][1 if key.startswith("chosen") else 0 :: 2] = 0
    kto = Preferences(model_of(), DPOConfig(loss="kto"))
    point = {"baseline": np.full(ROWS, 0.3, np.float32)}
    found = metrics(kto, whole | point)
    assert metrics(kto, single | {"baseline": np.full(2 * ROWS, 0.3, np.float32)}) == pytest.approx(
        found, rel=1e-5
    )
    # Where no other answer is there to compare with, the reference point is 0.
    assert metrics(kto, single)["baseline"] == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.5}, "below 0.5, where a pair says nothing"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "is not used by ipo"),
        ({"gamma": 0.5}, "is not used by dpo"),
        ({"desirable_weight": 2.0}, "are not used by dpo"),
        ({"loss": "kto", "reference": "precomputed"}, "kto compares prompts with the answers to others"),
        ({"loss": "orpo", "reference": "precomputed"}, "orpo has none"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        DPOConfig(**settings)


def test_other_models_are_refused() -> None:
    encoder = EncoderConfig(vocab_size=9, layers=1, embed=8, heads=2, kv_heads=2, mlp=8).build(Execution())
    for model, kind in ((encoder, "encoder"), (model_of("score"), "a reward model")):
        with pytest.raises(ValueError, match=f"of the kind {kind}, and dpo compares what a decoder says"):
            Preferences(model, DPOConfig())


CONFIG = """
recipe: RECIPE
run: {dir: DIR}
model: {load: runs/base, attention: plain}
pairs: {form: text}
data: {packing: none, sources: [{path: pairs.jsonl}], holdout: 0.3}
schedule: {peak: 0.01, warmup: 0}
train: {steps: 4, batch_size: 8, sequence_length: 24}
checkpoint: {every: 2}
eval: {every: 2, batches: 2}
log: {every: 1, progress: false}
"""


def run(recipe: str, folder: str, *overrides: str) -> Any:
    from hllm_jax.recipes import load_run_config

    Path("run.yaml").write_text(CONFIG.replace("RECIPE", recipe).replace("DIR", folder), encoding="utf-8")
    module, config = load_run_config("run.yaml", overrides)
    return module.main(config)


@pytest.mark.slow
def test_recipes_go_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from hllm_jax.recipes import load_run_config
    from hllm_jax.report import report
    from hllm_jax.testing.corpora import write_documents, write_jsonl
    from hllm_jax.training import load_pretrained
    from hllm_jax.training.checkpoints import read_manifest
    from hllm_jax.training.metrics import read_lines

    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "texts.jsonl", 40)
    write_jsonl(
        tmp_path / "pairs.jsonl",
        ({"prompt": f"{n % 20}:", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(60)),
    )
    sizes = "{layers: 1, embed: 16, heads: 2, kv_heads: 2, mlp: 32, max_length: 32}"
    module, config = load_run_config(
        "pretrain/tiny",
        [
            *(f"model.decoder={sizes}", "tokenizer.vocab_size=300", "train.steps=1", "train.batch_size=8"),
            *("train.sequence_length=32", "run.dir=runs/base", "data.sources=[{path: texts.jsonl}]"),
            *("eval.every=0", "log.progress=false", "model.attention=plain"),
        ],
    )
    module.main(config)
    for name, recipe, more in (
        ("reward", "reward", ("lora={rank: 2}",)),
        ("full", "dpo", ()),
        ("kept", "dpo", ("dpo.reference=precomputed", "lora={rank: 2}")),
    ):
        whole = run(recipe, f"runs/{name}", *more)
        lines = [line for line in read_lines(Path(f"runs/{name}/metrics.jsonl")) if "eval/accuracy" in line]
        assert [line["step"] for line in lines] == [0, 2, 4]
        assert {"eval/longer_wins", "eval/calibration_error", "eval/pairs"} <= lines[-1].keys()
        checkpoints = Path(f"runs/{name}/checkpoints")
        arrays = read_manifest(checkpoints / "00000004").arrays
        assert not any(key.startswith("frozen/params") for key in arrays)
        shutil.rmtree(checkpoints / "00000004")
        jax.tree.map(np.testing.assert_array_equal, run(recipe, f"runs/{name}", *more), whole)
        assert "Calibration" in report(f"runs/{name}").read_text("utf-8")
        if recipe == "dpo":
            assert lines[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    scorer = load_pretrained("runs/reward")
    assert scorer.config.head == "score"
    assert scorer.params["score"].shape == (16,)
    assert load_pretrained("runs/full").params.keys() == load_pretrained("runs/base").params.keys()
