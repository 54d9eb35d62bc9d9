"""What is read from the text of a compiled program, against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hllm_jax.parallel.planning.hlo import Collective, Program
from hllm_jax.testing.training import Bigram, ToyBatches, toy_layout, toy_step

MESH = {"data": 2, "fsdp": 4}

ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""

# Three turns of a loop, each with an all-gather of bf16[8,16] and a product [32,8] x [8,16].
LOOP = (
    "HloModule loop\n"
    + ADD
    + """
%body (state: (s32[], f32[32,16])) -> (s32[], f32[32,16]) {
  %state = (s32[], f32[32,16]{1,0}) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %sums = f32[32,16]{1,0} get-tuple-element(%state), index=1
  %part = bf16[2,16]{1,0} constant({...})
  %whole = bf16[8,16]{1,0} all-gather(%part), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %rows = bf16[32,8]{1,0} constant({...})
  %product = f32[32,16]{1,0} dot(%rows, %whole), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], f32[32,16]{1,0}) tuple(%turn, %product)
}

%condition (state: (s32[], f32[32,16])) -> pred[] {
  %state.1 = (s32[], f32[32,16]{1,0}) parameter(0)
  %turn.1 = s32[] get-tuple-element(%state.1), index=0
  %last = s32[] constant(3)
  ROOT %more = pred[] compare(%turn.1, %last), direction=LT
}

ENTRY %main (x: f32[32,16]) -> f32[32,16] {
  %x = f32[32,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[32,16]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[32,16]{1,0}) while(%begin), condition=%condition, body=%body
  ROOT %out = f32[32,16]{1,0} get-tuple-element(%loop), index=1
}
"""
)


def entry(*lines: str) -> Program:
    """A program of these lines, each the right side of an instruction, on a parameter `%x`."""
    made = "\n".join(f"  %made.{number} = {line}" for number, line in enumerate(lines))
    return Program(
        f"HloModule m\n{ADD}\nENTRY %main (x: f32[4,8]) -> f32[4,8] {{\n"
        f"  %x = f32[4,8]{{1,0}} parameter(0)\n{made}\n  ROOT %out = f32[4,8]{{1,0}} copy(%x)\n}}\n"
    )


def only(program: Program) -> Collective:
    (found,) = program.collectives(MESH)
    return found


def test_bodies_of_loops_count_as_often_as_they_run() -> None:
    program = Program(LOOP)
    gather = only(program)
    assert (gather.op, gather.axis, gather.count) == ("all-gather", "fsdp", 3)
    assert (gather.elements, gather.bytes) == (3 * 8 * 16, 3 * 8 * 16 * 2)
    assert program.flops() == (3 * 2 * 32 * 8 * 16, 0)


def test_a_known_trip_count_goes_before_the_condition() -> None:
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    program = Program(LOOP.replace("body=%body", "body=%body" + known))
    assert only(program).count == 5


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", "fsdp"),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", "data"),
        ("replica_groups={{0,1,2,3,4,5,6,7}}", "data+fsdp"),
        ("replica_groups={}", "data+fsdp"),
        ("replica_groups=[2,4]<=[8]", "fsdp"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "data"),
        ("replica_groups=[1,8]<=[8]", "data+fsdp"),
    ],
)
def test_the_axis_is_read_from_the_groups(groups: str, axis: str) -> None:
    program = entry(f"f32[4,8]{{1,0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add")
    found = only(program)
    assert (found.axis, found.count, found.bytes, found.ring_bytes) == (axis, 1, 128, 256)


def test_groups_of_one_device_send_nothing() -> None:
    groups = "replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}"
    program = entry(f"f32[4,8]{{1,0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add")
    assert program.collectives(MESH) == []


def test_a_reduce_scatter_moves_what_it_takes() -> None:
    found = only(
        entry(
            "f32[1,8]{1,0} reduce-scatter(%x), channel_id=1, replica_groups=[2,4]<=[8], "
            "dimensions={0}, to_apply=%add"
        )
    )
    assert (found.op, found.elements, found.bytes, found.ring_bytes) == ("reduce-scatter", 32, 128, 128)


def test_what_starts_and_is_done_later_counts_once() -> None:
    groups = "channel_id=1, replica_groups=[2,4]<=[8]"
    gather = entry(
        f"(f32[4,8]{{1,0}}, f32[16,8]{{1,0}}) all-gather-start(%x), {groups}, dimensions={{0}}",
        "f32[16,8]{1,0} all-gather-done(%made.0)",
    )
    assert (only(gather).count, only(gather).bytes) == (1, 16 * 8 * 4)
    reduction = entry(
        f"f32[4,8]{{1,0}} all-reduce-start(%x), {groups}, to_apply=%add",
        "f32[4,8]{1,0} all-reduce-done(%made.0)",
    )
    assert (only(reduction).count, only(reduction).bytes) == (1, 128)
    permute = entry(
        "(f32[4,8]{1,0}, f32[4,8]{1,0}, u32[], u32[]) collective-permute-start(%x), channel_id=1, "
        "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}",
        "f32[4,8]{1,0} collective-permute-done(%made.0)",
    )
    assert (only(permute).op, only(permute).axis) == ("collective-permute", "fsdp")
    assert (only(permute).count, only(permute).bytes) == (1, 128)


def test_what_goes_between_slices_is_a_send_to_the_host() -> None:
    """As the TPU compiler writes the sum over two slices of 4: inside of each, then of the parts."""

    def through_host(op: str, operands: str, size: str = "f32[2,8]{1,0}") -> str:
        return (
            f"({size}, u32[], token[]) {op}({operands}), channel_id=4, is_host_transfer=true, "
            'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
            '_xla_host_transfer_rendezvous="psum.1_0",_xla_megascale_transfer_type="ALL_REDUCE"}'
        )

    program = entry(
        "f32[2,8]{1,0} reduce-scatter(%x), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}",
        "token[] after-all()",
        through_host("send", "%made.0, %made.1"),
        through_host("recv", "%made.1"),
    )
    inside, between = sorted(program.collectives({"data": 2, "fsdp": 4}, 2), key=lambda each: each.bytes)[
        ::-1
    ]
    assert (inside.op, inside.axis, inside.bytes, inside.between_slices) == (
        "reduce-scatter",
        "fsdp",
        256,
        False,
    )
    assert (between.op, between.axis, between.count) == ("all-reduce", "data", 1)
    assert (between.bytes, between.ring_bytes, between.between_slices) == (64, 128, True)


def test_several_arrays_in_one_collective() -> None:
    found = only(
        entry(
            "(f32[4,8]{1,0}, bf16[10]{0}) all-reduce(%x, %x), channel_id=1, replica_groups=[1,8]<=[8], "
            "to_apply=%add"
        )
    )
    assert (found.count, found.elements, found.bytes) == (1, 42, 128 + 20)


def test_what_is_computed_again_is_reported_apart() -> None:
    again = ', metadata={op_name="jit(step)/transpose(jvp())/rematted_computation/dot_general"}'
    product = "f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}"
    assert entry(product, product + again).flops() == (2 * 2 * 4 * 8 * 4, 2 * 4 * 8 * 4)


def test_the_branches_of_a_conditional_are_found() -> None:
    text = LOOP.replace(
        "while(%begin), condition=%condition, body=%body",
        "conditional(%zero, %begin), branch_computations={%body}",
    )
    assert only(Program(text)).count == 1


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        Program("module @jit_step {}")


def test_products_in_a_scan_of_a_live_program() -> None:
    """Seven turns of [16, 32] x [32, 32]."""

    def steps(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 32), (7, 32, 32))]
    text = jax.jit(steps).lower(*shapes).compile().as_text()
    assert Program(text).flops() == (7 * 2 * 16 * 32 * 32, 0)


def test_a_convolution_counts_the_places_inside_its_input() -> None:
    """3 x 3 without padding over 8 x 8: 36 positions, 9 places of the window, 3 channels in and 5 out."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 8, 8, 3), (3, 3, 3, 5))]
    text = jax.jit(convolve).lower(*shapes).compile().as_text()
    assert Program(text).flops()[0] == 2 * 36 * 9 * 3 * 5


