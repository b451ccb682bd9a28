"""What devices send each other in a training step, read from the compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from segmenter_jax.benchmark.hlo import Instruction, instructions
from segmenter_jax.benchmark.measure import Result, compile_timed
from segmenter_jax.benchmark.step import StepSettings
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.params import Params

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_CHAIN = re.compile(r'chain_id="\d+"')
_GROUP_LIST = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUP_GRID = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_GROUP_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction of a compiled program.

    Attributes:
      kind: one of `KINDS`.
      type: of its result, on one device.
      size: of its result, in bytes; of its operand for "reduce-scatter".
      group: devices that take part together.
      times: how often it runs in one step.
      source: the operation of the traced program that it is from.
    """

    kind: str
    type: str
    size: int
    group: int
    times: int
    source: str

    @property
    def moved(self) -> float:
        """Bytes that every device sends in one step, by the best algorithm on a ring."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1}.get(self.kind, share)
        return factor * self.size * self.times


def collectives_of(program: Iterable[Instruction], num_devices: int) -> list[Collective]:
    """Collectives of a compiled program, those in loops with the number of their rounds.

    Args:
      program: its instructions.
      num_devices: that the program runs on.

    Raises:
      ValueError: a collective is in a loop of an unknown number of rounds.
    """
    found, chains = [], set()
    for instruction in program:
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            # TPUs run one beside other work: a chain of fusions starts it, goes on and ends it.
            if chain := _CHAIN.search(instruction.text):
                if chain[0] in chains:
                    continue
                chains.add(chain[0])
            if instruction.times is None:
                raise ValueError(
                    "collectives in a loop of an unknown number of rounds: "
                    f"{instruction.text.strip()}"
                )
            found.append(_collective(instruction, kind, num_devices))
    return found


def _collective(instruction: Instruction, kind: str, num_devices: int) -> Collective:
    arrays, started = instruction.arrays, instruction.opcode.endswith("-start")
    if started and kind == "collective-permute":
        arrays = arrays[1:2]
    elif started and kind != "all-reduce":
        # The operands come first, as many as results.
        arrays = arrays[len(arrays) // 2 :]
    group = _group(instruction.text) or num_devices
    size = sum(a.size for a in arrays) * (group if kind == "reduce-scatter" else 1)
    if instruction.computation.startswith("all-reduce-scatter"):
        # A TPU's fusion of the sum with the choice of a piece of it.
        kind = "reduce-scatter"
    shapes = ", ".join(map(str, arrays[:3]))
    return Collective(
        kind=kind,
        type=shapes + (f" and {len(arrays) - 3} more" if len(arrays) > 3 else ""),
        size=size,
        group=group,
        times=instruction.times,
        source=instruction.source,
    )


def _group(line: str) -> int | None:
    """Devices that take part together; None where the line does not say, and all do."""
    if found := _GROUP_LIST.search(line):
        return found[1].count(",") + 1
    if found := _GROUP_GRID.search(line):
        return int(found[1])
    if found := _GROUP_MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return None


def minimum_bytes(params: Params, num_devices: int) -> float:
    """Least number of bytes that every device must send in one step.

    A parameter that every device holds costs the sum of its gradient over all devices. One that is
    cut over `fsdp` devices is gathered once and the sum of its gradient is scattered; what the
    other devices hold of the same piece is summed as well.

    Args:
      params: shapes and shardings of those that are trained.
      num_devices: of the mesh.
    """
    total = 0.0
    for leaf in jax.tree.leaves(params):
        size = leaf.size * leaf.dtype.itemsize
        piece = int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        pieces = size // piece
        replicas = num_devices // pieces
        total += 2 * (size - piece) + 2 * (replicas - 1) / replicas * piece
    return total


def summarise_collectives(found: Sequence[Collective], least: float) -> Result:
    """How often each kind runs and what it sends in a step, and the sum beside the least.

    Args:
      found: those of a program.
      least: see `minimum_bytes`.
    """
    result: Result = {}
    for kind in KINDS:
        same = [c for c in found if c.kind == kind]
        result[f"{kind}_count"] = sum(c.times for c in same)
        result[f"{kind}_mb"] = sum(c.moved for c in same) / 1e6
    total = sum(c.moved for c in found)
    return result | {
        "sent_mb": total / 1e6,
        "minimum_mb": least / 1e6,
        "sent_over_minimum": total / least if least else None,
    }


def benchmark_collectives(config: SegmenterConfig, settings: StepSettings, show: int) -> Result:
    """Bytes that a device sends in a training step, which is compiled and not run.

    Args:
      config: the network.
      settings: of the step.
      show: number of largest instructions listed.
    """
    program = settings.program(config)
    target, mesh = program.abstract_state(), program.mesh
    compiled, memory = compile_timed(
        program.step, target, program.abstract_batch(settings.batch_size)
    )
    found = collectives_of(instructions(compiled.as_text()), mesh.size)
    result: Result = {"mesh": dict(mesh.shape)}
    result["parameters_mb"] = sum(x.size * 4 for x in jax.tree.leaves(target.params)) / 1e6
    result |= summarise_collectives(found, minimum_bytes(target.params, mesh.size))
    for number, c in enumerate(sorted(found, key=lambda c: -c.moved)[:show], start=1):
        result[f"largest_{number}"] = (
            f"{c.moved / 1e6:.2f} MB {c.kind} {c.type} x{c.times} over {c.group}: {c.source[:80]}"
        )
    return result | memory
