"""A pipeline of stages computes what one device does: GPipe and the circular schedule."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hllm_jax.inspection import inspect_sharding
from hllm_jax.models import init_cache
from hllm_jax.models.config import Execution
from hllm_jax.models.spec import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from hllm_jax.nn.config import Experts
from hllm_jax.objectives.language_model import causal_lm
from hllm_jax.objectives.sequence_to_sequence import seq2seq
from hllm_jax.parallel import Layout, LayoutError, MeshConfig, PipelineConfig, make_mesh, make_rules
from hllm_jax.parallel.config import pipeline_words
from hllm_jax.parallel.pipeline import Pipeline, exchange, problems_of
from hllm_jax.parallel.planning import Program
from hllm_jax.training import Checkpoints, OptimizerConfig, ScheduleConfig, make_optimizer, make_train_step
from hllm_jax.training.step import TrainStep, make_eval_step

VOCAB, LENGTH, ROWS = 32, 8, 16
SCANNED = Execution(dtype="float32", scan_layers=True)


# ---- the schedule alone, with layers that are one product ----------------------------------------------


def layer(weights: Any, x: jax.Array, context: Any, key: jax.Array | None) -> jax.Array:
    """Reads its rows' own context, and what is the same for all."""
    noise = 0.0 if key is None else jax.random.uniform(key, x.shape)
    return x + jnp.tanh(x @ weights["w"]) * context["ids"][:, :, None] + context["bias"] + noise


def in_a_row(weights: Any, x: jax.Array, context: Any) -> jax.Array:
    """The layers one after the other."""
    for n in range(weights["w"].shape[0]):
        x = layer({"w": weights["w"][n]}, x, context, None)
    return x


def given(layers: int, rows: int = ROWS, dtype: Any = jnp.float32) -> tuple[Any, jax.Array, Any]:
    """Weights, stream `[B, 4, 8]` and context."""
    rng = np.random.default_rng(0)
    weights = {"w": jnp.asarray(rng.normal(size=(layers, 8, 8)), dtype)}
    context = {
        "ids": jnp.asarray(rng.integers(0, 3, (rows, 4)), dtype),
        "bias": jnp.asarray(rng.normal(size=(1, 4, 8)), dtype),
    }
    return weights, jnp.asarray(rng.normal(size=(rows, 4, 8)), dtype), context


def piped(stages: int, key: Any = None, layer: Any = layer, sums: Any = jnp.float32, **config: Any) -> Any:
    """`(weights, x, context) -> x` by a pipeline of so many devices, and where its arrays are put."""
    mesh = make_mesh(MeshConfig(stage=stages), "ddp", jax.devices()[:stages])
    pipeline = Pipeline(PipelineConfig(**config), stages, sums)  # CPUs add up nothing shorter than float32

    def apply(weights: Any, x: jax.Array, context: Any) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return pipeline(layer, weights, x, context, key)

    return apply, NamedSharding(mesh, PartitionSpec())


@pytest.mark.parametrize(
    ("stages", "microbatches", "repeats", "layers"), [(2, 4, 1, 4), (4, 2, 1, 4), (4, 8, 2, 8), (2, 4, 3, 6)]
)
def test_values_and_gradients_are_those_of_the_layers_in_a_row(
    stages: int, microbatches: int, repeats: int, layers: int
) -> None:
    """In float64, where no rounding hides what the layers themselves would blow up."""

    def gradient(function: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda *each: jnp.sum(jnp.sin(function(*each))), argnums=(0, 1, 2)))

    with jax.enable_x64():
        arrays = given(layers, dtype=jnp.float64)
        apply, everywhere = piped(stages, sums=jnp.float64, microbatches=microbatches, repeats=repeats)
        wanted = gradient(in_a_row)(*arrays)
        found = gradient(apply)(*jax.device_put(arrays, everywhere))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, wanted)


def test_every_layer_and_microbatch_has_its_own_dropout() -> None:
    weights, x, context = given(4)
    weights, context = {"w": jnp.zeros_like(weights["w"])}, jax.tree.map(jnp.zeros_like, context)
    apply, everywhere = piped(2, jax.random.key(0), microbatches=4, repeats=2)
    noise = np.asarray(jax.jit(apply)(*jax.device_put((weights, x, context), everywhere))) - np.asarray(x)
    # Four layers add a uniform number each.
    assert abs(noise.mean() - 2.0) < 0.1
    assert np.unique(noise.round(5)).size > 0.95 * noise.size
    assert abs(noise.var() - 4 / 12) < 0.05  # four times the same draw would have 16 / 12


