"""What chips send one another: read from a program's text, and of a program that this machine's devices run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxft.analysis.flops import Flops
from jaxft.training import make_mesh
from jaxft.training.planning.collectives import Collective, collectives, of_text
from jaxft.training.planning.plan import Compiled, Plan
from jaxft.training.planning.roofline import CHIPS, roofline

TEXT = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%body.1 (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %p = (s32[], f32[64,32]{1,0}) parameter(0)
  %ag = bf16[64,32]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[64,32]{1,0}) tuple(%i, %y)
}

%cond.1 (p: (s32[], f32[64,32])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[64,32]{1,0}) while(%init), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"12"}}
  %ar = (f32[16]{0}, f32[4]{0}) all-reduce(%u, %v), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %rs = f32[4,8]{1,0} reduce-scatter(%z), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %named = f32[6]{0} all-reduce(%n), replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=1] {'axis_1'}, to_apply=%add
  %part = f32[2]{0} all-reduce(%n), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1':(1)2}, to_apply=%add
  %other = f32[2]{0} all-reduce(%n), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1':2}, to_apply=%add
  %cps = (f32[10]{0}, f32[10]{0}, u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,4},{4,0}}
  %cpd = f32[10]{0} collective-permute-done(%cps)
  ROOT %alone = f32[8]{0} all-reduce(%k), channel_id=5, replica_groups={{0},{1}}, to_apply=%add
}
"""  # noqa: E501


