"""Every way to spread a model trains the same model."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from hllm_jax.models.config import Execution, LoRAConfig, Remat
from hllm_jax.models.layout import stack_layers
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.nn.config import Experts
from hllm_jax.objectives.language_model import causal_lm
from hllm_jax.parallel import Layout, MeshConfig, TrainState, make_mesh, make_rules
from hllm_jax.parallel.config import Strategy
from hllm_jax.parallel.planning import Collective, Program
from hllm_jax.testing.models import draw_params
from hllm_jax.training import OptimizerConfig, ScheduleConfig, make_optimizer, make_train_step
from hllm_jax.training.step import TrainStep

VOCAB, LENGTH, ROWS = 64, 16, 16


def spec(**changes: Any) -> DecoderConfig:
    """A decoder whose every axis divides by 8."""
    sizes = {"vocab_size": VOCAB, "embed": 32, "layers": 4, "heads": 8, "kv_heads": 8, "mlp": 64}
    return DecoderConfig(**(sizes | {"max_length": LENGTH} | changes))  # pyrefly: ignore


def batch(n: int) -> dict[str, np.ndarray]:
    """Ragged packed rows; the last one is all padding."""
    rng = np.random.default_rng(n)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    ends = rng.integers(1, LENGTH + 1, ROWS)
    ends[-1] = 0
    places = np.arange(LENGTH)[None, :]
    held = places < ends[:, None]
    segments = np.where(held, 1 + (places >= ends[:, None] // 2), 0).astype(np.int32)
    starts = np.where(segments == 2, ends[:, None] // 2, 0)
    return {
        "tokens": tokens,
        "targets": (5 * tokens + 3) % VOCAB,
        "weights": (held * rng.integers(0, 2, tokens.shape)).astype(np.float32),
        "segment_ids": segments,
        "positions": np.where(held, places - starts, 0).astype(np.int32),
    }


def parts(
    strategy: Strategy,
    mesh: dict[str, int],
    devices: int,
    accumulation: int = 1,
    remat: Remat = "none",
    scan: bool = True,
    lora: LoRAConfig | None = None,
    **changes: Any,
) -> tuple[Layout, TrainStep]:
    model = spec(**changes).build(Execution(dtype="float32", scan_layers=scan, remat=remat))
    optimizer = make_optimizer(OptimizerConfig(), ScheduleConfig(peak=0.003, warmup=0), 100)
    placed = make_mesh(MeshConfig(**mesh), strategy, jax.devices()[:devices])
    layout = Layout(placed, make_rules(strategy), model, optimizer, adapters=lora)
    return layout, make_train_step(causal_lm(model), optimizer, layout, accumulation)


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_half_precision_parameters_with_master_weights(strategy: Strategy) -> None:
    """Mixed precision follows the same path on a mesh; a CPU sums its gradients in float32."""
    model = spec().build(Execution(dtype="float32", param_dtype="bfloat16", scan_layers=True))
    optimizer = make_optimizer(OptimizerConfig(master_dtype="float32"), ScheduleConfig(peak=0.003), 100)

    def losses(devices: int) -> list[float]:
        placed = make_mesh(MeshConfig(), strategy, jax.devices()[:devices])
        layout = Layout(placed, make_rules(strategy), model, optimizer)
        step = make_train_step(causal_lm(model), optimizer, layout, 1, "bfloat16")
        found, state = trained(layout, step, 3)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.trainable)} == {"bfloat16"}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state["master"])} == {"float32"}
        return found

    np.testing.assert_allclose(losses(8), losses(1), rtol=0, atol=2e-3)


def trained(layout: Layout, step: TrainStep, updates: int) -> tuple[list[float], TrainState]:
    state, losses = begun(layout), []
    for n in range(updates):
        state, metrics = step(state, layout.put(batch(n)))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


@pytest.fixture(scope="module")
def alone() -> dict[int, tuple[list[float], TrainState]]:
    """What one device makes of it, dense and with experts."""
    return {
        0: trained(*parts("ddp", {}, 1), 20),
        4: trained(*parts("ddp", {}, 1, experts=Experts(count=4, per_token=2)), 20),
    }


#: In the fast suite: each strategy once, and pairs of them.
CASES: list[tuple[Strategy, dict[str, int], dict[str, Any]]] = [
    ("ddp", {}, {}),
    ("zero2", {}, {"accumulation": 2}),
    ("zero3", {}, {"remat": "full", "accumulation": 2}),
    ("hsdp", {"data": 2, "fsdp": 4}, {}),
    ("zero1", {"data": 2, "fsdp": 2, "tensor": 2}, {"accumulation": 4}),
    ("zero3", {"fsdp": 2, "expert": 4}, {"experts": Experts(count=4, per_token=2)}),
    ("zero3", {"fsdp": 4, "context": 2}, {}),
]
MORE: list[tuple[Strategy, dict[str, int], dict[str, Any]]] = [
    ("zero1", {}, {}),
    ("zero3", {}, {}),
    ("zero3", {"fsdp": 8}, {"scan": False}),
    ("zero3", {"fsdp": 4, "tensor": 2}, {"remat": "offload"}),
    ("ddp", {"data": 2, "context": 2, "tensor": 2}, {"accumulation": 2}),
    ("tensor", {}, {}),
    ("zero2", {"fsdp": 4, "tensor": 2}, {}),
    ("zero3", {"data": 2, "fsdp": 2, "tensor": 2}, {"remat": "selective"}),
    ("hsdp", {"data": 2, "fsdp": 2, "tensor": 2}, {"accumulation": 2}),
    ("zero2", {"data": 2, "expert": 2, "tensor": 2}, {"experts": Experts(count=4, per_token=2)}),
]


@pytest.mark.parametrize(
    ("strategy", "mesh", "options"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_training_is_that_of_one_device(
    strategy: Strategy, mesh: dict[str, int], options: dict[str, Any], alone: Any
) -> None:
    wanted_losses, wanted = alone[options["experts"].count if "experts" in options else 0]
    losses, state = trained(*parts(strategy, mesh, 8, **options), 20)
    np.testing.assert_allclose(losses, wanted_losses, rtol=0, atol=1e-5)
    if options.get("scan", True):
        assert_close(state.trainable, wanted.trainable)


@pytest.mark.parametrize(
    ("strategy", "mesh", "options"),
    [
        ("zero3", {"fsdp": 4, "tensor": 2}, {"dora": True}),
        pytest.param("zero3", {}, {"base": "nf4"}, marks=pytest.mark.slow),
        pytest.param("zero2", {}, {"base": "int8"}, marks=pytest.mark.slow),
        pytest.param("ddp", {"data": 4, "context": 2}, {}, marks=pytest.mark.slow),
    ],
)
def test_adapters_train_as_on_one_device(
    strategy: Strategy, mesh: dict[str, int], options: dict[str, Any]
) -> None:
    """Their base lies as the rules say, is gathered where it is used, and does not move."""
    lora = LoRAConfig(rank=2, **options)
    settings: dict[str, Any] = {"accumulation": 2, "lora": lora, "layers": 1}
    wanted_losses, wanted = trained(*parts(strategy, {}, 1, **settings), 5)
    layout, step = parts(strategy, mesh, 8, **settings)
    before = jax.device_get(begun(layout))
    losses, state = trained(layout, step, 5)
    np.testing.assert_allclose(losses, wanted_losses, rtol=0, atol=1e-5)
    assert_close(state.trainable, wanted.trainable)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, before.frozen)
    moved = jax.tree.map(np.array_equal, state.trainable, before.trainable)
    assert not any(jax.tree.leaves(moved))


def begun(layout: Layout) -> TrainState:
    """A fresh state; a base in few bits is read, not drawn."""
    if layout.adapters is None or layout.adapters.base == "none":
        return layout.init(1)
    params = stack_layers(draw_params(layout.model.config))

    def load(put: Any) -> dict[str, Any]:
        flat = flatten_dict(params, sep="/")
        return unflatten_dict({path: put(path, leaf) for path, leaf in flat.items()}, sep="/")

    return layout.init(1, load)


def assert_close(found: Any, wanted: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, wanted)


def collectives(
    strategy: Strategy, mesh: dict[str, int], **options: Any
) -> tuple[list[Collective], int, int]:
    """Those of a compiled step; the parameters of the model, and of its embedding."""
    layout, step = parts(strategy, mesh, 8, **options)
    compiled = step.lower(layout.abstract_state, layout.put(batch(0))).compile()
    sizes = dict(layout.mesh.shape)
    count = sum(leaf.size for leaf in jax.tree.leaves(layout.abstract_state.trainable))
    return Program(compiled.as_text()).collectives(sizes), count, spec().vocab_size * spec().embed


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("strategy", "volume"), [("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 3)])
def test_what_is_sent_is_what_the_paper_says(strategy: Strategy, volume: int, accumulation: int) -> None:
    """Rajbhandari et al. 2020, section 7: 2Ψ, and 3Ψ for stage 3; ddp and stage 1 reduce once an update."""
    found, parameters, embedding = collectives(strategy, {}, accumulation=accumulation)
    sent = sum(each.ring_elements for each in found)
    wanted = volume * parameters
    if strategy == "zero3":
        wanted = accumulation * (wanted - embedding)  # which is used once more, but gathered once
    elif strategy == "zero2":
        wanted = (1 + accumulation) * parameters  # a microbatch's gradient is scattered when it is known
    assert abs(sent / wanted - 1) < 0.05, (sent / parameters, found)
    assert {each.axis for each in found} == {"data" if strategy == "ddp" else "fsdp"}


def test_tensor_parallel_layers_send_activations_and_never_a_weight() -> None:
    """Shoeybi et al. 2019, section 3: an all-reduce after each half of a layer, forwards and backwards.

    The compiler for CPUs reduces the gradients of query, key, value, and of gate and up, apart: 2 + 5 instead
    of the 2 + 2 of the one for TPUs.
    """
    found, _, _ = collectives("zero3", {"fsdp": 4, "tensor": 2})
    over = [each for each in found if "tensor" in each.axis]
    assert {each.op for each in over} == {"all-reduce"}
    activations = ROWS // 4 * LENGTH * spec().embed
    layers = sum(each.elements for each in over if each.axis == "tensor") / activations / spec().layers
    assert 4 <= layers < 8  # the head and the embedding send some too


def test_only_what_is_gathered_comes_again() -> None:
    """Without remat nothing is computed again but the gathering of parameters, where they are gathered."""

    def traced(strategy: Strategy, devices: int, **mesh: int) -> str:
        layout, step = parts(strategy, mesh, devices)
        state = layout.abstract_state
        return str(step.jitted.trace(state.replace(frozen={}), state.frozen, layout.put(batch(0))).jaxpr)

    assert "remat2[" not in traced("zero3", 1)
    assert "remat2[" not in traced("zero1", 8)
    for mesh in ({}, {"fsdp": 4, "tensor": 2}):
        text = traced("zero3", 8, **mesh)
        assert "remat2[" in text
        # Seven matrices of a layer, forwards and backwards, and the embedding.
        assert text.count("all_gather[") == 2 * 7 + 1