def test_gradients_of_half_precision_weights_are_added_up_in_float32() -> None:
    """Of 16 microbatches the last, with which the backward pass begins, hides the others in bfloat16."""
    weights, x, context = given(2, dtype=jnp.bfloat16)
    weights, context = jax.tree.map(jnp.zeros_like, weights), jax.tree.map(jnp.ones_like, context)
    context["bias"] = jnp.zeros_like(context["bias"])
    apply, everywhere = piped(2, microbatches=16)
    x = jnp.ones_like(x).at[-1].set(256.0)

    def total(weights: Any, x: jax.Array, context: Any) -> jax.Array:
        return jnp.sum(apply(weights, x, context).astype(jnp.float32))

    gradient = jax.jit(jax.grad(total))(*jax.device_put((weights, x, context), everywhere))["w"]
    assert gradient.dtype == jnp.bfloat16
    # 4 positions of 256 and 15 x 4 of 1: 1084, which bfloat16 rounds to 1088; in it 1024 + 4 is 1024.
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), 1088.0)


def test_a_microbatch_more_costs_the_streams_between_stages_alone() -> None:
    """Of 4 layers a stage, each 16 times as wide inside, nothing is kept but what came into the stage."""
    rows, length, width, layers = 4, 16, 64, 8

    def wide(weights: Any, x: jax.Array, context: Any, key: Any) -> jax.Array:
        return x + jnp.tanh(x @ weights["up"]) @ weights["down"]

    def temporaries(microbatches: int) -> int:
        apply, everywhere = piped(2, layer=wide, microbatches=microbatches)
        by_stage = NamedSharding(everywhere.mesh, PartitionSpec("stage"))

        def total(weights: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(apply(weights, x, {}) ** 2)

        def shape(*sizes: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=by_stage)

        weights = {"up": shape(layers, width, 16 * width), "down": shape(layers, 16 * width, width)}
        x = shape(rows * microbatches, length, width)
        compiled = jax.jit(jax.grad(total)).lower(weights, x).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    stream = rows * length * width * 4
    growth = (temporaries(16) - temporaries(4)) / 12
    # What came in, the buffer of inputs and results, and copies of both: the inside of one layer is 16.
    assert growth < 8 * stream, growth / stream


def test_runs_of_layers_are_exchanged_by_permutations() -> None:
    for stages in range(1, 9):
        for rounds in range(1, 7):
            held = np.arange(stages * rounds).reshape(stages, rounds)
            dealt = np.full((stages, rounds), -1)
            steps = exchange(stages, rounds)
            assert len(steps) == rounds
            for sent, received, pairs in steps:
                assert sorted(a for a, _ in pairs) == sorted(b for _, b in pairs) == list(range(stages))
                for source, target in pairs:
                    dealt[target, received[target]] = held[source, sent[source]]
            wanted = np.arange(stages * rounds).reshape(rounds, stages).T
            np.testing.assert_array_equal(dealt, wanted)


# ---- numbers, and what is refused ----------------------------------------------------------------------


def test_the_bubble_is_that_of_the_papers() -> None:
    assert PipelineConfig(microbatches=8).bubble(4) == 3 / 11  # Huang et al. 2019: (K - 1) / (M + K - 1)
    for repeats in (1, 2, 4):  # Narayanan et al. 2021, section 2.2: bubble to work is (p - 1) / (v·m)
        bubble = PipelineConfig(microbatches=8, repeats=repeats).bubble(4)
        np.testing.assert_allclose(bubble / (1 - bubble), 3 / (8 * repeats))
    assert PipelineConfig().bubble(1) == 0.0
    facts = PipelineConfig(microbatches=8, repeats=2).facts(4)
    assert facts is not None
    assert pipeline_words(facts) == (
        "pipeline of 4 stages, circular of 2 rounds, 8 microbatches: a bubble of 15.8 %"
    )
    assert PipelineConfig().facts(1) is None


def test_the_drawing_of_a_configuration_says_the_bubble() -> None:
    stages = ["mesh.stage=4", "mesh.fsdp=2", "pipeline.microbatches=8"]
    found = inspect_sharding("configs/pretrain/tiny.yaml", [*stages, "model.scan_layers=true"])
    assert found["pipeline"] == PipelineConfig(microbatches=8).facts(4)
    with pytest.raises(LayoutError, match="unrolled"):
        inspect_sharding("configs/pretrain/tiny.yaml", stages)


@pytest.mark.parametrize(
    ("changes", "execution", "pipeline", "stages", "message"),
    [
        ({}, Execution(), {}, 2, "unrolled: model.scan_layers=true"),
        ({"layers": 6}, SCANNED, {}, 4, r"layers=6 .* mesh.stage=4 x pipeline.repeats=1 = 4 runs; 4 or 8"),
        ({"layers": 8}, SCANNED, {"repeats": 3}, 2, "= 6 runs; 6 or 12 would"),
        (
            {"attention_pattern": ("full", "window"), "window": 4},
            SCANNED,
            {},
            4,
            r"x 2 \(its pattern\) = 8 runs; 8 would",
        ),
        ({}, SCANNED, {"repeats": 2, "microbatches": 1}, 2, "microbatches=1 is less than mesh.stage=2"),
        ({"experts": Experts(count=4, per_token=2)}, SCANNED, {}, 2, "keep its experts balanced"),
    ],
)
def test_what_cannot_be_a_pipeline_says_why(
    changes: Any, execution: Execution, pipeline: Any, stages: int, message: str
) -> None:
    mesh = make_mesh(MeshConfig(stage=stages), "ddp", jax.devices()[:stages])
    with pytest.raises(LayoutError, match=message):
        Layout(
            mesh,
            make_rules("ddp"),
            spec(**changes).build(execution),
            None,
            pipeline=PipelineConfig(**pipeline),
        )


def test_layers_that_are_one_are_no_pipeline() -> None:
    assert (
        "all its layers are one"
        in problems_of(PipelineConfig(), 2, EncoderConfig(shared_layers=True), SCANNED)[0]
    )
    assert problems_of(PipelineConfig(), 2, None, None) == ["it has no stack of layers"]
    assert problems_of(PipelineConfig(microbatches=8), 1, None, None) == []


def test_a_batch_divides_into_microbatches_and_over_stages() -> None:
    layout, _ = parts({"stage": 2, "data": 2}, {"microbatches": 3})
    layout.check_batch(24, 2)
    with pytest.raises(LayoutError, match=r"pipeline.microbatches=3 and over mesh.stage=2; 12 or 24 would"):
        layout.check_batch(16, 1)
    with pytest.raises(ValueError, match="16 rows do not divide into 3 microbatches and over 2 stages"):
        piped(2, microbatches=3)[0](*given(2))


# ---- training ------------------------------------------------------------------------------------------


def spec(**changes: Any) -> DecoderConfig:
    sizes = {"vocab_size": VOCAB, "embed": 16, "layers": 4, "heads": 4, "kv_heads": 4, "mlp": 32}
    return DecoderConfig(**(sizes | {"max_length": LENGTH} | changes))  # pyrefly: ignore


def batch(n: int) -> dict[str, np.ndarray]:
    """Packed rows of two documents each, whose border differs; positions and segments belong to their row."""
    rng = np.random.default_rng(n)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    places, borders = np.arange(LENGTH)[None, :], rng.integers(1, LENGTH, (ROWS, 1))
    second = places >= borders
    return {
        "tokens": tokens,
        "targets": (5 * tokens + 3) % VOCAB,
        "weights": rng.integers(0, 2, tokens.shape).astype(np.float32),
        "segment_ids": np.where(second, 2, 1).astype(np.int32),
        "positions": np.where(second, places - borders, places).astype(np.int32),
    }


def parts(
    mesh: dict[str, int],
    pipeline: dict[str, int] | None = None,
    strategy: Any = "ddp",
    accumulation: int = 1,
    **changes: Any,
) -> tuple[Layout, TrainStep]:
    model = spec(**changes).build(SCANNED)
    optimizer = make_optimizer(OptimizerConfig(), ScheduleConfig(peak=0.003, warmup=0), 100)
    devices = int(np.prod(list(mesh.values()), dtype=int))
    placed = make_mesh(MeshConfig(**mesh), strategy, jax.devices()[:devices])
    layout = Layout(
        placed, make_rules(strategy), model, optimizer, pipeline=PipelineConfig(**(pipeline or {}))
    )
    return layout, make_train_step(causal_lm(model), optimizer, layout, accumulation)


def trained(layout: Layout, step: TrainStep, updates: int = 20) -> tuple[list[float], Any]:
    state, losses = layout.init(1), []
    step.compile(state, layout.put(batch(0)))
    for n in range(updates):
        state, metrics = step(state, layout.put(batch(n)))
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def alone() -> tuple[list[float], Any]:
    return trained(*parts({"data": 1}))


CASES: list[Any] = [
    ({"stage": 2}, {"microbatches": 4, "repeats": 2}, {}),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ({"stage": 4}, {"microbatches": 8}, {}),
            ({"stage": 2, "tensor": 2}, {"repeats": 2}, {}),
            ({"stage": 2, "data": 2, "fsdp": 2}, {"repeats": 2}, {"strategy": "zero1", "accumulation": 2}),
            ({"stage": 2, "fsdp": 4}, {}, {"strategy": "zero3"}),
        ]
    ),
]


