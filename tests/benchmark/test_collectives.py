"""Bytes that devices send each other: by hand, and of the project's own training step."""

import json

import pytest

from segmenter_jax.benchmark.cli import main
from segmenter_jax.benchmark.collectives import collectives_of
from segmenter_jax.benchmark.hlo import instructions

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%body (carry: (s32[], f32[6])) -> (s32[], f32[6]) {
  %gathered = bf16[8,16]{1,0} all-gather(%piece), channel_id=1, \
replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %out = (s32[], f32[6]) tuple(%i, %x)
}

%condition (carry: (s32[], f32[6])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%asynchronous (p: f32[32]) -> f32[4] {
  ROOT %rs = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

ENTRY %main (p0: f32[10,10]) -> f32[10,10] {
  %both = (f32[10,10]{1,0}, f32[28]{0}) all-reduce(%p0, %p1), \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add, \
metadata={op_name="jit(step)/grad"}
  %loop = (s32[], f32[6]) while(%start), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %rs-start = ((f32[32]), f32[4]) async-start(%p2), calls=%asynchronous
  %ag-start = (f32[2]{0}, f32[16]{0}) all-gather-start(%p3), \
replica_groups=[1,8]<=[8], dimensions={0}
  %ag-done = f32[16]{0} all-gather-done(%ag-start)
  ROOT %moved = f32[10,10]{1,0} collective-permute(%p4), source_target_pairs={{0,1},{1,0}}
}
"""


def test_bytes_of_a_program_are_counted_by_hand():
    found = {c.kind + str(c.times): c for c in collectives_of(instructions(PROGRAM), 8)}
    assert len(found) == 5
    both = found["all-reduce1"]
    assert (both.size, both.group, both.source) == (512, 2, "jit(step)/grad")
    assert both.moved == 512  # 2 x 1/2 of it.
    assert found["all-gather3"].moved == 3 * 256 * 3 / 4
    assert found["reduce-scatter1"].moved == 128 * 7 / 8
    assert found["all-gather1"].moved == 64 * 7 / 8
    assert found["collective-permute1"].moved == 400


def test_operands_of_started_collectives_do_not_count():
    line = (
        "  %rs = ((f32[1024]{0}), f32[128]{0}) reduce-scatter-start(%p), "
        "replica_groups=[1,8]<=[8], to_apply=%add"
    )
    text = f"ENTRY %main (p: f32[1024]) -> f32[] {{\n{line}\n}}\n"
    (found,) = collectives_of(instructions(text), 8)
    assert found.moved == 4096 * 7 / 8


def test_loop_of_unknown_length_is_refused():
    text = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    with pytest.raises(ValueError, match="in a loop of an unknown number of rounds"):
        collectives_of(instructions(text), 8)


def measured(capsys, *arguments):
    code = main(
        [
            *("collectives", "--width=64", "--num_heads=2", "--depth=1", "--size=32"),
            *("--classes=3", "--batch_size=16", "--peak_tflops=1", *arguments),
        ]
    )
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out.splitlines()[-1])


def test_data_parallel_step_sends_the_gradient_once_and_nothing_else(capsys):
    result = measured(capsys, "--devices=8")
    # Beside the gradient only the loss and the number of pixels.
    assert result["sent_over_minimum"] == pytest.approx(1, abs=1e-4)
    assert result["minimum_mb"] == pytest.approx(2 * 7 / 8 * result["parameters_mb"])


@pytest.mark.slow
def test_cut_parameters_are_gathered_once_and_activations_stay(capsys):
    result = measured(capsys, "--devices=8", "--fsdp=8")
    assert result["mesh"] == {"data": 1, "fsdp": 8}
    assert result["all-to-all_count"] == result["collective-permute_count"] == 0
    # Nothing is gathered but parameters: 7/8 of those that are cut.
    assert 0 < result["all-gather_mb"] <= 7 / 8 * result["parameters_mb"]
    # The CPU's compiler has no reduce-scatter and sums gradients whole: at most 3/2 of the least.
    assert 1 <= result["sent_over_minimum"] < 1.5


@pytest.mark.slow
def test_one_device_sends_nothing(capsys):
    result = measured(capsys, "--devices=1")
    assert result["sent_mb"] == 0 and result["sent_over_minimum"] is None