def test_axes_of_a_live_program() -> None:
    """A sum over one axis of a mesh of 2 x 4 devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    for axis, size in (("data", 2), ("fsdp", 4)):
        mapped = jax.shard_map(
            lambda x, axis=axis: jax.lax.psum(x, axis),
            mesh=mesh,
            in_specs=PartitionSpec(("data", "fsdp")),
            out_specs=PartitionSpec("data" if axis == "fsdp" else "fsdp"),
        )
        where = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        x = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=where)
        found = only(Program(jax.jit(mapped).lower(x).compile().as_text()))
        assert (found.op, found.axis, found.bytes, size) == ("all-reduce", axis, 8 * 4, mesh.shape[axis])


def test_data_parallel_training_reduces_every_gradient_once() -> None:
    layout = toy_layout("ddp", 8, model=Bigram())
    batch = layout.put(ToyBatches()[0])
    text = toy_step(layout).lower(layout.abstract_state, batch).compile().as_text()
    found = Program(text).collectives(dict(layout.mesh.shape))
    weights = sum(leaf.size for leaf in jax.tree.leaves(layout.abstract_state.trainable))
    reduced = sum(each.elements for each in found if each.op == "all-reduce")
    assert {each.axis for each in found} == {"data"}
    assert {each.op for each in found} == {"all-reduce"}
    assert 0 <= reduced - weights < 16, "the gradient, and some scalars"


@pytest.mark.parametrize(
    ("call", "mask", "expected"),
    [
        ("fmhaScaleBiasSoftmax", "CAUSAL", 2 * 2 * 8 * 9 / 2),
        ("fmhaSoftmax", "NO_MASK", 2 * 2 * 8 * 8),
        ("fmhaSoftmaxBackward", "PADDING_CAUSAL", 5 * 2 * 8 * 9 / 2),
    ],
)
def test_attention_of_cudnn_counts_its_products(call: str, mask: str, expected: float) -> None:
    """Two rows of 8 tokens, 4 heads of 16 numbers on 2 of keys: 2·4·16 numbers for every pair of tokens."""
    program = entry(
        "bf16[2,8,4,16]{3,2,1,0} parameter(1)",
        "bf16[2,8,2,16]{3,2,1,0} parameter(2)",
        "(bf16[2,4,8,16]{3,1,2,0}, f32[2,4,8]{2,1,0}) custom-call(%made.0, %made.1, %made.1), "
        f'custom_call_target="__cudnn${call}", backend_config={{"mask_type": "{mask}"}}',
    )
    assert program.flops() == (2 * 4 * 16 * expected, 0)
