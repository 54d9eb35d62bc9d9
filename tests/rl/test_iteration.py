"""Iterations: a rollout and its updates as one step of the loop, compiled once, resumed bit by bit."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.models.config import Execution, LoRAConfig
from hllm_jax.models.decoder import Decoder
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.parallel import Layout, make_mesh, make_rules
from hllm_jax.parallel.config import MeshConfig, Strategy
from hllm_jax.parallel.layout import LayoutError
from hllm_jax.rl import (
    DeviceReward,
    GRPOConfig,
    HostReward,
    Iteration,
    KLLimitError,
    RolloutConfig,
    make_grpo,
    make_roles,
    policy_of,
)
from hllm_jax.rl.iteration import check_rows
from hllm_jax.rl.rewards import RewardError
from hllm_jax.testing.models import draw_params
from hllm_jax.testing.training import toy_config
from hllm_jax.training import OptimizerConfig, Run, ScheduleConfig, make_optimizer, save, train
from hllm_jax.training.metrics import read_lines

VOCAB, P, W, T = 16, 4, 3, 4
SETTINGS = RolloutConfig(group=2, prompt_window=W, max_tokens=T, epochs=2, minibatches=2, temperature=0.7)
SPEC = DecoderConfig(vocab_size=VOCAB, layers=1, embed=32, heads=2, kv_heads=2, mlp=64, max_length=8)
LORA = LoRAConfig(rank=2)
RESTING = 3  # iterations with learning rate 0


class Letters:
    """A tokenizer: token n is the n-th letter; 0 and 1 are special."""

    def decode(self, ids: Any, skip_special: bool = False) -> str:
        assert skip_special
        return "".join(chr(ord("a") + int(i)) for i in ids if i > 1)


class Prompts:
    """`prompts[n]`."""

    fingerprint = "prompts"

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(n)
        return {
            "tokens": rng.integers(2, VOCAB, (P, W)).astype(np.int32),
            "lengths": rng.integers(1, W + 1, P).astype(np.int32),
            "records": np.arange(P, dtype=np.int32) + P * n,
        }

    def record(self, number: int) -> dict[str, Any]:
        return {"number": number}


def vowels(prompts: list[str], completions: list[str], records: list[dict[str, Any]]) -> list[float]:
    """How many; and what the rows belong to is looked at."""
    assert len(prompts) == len(completions) == len(records) == P * SETTINGS.group
    assert [record["number"] % P for record in records] == [i // 2 for i in range(P * 2)]
    assert all(1 <= len(prompt) <= W for prompt in prompts)
    assert max(map(len, completions)) <= T
    return [float(sum(letter in "aeio" for letter in text)) for text in completions]


def made(
    reward: Any = None,
    method: GRPOConfig = GRPOConfig(beta=0.1),
    lora: LoRAConfig | None = LORA,
    devices: int = 1,
    strategy: Strategy = "ddp",
    accumulation: int = 1,
    **more: Any,
) -> tuple[Iteration, Layout]:
    model = Decoder(SPEC, Execution(dtype="float32"))
    adam = make_optimizer(
        OptimizerConfig(weight_decay=0.0), ScheduleConfig(kind="constant", peak=0.02, warmup=0), 9
    )
    learning = adam.schedule

    def resting(step: jax.Array) -> jax.Array:
        return jnp.where(step < RESTING, 0.0, learning(step))

    object.__setattr__(adam, "schedule", resting)
    roles = make_roles(None, model, lora, reference=method.needs_reference)
    mesh = make_mesh(None, strategy, jax.devices()[:devices])
    rules, of_roles = make_rules(strategy), roles.variables
    layout = Layout(mesh, rules, model, adam, roles.trainable, lora, variables=of_roles)
    experience, loss = make_grpo(model, method, SETTINGS, VOCAB)
    iteration = Iteration(
        model,
        layout,
        adam,
        SETTINGS,
        prompts=P,
        stop_ids=(1,),
        vocab=VOCAB,
        reward=reward or HostReward(vowels, Letters(), Prompts().record),
        experience=experience,
        loss=loss,
        accumulation=accumulation,
        kl_limit=method.kl_limit,
        view=policy_of,
        **more,
    )
    return iteration, layout


def begun(layout: Layout) -> Any:
    params = draw_params(SPEC)
    apart = {("reference", "params"): params} if "reference" in layout.abstract_state.frozen else None
    return layout.init(0, params, others=apart)


def arrays(state: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.trainable, state.frozen))]


class Watched:
    """An iteration with adapters that is compiled once for several tests; its reward may be exchanged."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.seen: list[tuple[int, np.ndarray, dict[str, np.ndarray]]] = []
        self.reward: Any = vowels
        self.iteration, self.layout = made(
            HostReward(lambda *texts: self.reward(*texts), Letters(), Prompts().record),
            GRPOConfig(kl_limit=0.02),
            save=self.save,
            watch=lambda number, rows, scores, arrays: self.seen.append((number, scores, arrays)),
        )

    def save(self, state: Any) -> None:
        """As a checkpoint does: with transfers that nobody asked for by name, which the loop forbids."""
        jax.jit(jnp.negative)(np.ones(1))
        self.saved.append(int(state.step))


