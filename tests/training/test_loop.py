"""The loop: hooks in order, metrics complete, bad batches kept, interruptions clean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hllm_jax.objectives import causal_lm
from hllm_jax.testing.training import Bigram, ToyBatches, toy_config, toy_layout, toy_step, toy_train
from hllm_jax.training import (
    Hook,
    Moment,
    NonFiniteError,
    Run,
    evaluate,
    make_evaluation,
    sample,
    save,
    track,
    train,
)
from hllm_jax.training.metrics import read_lines


def run_with(
    folder: Path, hooks: Any, *overrides: str, batches: Any = None, steps: int = 6
) -> list[dict[str, Any]]:
    run = Run.start(toy_config(folder, *overrides))
    layout = toy_layout()
    state = run.restore(layout) or layout.init(0)
    train(run, state, toy_step(layout), batches or ToyBatches(), layout, steps, hooks(run))
    return read_lines(folder / "metrics.jsonl")


def test_hooks_act_in_order_when_due_and_at_the_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def watched(run: Run) -> list[Hook]:
        return [
            Hook("a", lambda m: m.step % 2 == 0 and not m.begin, lambda m: seen.append(("a", m.step))),
            Hook("b", lambda m: m.final, lambda m: seen.append(("b", int(m.state.step)))),
            Hook("c", close=lambda: seen.append(("closed", 0))),
        ]

    run_with(tmp_path, watched)
    assert seen == [("a", 2), ("a", 4), ("a", 6), ("b", 6), ("closed", 0)]


def test_every_line_has_every_update_s_own_metrics(tmp_path: Path) -> None:
    lines = run_with(tmp_path, lambda run: [])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    counts = [int((ToyBatches()[n]["segment_ids"] > 0).sum()) for n in range(6)]
    assert [line["tokens"] for line in lines] == np.cumsum(counts).tolist()
    sparse = run_with(tmp_path / "sparse", lambda run: [], "log.every=4")
    assert [line["step"] for line in sparse] == [1, 4, 6]
    assert sparse[1]["loss"] == lines[3]["loss"]


def test_saved_before_evaluated_and_the_best_is_known(tmp_path: Path) -> None:
    saved: list[bool] = []

    def hooks(run: Run) -> list[Hook]:
        def measure(state: Any) -> dict[str, float]:
            saved.append(run.checkpoints.path(int(state.step)).exists())
            return {"eval/loss": 10.0 - float(state.step), "eval/bits_per_byte": 1.0}

        return [save(run, 2), evaluate(run, measure, 2)]

    lines = [line for line in run_with(tmp_path, hooks) if "eval/loss" in line]
    assert [(line["step"], line["eval/loss"]) for line in lines] == [(0, 10.0), (2, 8.0), (4, 6.0), (6, 4.0)]
    assert saved == [False, True, True, True]


def test_failing_evaluation_does_not_lose_the_checkpoint(tmp_path: Path) -> None:
    def fails(state: Any) -> dict[str, float]:
        if int(state.step):
            raise RuntimeError("evaluation fell over")
        return {}

    with pytest.raises(RuntimeError, match="fell over"):
        run_with(tmp_path, lambda run: [save(run, 3), evaluate(run, fails, 3)])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000003"]


def test_an_evaluation_that_was_missed_is_made_up(tmp_path: Path) -> None:
    test_failing_evaluation_does_not_lose_the_checkpoint(tmp_path)
    lines = run_with(tmp_path, lambda run: [save(run, 3), evaluate(run, lambda state: {"eval/loss": 1.0}, 3)])
    assert [line["step"] for line in lines if "eval/loss" in line] == [3, 6]


def test_bad_batch_is_kept_and_the_run_stops_with_a_checkpoint(tmp_path: Path) -> None:
    batches = ToyBatches(poisoned=(2,))
    with pytest.raises(NonFiniteError, match=r"update 3 was skipped: loss .*its batch is in .*00000003.npz"):
        run_with(tmp_path, lambda run: [save(run, None)], batches=batches)
    with np.load(tmp_path / "bad_batches" / "00000003.npz") as kept:
        np.testing.assert_array_equal(kept["weights"], batches[2]["weights"])
    assert list((tmp_path / "checkpoints").iterdir())


def test_bad_batches_may_be_passed_over_up_to_a_limit(tmp_path: Path) -> None:
    policy = ("train.nan_policy=continue", "train.nan_limit=2")
    lines = run_with(tmp_path / "a", lambda run: [], *policy, batches=ToyBatches(poisoned=(2, 4)))
    assert [line["step"] for line in lines if line.get("skipped")] == [3, 5]
    assert lines[2]["loss"] is None
    assert math.isfinite(lines[-1]["loss"])
    with pytest.raises(NonFiniteError, match="2 in a row"):
        run_with(tmp_path / "b", lambda run: [], *policy, batches=ToyBatches(poisoned=(2, 3)))


def test_ctrl_c_saves_and_ends_with_130(tmp_path: Path) -> None:
    class Interrupting(ToyBatches):
        def __getitem__(self, n: int) -> dict[str, np.ndarray]:
            import os
            import signal

            if n == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(n)

    with pytest.raises(SystemExit) as stopped:
        run_with(tmp_path, lambda run: [save(run, None)], batches=Interrupting())
    assert stopped.value.code == 130
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000003"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = toy_train(toy_config(tmp_path))
    second = toy_train(toy_config(tmp_path))
    assert int(first.step) == int(second.step) == 8
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 8


def test_samples_are_kept(tmp_path: Path) -> None:
    run_with(tmp_path, lambda run: [sample(run, lambda state: [{"prompt": "你", "text": "好"}], None)])
    assert read_lines(tmp_path / "samples.jsonl") == [{"step": 6, "prompt": "你", "text": "好"}]


def test_a_new_run_in_an_old_folder_starts_its_files_anew(tmp_path: Path) -> None:
    """Killed before its first checkpoint, a run begins again, and so do its lines."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_text('{"step": 0, "eval/loss": 9}\n{"step": 1, "loss": 9}\n')
    hooks = lambda run: [  # noqa: E731
        evaluate(run, lambda state: {"eval/loss": 1.0}, 6),
        sample(run, lambda state: [{"text": "x"}], None),
    ]
    lines = run_with(tmp_path, hooks)
    assert [line["eval/loss"] for line in lines if "eval/loss" in line] == [1.0, 1.0]
    assert [line["step"] for line in read_lines(tmp_path / "samples.jsonl")] == [6]