@pytest.mark.parametrize(("mesh", "pipeline", "options"), CASES)
def test_training_is_that_of_one_device(
    mesh: dict[str, int], pipeline: dict[str, int], options: Any, alone: Any, tmp_path: Path
) -> None:
    """Losses and parameters after 20 updates; layers lie on their stages, and come from nowhere else."""
    layout, step = parts(mesh, pipeline, **options)
    losses, state = trained(layout, step)
    wanted_losses, wanted = alone
    np.testing.assert_allclose(losses, wanted_losses, rtol=0, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), state.trainable, wanted.trainable
    )

    kernel = state.trainable["params"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape[0] == spec().layers // mesh["stage"]

    assert step.compiled is not None
    found = Program(step.compiled.as_text()).collectives(dict(layout.mesh.shape))
    over = {each.op: each for each in found if each.axis == "stage"}
    how = layout.pipeline
    ticks = how.repeats * how.microbatches_of(mesh["stage"]) + mesh["stage"] - 1
    assert over["collective-permute"].count >= 2 * ticks * options.get("accumulation", 1)
    # The rows of the batch are gathered, forwards and for the head's gradient; a layer would be more.
    rows = ROWS // (mesh.get("data", 1) * mesh.get("fsdp", 1))
    layers = sum(leaf.size for leaf in jax.tree.leaves(state.trainable["params"]["layers"]))
    gathered = over["all-gather"].elements if "all-gather" in over else 0
    assert gathered <= 4 * rows * LENGTH * spec().embed < layers

    # A checkpoint has the layers in their order, whatever the schedule.
    if options or mesh != {"stage": 2}:
        return
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
    single, _ = parts({"data": 1})
    opened, _ = Checkpoints(tmp_path, own=False).restore(single)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(opened), jax.device_get(state))