@functools.cache
def watched() -> Watched:
    return Watched()


def test_at_rest_nothing_changes_then_it_learns_and_stops_where_the_kl_is_too_large() -> None:
    now = watched()
    now.reward = vowels
    state, prompts = begun(now.layout), Prompts()
    before = arrays(state)
    # An evaluation comes before the loop compiles; nothing is compiled again.
    held_out = now.iteration.measure(state, [prompts[50], prompts[51]], prompts.record)
    assert held_out == now.iteration.measure(state, [prompts[50], prompts[51]], prompts.record)
    assert 1 <= held_out["eval/answer_length"] <= T
    assert now.iteration.compile(state, now.layout.put(prompts[0])) is not None
    values: dict[str, float] = {}
    n = 0
    with pytest.raises(KLLimitError, match=r"after \d+ iterations the KL is .* kl_limit is 0.02"):  # noqa: PT012
        for n in range(40):
            batch = now.layout.put(prompts[n])
            with jax.transfer_guard("disallow"):
                state, metrics = now.iteration(state, batch)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            assert values["skipped"] == 0
            if n < RESTING:
                assert all(map(np.array_equal, before, arrays(state)))
                assert values["ratio"] == pytest.approx(1.0, abs=1e-5)
                assert values["old_kl"] == pytest.approx(0.0, abs=1e-6)
                # The reference is the base without adapters, which begin as nothing.
                assert values["kl"] == pytest.approx(0.0, abs=1e-6)
                assert values["learning_rate"] == 0
    assert n > RESTING
    assert now.saved[-1] == n == int(state.step)
    assert values["kl"] > 0
    assert not all(map(np.array_equal, before, arrays(state)))
    frozen = [np.asarray(leaf) for leaf in jax.tree.leaves(state.frozen)]
    assert all(map(np.array_equal, frozen, jax.tree.leaves(begun(now.layout).frozen)))
    assert now.iteration.traces == {"sample": 1, "weigh": 1, "update": 1}
    assert values["reward"] == pytest.approx(now.seen[n - 1][1].mean())
    logged = {"ended", "entropy", "clipped", "degenerate", "answer_length", "reward_std", "grad_norm", "loss"}
    assert logged | {"tokens", "rollout_seconds", "scoring_seconds", "update_seconds"} <= set(values)
    number, scores, of_rows = now.seen[n]
    assert number == n + 1
    groups, advantage = scores.reshape(P, 2), of_rows["advantage"].reshape(P, 2)
    np.testing.assert_array_equal(np.sign(groups - groups.mean(1, keepdims=True)), np.sign(advantage))


def test_equal_rewards_teach_nothing_and_answers_without_one_are_left_out() -> None:
    said: list[float] = [2.0] * (P * 2)
    now = watched()
    now.reward = lambda prompts, completions, records: said
    state = begun(now.layout).replace(step=jax.device_put(np.int32(RESTING), now.layout.shardings.step))
    before = arrays(state)
    state, metrics = now.iteration(state, now.layout.put(Prompts()[0]))
    assert (now.seen[-1][2]["advantage"] == 0).all()
    assert float(metrics["degenerate"]) == 1
    assert float(metrics["loss"]) == 0
    assert all(map(np.array_equal, before, arrays(state)))
    said[:4] = [1.0, 3.0, float("nan"), 5.0]
    state, metrics = now.iteration(state, now.layout.put(Prompts()[1]))
    assert (now.seen[-1][2]["advantage"] != 0).tolist() == [True, True, *[False] * 6]
    assert float(metrics["reward"]) == pytest.approx((1 + 3 + 5 + 8) / 7)
    assert np.isfinite(float(metrics["loss"]))
    assert np.isfinite(arrays(state)[0]).all()
    said[0] = float("inf")
    with pytest.raises(ValueError, match="the reward gave inf for the answer '"):
        now.iteration(state, now.layout.put(Prompts()[1]))
    assert now.saved[-1] == int(state.step) == RESTING + 2
    said.pop()
    now.saved.clear()
    for held, fails in (
        (state, lambda state: now.iteration(state, now.layout.put(Prompts()[1]))),
        (state, lambda state: now.iteration.measure(state, [Prompts()[1]], Prompts().record)),
        (begun(now.layout), lambda state: now.iteration.measure(state, [Prompts()[1]], Prompts().record)),
    ):
        with pytest.raises(ValueError, match=r"scores of shape \(7,\) for 8 answers: one each is wanted"):
            fails(held)
    assert now.saved == [RESTING + 2] * 2, "what was not trained is not saved"


