"""What is read from the text of a compiled program, on a few lines as compilers write them."""

import pytest

from segmenter_jax.benchmark import estimate
from segmenter_jax.benchmark.collectives import collectives_of
from segmenter_jax.benchmark.devices import DEVICES, DeviceSpec, device_spec
from segmenter_jax.benchmark.hlo import instructions

# A TPU's program: the loop's bound is in its condition only, and cycles are those of one round.
PROGRAM = """HloModule jit_update, is_scheduled=true

%inside (p: bf16[8,64]) -> bf16[8,64] {
  ROOT %m = bf16[8,64]{1,0:T(8,128)(2,1)} multiply(%p, %p), \
metadata={op_name="jit(update)/jvp(Segmenter)/Segmenter.encode/encoder/x/Block/mlp/mul"}
}

%condition (carry: (s32[], bf16[8,64])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body (carry: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %fusion.1 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kLoop, calls=%inside, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %splash_mha_fwd.2 = (bf16[2,6,1152,64]{3,2,1,0}, f32[2,6,1152]{2,1,0}) custom-call(%q, %k, %v), \
custom_call_target="tpu_custom_call", \
metadata={op_name="jit(update)/jvp(Segmenter)/Segmenter.encode/encoder/x/Block/attention/kernel"}
  ROOT %out = (s32[], bf16[8,64]{1,0}) tuple(%j, %y)
}

ENTRY %main (p0: bf16[8,64]) -> bf16[8,64] {
  %loop = (s32[]{:T(128)}, /*index=1*/bf16[8,64]{1,0}) while(%start), condition=%condition, \
body=%body, metadata={op_name="jit(update)/jvp(Segmenter)/Segmenter.encode/encoder/x/while"}
  %copy.3 = bf16[8,64]{1,0} copy(%y), backend_config={"estimated_cycles":"500"}
  ROOT %all-reduce.1 = f32[1000]{0} all-reduce(%z), \
replica_groups=mesh['data'=4,'fsdp'=2] {'data'}, to_apply=%add
}
"""

SPEC = DeviceSpec(peak_tflops=100.0, memory_gib=16.0, clock_ghz=1.0, link_gb_s=3.0)


@pytest.fixture(scope="module")
def program():
    return list(instructions(PROGRAM))


def test_instructions_say_what_they_are_from_and_how_often_they_run(program):
    found = {line.name: line for line in program}
    fusion = found["fusion.1"]
    assert (fusion.opcode, fusion.times) == ("fusion", 12)
    assert fusion.source.endswith("/Block/mlp/mul")
    assert [(a.shape, a.size) for a in fusion.arrays] == [((8, 64), 1024)]
    assert [str(a) for a in found["loop"].arrays] == ["s32[]", "bf16[8,64]"]
    assert found["copy.3"].times == 1 and found["copy.3"].source == ""


def test_groups_by_axes_of_a_mesh_are_read(program):
    (found,) = collectives_of(program, 8)
    assert found.group == 4 and found.moved == 2 * 3 / 4 * 4000


def test_time_is_cycles_by_rounds_kernels_by_work_and_collectives_by_bytes(program):
    (kernel,) = estimate.kernels_of(program, SPEC, 64)
    # Two products of (1152, 1152) with 64 for each of 2 x 6 heads; half of the unit is idle.
    assert kernel.flops == 2 * 2 * 2 * 6 * 1152**2 * 64 and kernel.times == 12
    assert kernel.rate == estimate.KERNEL_RATE / 2 * 100e12
    seconds = estimate.seconds_by(estimate.operations_of(program, SPEC, 64, 8), "part")
    assert seconds == {
        "encoder attention kernel": pytest.approx(12 * kernel.flops / kernel.rate),
        "encoder MLP": pytest.approx(12e-6),
        "collectives": pytest.approx(2e-6),
        "unnamed": pytest.approx(5e-7),
    }


def test_kernels_that_write_more_than_results_count_by_those():
    text = """HloModule step
ENTRY %main (p0: bf16[2,384,72]) -> f32[] {
  %splash_mha_fwd.2 = (f32[128,72]{1,0}, bf16[2,384,72]{2,1,0}, f32[2,384,128]{2,1,0}) \
custom-call(%p0), custom_call_target="tpu_custom_call"
}
"""
    (kernel,) = estimate.kernels_of(list(instructions(text)), SPEC, 72)
    assert kernel.flops == 2 * 2 * 2 * 384**2 * 72


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5", "TPU v5"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("Radeon", None),
    ],
)
def test_devices_go_by_the_longest_name_that_fits(kind, name):
    assert device_spec(kind) is (DEVICES[name] if name else None)