@pytest.mark.slow
def test_an_encoder_and_its_decoder_are_two_pipelines() -> None:
    """With GELU, for at the kink of a ReLU the last bit of a sum decides about a whole gradient, and with an
    eps above the rounding of a gradient, which AdamW would make a whole step of."""
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "embed": 16, "layers": 4, "heads": 4, "kv_heads": 4}
    changes: dict[str, Any] = {"mlp": 32, "max_length": LENGTH, "activation": "gelu"}
    model = EncoderDecoderConfig(**sizes, **changes).build(SCANNED)
    optimizer = make_optimizer(OptimizerConfig(eps=1e-4), ScheduleConfig(peak=0.003, warmup=0), 100)

    def rows(n: int) -> dict[str, np.ndarray]:
        read = batch(n)
        written = {f"decoder_{name}": read[name][::-1] for name in ("tokens", "segment_ids", "positions")}
        return {**read, **written}

    def after(stages: int, pipeline: PipelineConfig) -> tuple[list[float], Any]:
        mesh = make_mesh(MeshConfig(stage=stages), "ddp", jax.devices()[:stages])
        layout = Layout(mesh, make_rules("ddp"), model, optimizer, pipeline=pipeline)
        step = make_train_step(seq2seq(model), optimizer, layout)
        state, losses = layout.init(1), []
        for n in range(20):
            state, metrics = step(state, layout.put(rows(n)))
            losses.append(float(metrics["loss"]))
        return losses, state.trainable

    (wanted_losses, wanted), (losses, found) = after(1, PipelineConfig()), after(2, PipelineConfig(repeats=2))
    np.testing.assert_allclose(losses, wanted_losses, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, wanted)


def test_decoding_is_refused() -> None:
    layout, _ = parts({"stage": 2})
    cache = init_cache(spec(), 4, LENGTH, scan_layers=True)
    variables, tokens = layout.abstract_state.trainable, jnp.zeros((4, 2), jnp.int32)
    apply: Any = layout.model.apply
    with layout.activations(), pytest.raises(ValueError, match="keeps no keys and values"):
        jax.eval_shape(lambda variables: apply(variables, tokens, cache=cache), variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"attention_pattern": ("full", "window"), "window": 4, "position": "relative"}]
)
def test_evaluation_goes_through_the_pipeline_too(changes: dict[str, Any]) -> None:
    """A period of two layers is one of the units that are dealt out; a bias is the same for all rows."""
    layout, _ = parts({"stage": 2, "data": 2}, {"microbatches": 4}, **changes)
    single, _ = parts({"data": 1}, **changes)
    found, wanted = (
        make_eval_step(causal_lm(each.model), each)(each.init(0), each.put(batch(0)))
        for each in (layout, single)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


@pytest.mark.slow
def test_stages_may_be_processes(alone: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = Path(__file__).with_name("pipeline_process.py")
    environment = {**os.environ, "PYTHONPATH": str(program.parents[2]), "XLA_FLAGS": ""}
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    started = [
        subprocess.Popen([sys.executable, str(program), str(port), str(index), str(file)], env=environment)
        for index, file in enumerate(files)
    ]
    try:
        assert [process.wait(240) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    for file in files:
        np.testing.assert_allclose(json.loads(file.read_text("utf-8")), alone[0][:3], rtol=0, atol=1e-5)