def test_a_reward_on_the_devices_that_gives_no_score_ends_the_run() -> None:
    saved: list[int] = []
    nothing = DeviceReward(lambda variables, tokens, segment_ids: jnp.full(tokens.shape[0], jnp.nan))
    iteration, layout = made(nothing, GRPOConfig(), save=lambda state: saved.append(int(state.step)))
    with pytest.raises(RewardError, match="no finite score to any answer"):
        iteration(begun(layout), layout.put(Prompts()[0]))
    assert saved == [0]


def test_held_out_prompts_come_with_records_of_their_own() -> None:
    now, seen = watched(), []
    now.reward = lambda prompts, completions, records: [seen.append(each) or 0.0 for each in records]
    prompts = Prompts()
    now.iteration.measure(begun(now.layout), [prompts[0]], lambda number: {"held out": number})
    assert seen == [{"held out": i // 2} for i in range(P * 2)]


def run(folder: Path, steps: int, reward: Any = None) -> Any:
    """What a recipe does, with weights of its own for the reference."""
    started = Run.start(toy_config(folder, f"train.steps={steps}"))
    iteration, layout = made(reward, lora=None, save=started.save)
    started.facts = {"data": Prompts.fingerprint}
    state = started.restore(layout) or begun(layout)
    hooks = [save(started, 2)]
    state = train(started, state, iteration, Prompts(), layout, steps, hooks)
    assert iteration.compilations <= 1
    return state, read_lines(folder / "metrics.jsonl")


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    run(tmp_path / "a", RESTING + 1)
    resumed, lines = run(tmp_path / "a", RESTING + 4)
    whole, expected = run(tmp_path / "b", RESTING + 4)
    assert all(map(np.array_equal, jax.tree.leaves(resumed), jax.tree.leaves(whole)))
    timed = ("seconds", "time_s", "tokens_per_second", "memory_bytes", "mfu")

    def plain(line: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in line.items() if not name.endswith(timed)}

    assert [plain(line) for line in lines] == [plain(line) for line in expected]
    assert expected[-1]["kl"] > 0
    trained = jax.tree.leaves(whole.trainable["params"])
    kept = jax.tree.leaves(whole.frozen["reference"]["params"])
    assert not all(map(np.array_equal, trained, kept))
    assert all(map(np.array_equal, kept, jax.tree.leaves(begun(made(lora=None)[1]).frozen)))


def test_a_reward_that_fails_loses_nothing(tmp_path: Path) -> None:
    calls = 0

    def failing(*texts: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyError("boom")
        return vowels(*texts)

    with pytest.raises(KeyError, match="boom"):
        run(tmp_path / "a", 6, HostReward(failing, Letters(), Prompts().record))
    # Checkpoints were asked for every two updates; three were done.
    assert (tmp_path / "a" / "checkpoints" / "00000003" / "manifest.json").is_file()
    _, lines = run(tmp_path / "a", 5)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_devices_and_microbatches_change_nothing() -> None:
    def vowels_again(variables: Any, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
        return jnp.sum((tokens % 4 == 0) & (segment_ids == 1), axis=1).astype(jnp.float32)

    found: list[Any] = []
    for devices, strategy, accumulation in ((1, "ddp", 1), (4, "zero3", 1), (1, "ddp", 4)):
        iteration, layout = made(
            DeviceReward(vowels_again),
            lora=None,
            devices=devices,
            strategy=strategy,
            accumulation=accumulation,
        )
        state = begun(layout).replace(step=jax.device_put(np.int32(RESTING), layout.shardings.step))
        state, metrics = iteration(state, layout.put(Prompts()[0]))
        held_out = iteration.measure(state, [Prompts()[7], Prompts()[8]], Prompts().record)
        found.append((arrays(state), jax.device_get(metrics), held_out))
    for weights, metrics, held_out in found[1:]:
        for one, other in zip(found[0][0], weights, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-4)
        for name in ("reward", "kl", "loss", "grad_norm", "entropy", "tokens"):
            assert metrics[name] == pytest.approx(found[0][1][name], rel=2e-3, abs=1e-6), name
        assert held_out == pytest.approx(found[0][2], rel=1e-3)


def test_rows_and_meshes_that_do_not_fit_are_refused() -> None:
    def over(mesh: MeshConfig, devices: int) -> Layout:
        model = Decoder(SPEC, Execution(dtype="float32"))
        return Layout(make_mesh(mesh, "ddp", jax.devices()[:devices]), make_rules("ddp"), model, None)

    one, eight = over(MeshConfig(data=1), 1), over(MeshConfig(data=8), 8)
    with pytest.raises(LayoutError, match=r"8 rows, which do not divide into 2 minibatches .* multiple of 6"):
        check_rows(one, P, SETTINGS, 3)
    with pytest.raises(LayoutError, match=r"batch_size=4 prompts do not divide over 8 data-parallel devices"):
        check_rows(eight, P, RolloutConfig(group=2), 1)
    with pytest.raises(LayoutError, match=r"mesh.context=2: rollouts are written token by token"):
        check_rows(over(MeshConfig(context=2), 2), P, SETTINGS, 1)