def test_tensorboard_gets_the_lines(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    run_with(tmp_path, lambda run: track(run, run.config.log), "log.tensorboard=true")
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_tracker_that_is_not_installed_says_so(tmp_path: Path) -> None:
    with (
        Run.start(toy_config(tmp_path, "log.tracker=swanlab")) as run,
        pytest.raises(RuntimeError, match=r"log.tracker asks for swanlab.*pip install swanlab"),
    ):
        track(run, run.config.log)


def test_held_out_metrics_by_hand() -> None:
    """Uniform logits over 64 ids: ln 64 nats a target, 6 bits; a target of 3 bytes, or of none, by its id."""
    layout = toy_layout()
    zero = {name: np.zeros_like(leaf) for name, leaf in layout.init(0).trainable["params"].items()}
    state = layout.init(0, load=zero)

    class HeldOut:
        batch_size = 2

        def __len__(self) -> int:
            return 3

        def rows(self, n: int, start: int, stop: int) -> dict[str, np.ndarray]:
            rows = {name: np.zeros((2, 4), np.int32) for name in ("tokens", "positions")}
            rows["targets"] = np.asarray([[1, 1, 2, 2], [1, 2, 2, 2]], np.int32)
            rows["segment_ids"] = np.ones((2, 4), np.int32)
            weights = np.asarray([[1, 1, 1, 0], [n == 0, 0, 0, 0]], np.float32)
            return rows | {"weights": weights}

    lengths = np.zeros(64, np.int32)
    lengths[1] = 3
    found = make_evaluation(causal_lm(Bigram()), layout, HeldOut(), lengths, limit=2)(state)
    assert found["eval/tokens"] == 7
    assert found["eval/loss"] == pytest.approx(math.log(64), rel=1e-6)
    assert found["eval/perplexity"] == pytest.approx(64, rel=1e-5)
    assert found["eval/bits_per_byte"] == pytest.approx(7 * 6 / (5 * 3), rel=1e-6)


def test_moment_is_plain(tmp_path: Path) -> None:
    state = toy_layout().init(0)
    assert Moment(1, state).final is False