def test_kinds_axes_turns_and_bytes_are_read_from_a_programs_text():
  assert of_text(TEXT, make_mesh(data=2, fsdp=4)) == (
      Collective("all-gather", "fsdp", 12, 12 * 64 * 32 * 2 * 3 // 4),
      Collective("reduce-scatter", "data+fsdp", 1, 8 * 4 * 8 * 4 * 7 // 8),
      Collective("all-reduce", "data", 1, 2 * 20 * 4 // 2),
      Collective("all-reduce", "fsdp", 2, 2 * 24 * 3 // 4 + 2 * 8 // 2),
      Collective("collective-permute", "data", 1, 40),
      Collective("all-reduce", "unknown", 1, 2 * 8 * 7 // 8))


TPU = """HloModule jit_step, is_scheduled=true

%started (p: bf16[1,8,32]) -> (bf16[1,8,32], bf16[1,64,32]) {
  %ag = bf16[1,64,32]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={1}
}

%async_collective_fusion.3 (p: bf16[1,8,32]) -> (bf16[4,4], bf16[1,64,32]) {
  %ag.1 = bf16[1,64,32]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={1}
}

%body.1 (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %async-collective-start.6 = (bf16[1,8,32], bf16[1,64,32]) fusion(%w), kind=kCustom, calls=%started
  %fusion.9 = (bf16[4,4], bf16[1,64,32]) fusion(%w), kind=kOutput, calls=%async_collective_fusion.3
}

%cond.1 (p: (s32[], f32[64,32])) -> pred[] {
  %constant.4 = u32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.4), direction=LT, metadata={op_name="jit(step)/while/cond/lt"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  ROOT %w = (s32[], f32[64,32]{1,0}) while(%init), condition=%cond.1, body=%body.1
}
"""


def test_of_a_tpu_the_pieces_of_one_collective_are_one_and_a_loops_turns_are_those_of_its_condition():
  assert of_text(TPU, make_mesh(data=1, fsdp=8)) == (
      Collective("all-gather", "fsdp", 5, 5 * 64 * 32 * 2 * 7 // 8),)


RING = """HloModule jit_step, is_scheduled=true

%piece (p: bf16[1,8,32]) -> (bf16[4,4], bf16[1,64,32]) {
  %ag.1 = bf16[1,64,32] all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={1}, metadata={op_name="w"}
}

%first (p: bf16[1,8,32]) -> (bf16[4,4], bf16[1,64,32]) {
  %ag = bf16[1,64,32] all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={1}, metadata={op_name="w"}
}

%turn (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %k = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %v = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%y), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %n = f32[4] all-reduce(%z), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add, metadata={op_name="n"}
  %m = f32[4] all-reduce(%z), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add, metadata={op_name="m"}
  %fusion.9 = (bf16[4,4], bf16[1,64,32]) fusion(%w), kind=kOutput, calls=%piece
}

%layer (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %start = (bf16[4,4], bf16[1,64,32]) fusion(%w), kind=kOutput, calls=%first
  %w = (s32[], f32[64,32]) while(%init), condition=%c, body=%turn, backend_config={"known_trip_count":{"n":"8"}}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  ROOT %w = (s32[], f32[64,32]) while(%init), condition=%c, body=%layer, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_what_shares_a_channel_in_a_shard_map_is_several_and_a_gather_under_way_in_an_inner_loop_is_one_a_layer():
  assert set(of_text(RING, make_mesh(data=1, fsdp=8))) == {
      Collective("collective-permute", "fsdp", 2 * 40, 2 * 40 * 32), Collective("all-reduce", "fsdp", 80, 80 * 28),
      Collective("all-gather", "fsdp", 5, 5 * 64 * 32 * 2 * 7 // 8)}


V5P = """HloModule jit_step, is_scheduled=true

%placed (a: bf16[8,64], b: bf16[1,64], i: s32[]) -> bf16[8,64] {
  %a = bf16[8,64]{1,0} parameter(0)
  %b = bf16[1,64]{1,0} parameter(1)
  ROOT %u = bf16[8,64]{1,0} dynamic-update-slice(%a, %b, %i, %z)
}

%summed (a: bf16[8,64], b: bf16[1,64]) -> bf16[8,64] {
  ROOT %s = bf16[8,64]{1,0} add(%a, %b)
}

ENTRY %main (w: bf16[1,64]) -> bf16[8,64] {
  %zeros = bf16[8,64]{1,0} broadcast(%zero), dimensions={}
  %part.1 = bf16[8,64]{1,0} fusion(%zeros, %w, %i), kind=kLoop, calls=%placed
  %part.2 = bf16[8,32]{1,0} dynamic-update-slice(%zeros, %w, %i, %z)
  %copy-start.2 = (bf16[8,32]{1,0:S(1)}, bf16[8,32]{1,0}, u32[]) copy-start(%part.2)
  %copy-done.2 = bf16[8,32]{1,0:S(1)} copy-done(%copy-start.2)
  %grown = bf16[8,64]{1,0} dynamic-update-slice(%stack, %w, %i, %z)
  %gradient = bf16[8,16]{1,0} fusion(%x, %y), kind=kOutput, calls=%summed
  %ar = (bf16[8,64], bf16[8,32], /*index=2*/bf16[8,16], bf16[8,64]) all-reduce(%part.1, %copy-done.2, /*index=2*/%gradient, %grown), channel_id=1, replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, to_apply=%add
  ROOT %r = bf16[8,64] copy(%part.1)
}
"""  # noqa: E501


def test_a_sum_of_parts_in_zeros_is_a_gather_and_devices_are_read_in_the_order_that_is_noted():
  assert of_text(V5P, make_mesh(data=2, fsdp=4)) == (
      Collective("all-gather by all-reduce", "fsdp", 1, 2 * 8 * (64 + 32) * 2 * 3 // 4),
      Collective("all-reduce", "fsdp", 1, 2 * 8 * (16 + 64) * 2 * 3 // 4))


UNROLLED = """HloModule jit_step

%body (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %two = u32[] constant(2)
  %i = u32[] get-tuple-element(%p), index=1
  %next = u32[] add(%i, %two)
  %there = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %t = (f32[8], u32[]) tuple(%y, /*index=1*/%next)
}

%condition (p: (f32[8], u32[])) -> pred[] {
  %bound = u32[] constant(9)
  %i = u32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  ROOT %w = (f32[8], u32[]) while(%init), condition=%condition, body=%body
}
"""


def test_a_loop_that_was_unrolled_turns_as_often_as_its_counter_allows():
  assert of_text(UNROLLED, make_mesh(data=1, fsdp=2)) == (Collective("collective-permute", "fsdp", 5, 5 * 32),)


def test_of_a_program_in_which_a_layer_is_gathered_at_each_turn():
  mesh = make_mesh(data=1, fsdp=8)
  whole, cut = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "fsdp"))
  stack = jax.ShapeDtypeStruct((3, 16, 16), jnp.float32, sharding=cut)
  x = jax.ShapeDtypeStruct((4, 16), jnp.float32, sharding=whole)

  def run(stack, x):
    return jax.lax.scan(lambda x, w: (x @ jax.lax.with_sharding_constraint(w, whole), None), x, stack)[0]

  found = collectives(jax.jit(run, out_shardings=whole).lower(stack, x).compile(), mesh)
  assert found == (Collective("all-gather", "fsdp", 3, 3 * 16 * 16 * 4 * 7 // 8),)


def test_the_roofline_is_what_takes_longest():
  sent = Collective("all-gather", "fsdp", 1, int(2e9)), Collective("all-reduce", "dcn+data", 1, int(31e7))
  compiled = Compiled(1.0, int(8e9), int(2e9), int(4e9), 0, sent)
  plan = Plan(4, 1, 1, 0, 0, 0, 0, 0, 0, Flops(4 * 197e12 * 0.5, 0.0, frozenset()), compiled)
  found = roofline(plan, "v5e")
  got = [found.compute, found.memory, found.interconnect, found.network]
  np.testing.assert_allclose(got, [0.5, 10e9 / 0.82e12, 0.01, 0.1])
  assert found.bound == "compute" and found.least == 0.5 and "100.0 ms to other slices" in str(found)
  assert found.fits == (compiled.peak <= CHIPS["v5e"].memory)
  with pytest.raises(ValueError, match="chip must be one of v5e, v5p, v6e"):
    roofline(plan, "v4")
