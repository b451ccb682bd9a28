"""How long a compiled program would take, by its compiler's estimate. Nothing here is measured."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from segmenter_jax.benchmark.collectives import collectives_of
from segmenter_jax.benchmark.devices import DeviceSpec
from segmenter_jax.benchmark.hlo import Instruction

# Of the peak, where the head size fills the matrix unit. Measured with head size 64 on an H200,
# forward and backward: 23 % (8 x 1026 x 12) and 32 % (8 x 1602 x 16) of the peak.
KERNEL_RATE = 0.5

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha\w*|\S*triton\S*)"')

# Products of (T, T) with a head in attention's kernels, by the first pattern in a kernel's name.
_PRODUCTS = (
    (r"_dq\b|_dq_", 3),
    (r"_dkv\b|_dkv_", 4),
    (r"[Bb]ackward|bwd", 5),
    (r"forward|fwd", 2),
    (r"transpose\(", 5),
    (r"", 2),
)

# Parts of a program by the first pattern in an operation's name.
_PARTS = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        ("augmentation", r"\baugmentation\b"),
        ("loss", r"\bloss\b"),
        ("decoder attention", r"/decoder/.*/attention/"),
        ("decoder MLP", r"/decoder/.*/mlp/"),
        ("decoder, rest", r"/decoder/"),
        ("encoder attention", r"/encoder/.*/attention/"),
        ("encoder MLP", r"/encoder/.*/mlp/"),
        ("encoder norms", r"/encoder/.*(LayerNorm_\d|encoder_norm)"),
        ("encoder loop's slices", r"/encoder/.*(dynamic_(update_)?index_in_dim|_scan/stack)"),
        ("encoder, rest", r"/encoder/"),
        ("optimizer", r"^jit\(update\)/"),
        ("unnamed", ""),
    )
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """Estimated time of one instruction, with all its rounds.

    Attributes:
      part: of the network or the step.
      source: name in the traced program, or what the compiler calls it.
      seconds: on every device.
    """

    part: str
    source: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A hand-written kernel, for which compilers estimate nothing.

    Attributes:
      name: of its operation in the traced program, and its own.
      times: how often it runs.
      flops: of one run on one device, with its padding.
      rate: FLOP/s that it is taken to reach.
    """

    name: str
    times: int
    flops: float
    rate: float


def part_of(source: str) -> str:
    """Part of the network or the step that an operation belongs to, by its name."""
    return next(part for part, pattern in _PARTS if pattern.search(source))


def kernels_of(program: list[Instruction], spec: DeviceSpec, head_dim: int) -> list[Kernel]:
    """Kernels of attention in a program.

    Args:
      program: its instructions.
      spec: of the devices.
      head_dim: size of a head.
    """
    rate = KERNEL_RATE * min(head_dim / spec.matrix_side, 1) * spec.peak_tflops * 1e12
    found = []
    for line in program:
        if line.opcode != "custom-call" or not (target := _KERNEL.search(line.text)):
            continue
        # Splash writes scratch of one block before its results, and wider sums after them.
        whole = [array for array in line.arrays if len(array.shape) in (3, 4)]
        if not whole:
            continue
        shape = max(whole, key=lambda array: (array.shape[-1] == head_dim, array.size)).shape
        name = f"{line.source} {line.name.rstrip('.0123456789')} {target[1]}"
        products = next(n for pattern, n in _PRODUCTS if re.search(pattern, name))
        # (B, heads, T, d), (B, T, heads, d) or (B, T, heads * d): T is the longer where heads are.
        work = 2.0 * products * math.prod(shape) * max(shape[1:-1])
        found.append(Kernel(name, line.times or 1, work, rate))
    return found


def operations_of(
    program: list[Instruction], spec: DeviceSpec, head_dim: int, num_devices: int
) -> list[Operation]:
    """Everything in a program that time is estimated for.

    The compiler's cycles over the clock; kernels by their work at `KERNEL_RATE`; collectives by
    their bytes over the links, as if nothing else ran meanwhile.

    Args:
      program: its instructions.
      spec: of the devices.
      head_dim: size of a head of attention.
      num_devices: that the program runs on.

    Raises:
      ValueError: the compiler estimates nothing for such devices.
    """
    if spec.clock_ghz is None:
        raise ValueError("the compiler estimates no times for such devices")
    found = list(_compiled(program, spec.clock_ghz))
    for kernel in kernels_of(program, spec, head_dim):
        seconds = kernel.times * kernel.flops / kernel.rate
        found.append(Operation(f"{part_of(kernel.name)} kernel", kernel.name, seconds))
    for c in collectives_of(program, num_devices):
        seconds = c.moved / (spec.link_gb_s * 1e9)
        found.append(Operation("collectives", f"{c.kind} {c.source}", seconds))
    return found


def _compiled(program: list[Instruction], clock_ghz: float) -> Iterator[Operation]:
    for line in program:
        if cycles := _CYCLES.search(line.text):
            seconds = int(cycles[1]) * (line.times or 1) / (clock_ghz * 1e9)
            name = line.source or f"({line.opcode} {re.sub(r'[.0-9]+$', '', line.name)})"
            yield Operation(part_of(line.source), name, seconds)


def seconds_by(operations: list[Operation], attribute: str) -> dict[str, float]:
    """Seconds of operations with the same `part` or `source`, the longest first."""
    total: dict[str, float] = collections.defaultdict(float)
    for operation in operations:
        total[getattr(operation, attribute)] += operation.seconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))
