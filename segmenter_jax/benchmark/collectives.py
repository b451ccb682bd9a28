"""What devices send each other in a training step, read from the compiled program."""

import collections
import dataclasses
import re
from collections.abc import Iterator

import jax
import numpy as np

from segmenter_jax.benchmark.measure import Result, compile_timed
from segmenter_jax.benchmark.step import StepSettings
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.training.state import TrainState

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (?P<type>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")
_GROUP_LIST = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUP_GRID = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


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


def collectives_of(text: str, num_devices: int) -> list[Collective]:
    """Collectives of a compiled program, those in loops with the number of their rounds.

    Args:
      text: HLO, as `jax.stages.Compiled.as_text` gives it.
      num_devices: that the program runs on.

    Raises:
      ValueError: a collective is in a loop of an unknown number of rounds.
    """
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            computations[current] = []
            entry = current if match[1] else entry
        elif line.startswith(" "):
            computations[current].append(line)
    return list(_walk(computations, entry, 1, num_devices))


def _walk(
    computations: dict[str, list[str]], name: str, times: int, num_devices: int
) -> Iterator[Collective]:
    for line in computations[name]:
        if match := _COLLECTIVE.search(line):
            yield _collective(line, match, times, num_devices)
            continue
        called = _CALLED.findall(line)
        if branches := _BRANCHES.search(line):
            called += [branch.strip(" %") for branch in branches[1].split(",")]
        rounds = _TRIPS.search(line)
        for inner in called:
            found = list(
                _walk(computations, inner, times * int(rounds[1] if rounds else 1), num_devices)
            )
            if found and " while(" in line and not rounds:
                raise ValueError(f"collectives in a loop of an unknown number of rounds: {line}")
            yield from found


def _collective(line: str, match: re.Match, times: int, num_devices: int) -> Collective:
    kind, arrays = match["kind"], _ARRAY.findall(match["type"])
    if match["start"] and kind == "collective-permute":
        arrays = arrays[1:2]
    elif match["start"] and kind != "all-reduce":
        # The operands come first, as many as results.
        arrays = arrays[len(arrays) // 2 :]
    group = num_devices
    if found := _GROUP_LIST.search(line):
        group = found[1].count(",") + 1
    elif found := _GROUP_GRID.search(line):
        group = int(found[1])
    size = sum(
        int(bits or 8) * int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64)) // 8
        for _, bits, shape in arrays
    )
    source = _OP_NAME.search(line)
    shapes = ", ".join(f"{dtype}[{shape}]" for dtype, _, shape in arrays[:3])
    return Collective(
        kind=kind,
        type=shapes + (f" and {len(arrays) - 3} more" if len(arrays) > 3 else ""),
        size=size * (group if kind == "reduce-scatter" else 1),
        group=group,
        times=times,
        source=source[1] if source else "",
    )


def minimum_bytes(state: TrainState, num_devices: int) -> float:
    """Least number of bytes that every device must send in one step.

    A parameter that every device holds costs the sum of its gradient over all devices. One that is
    cut over `fsdp` devices is gathered once and the sum of its gradient is scattered; what the
    other devices hold of the same piece is summed as well.

    Args:
      state: shapes and shardings of the train state.
      num_devices: of the mesh.
    """
    total = 0.0
    for leaf in jax.tree.leaves(state.params):
        size = leaf.size * leaf.dtype.itemsize
        piece = int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        pieces = size // piece
        replicas = num_devices // pieces
        total += 2 * (size - piece) + 2 * (replicas - 1) / replicas * piece
    return total


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
    found = collectives_of(compiled.as_text(), mesh.size)
    moved: dict[str, float] = collections.defaultdict(float)
    counts: dict[str, int] = collections.defaultdict(int)
    for collective in found:
        moved[collective.kind] += collective.moved
        counts[collective.kind] += collective.times
    total, least = sum(moved.values()), minimum_bytes(target, mesh.size)
    result: Result = {"mesh": dict(mesh.shape)}
    result["parameters_mb"] = sum(x.size * 4 for x in jax.tree.leaves(target.params)) / 1e6
    for kind in KINDS:
        result[f"{kind}_count"] = counts[kind]
        result[f"{kind}_mb"] = moved[kind] / 1e6
    result |= {
        "sent_mb": total / 1e6,
        "minimum_mb": least / 1e6,
        "sent_over_minimum": total / least if least else None,
    }
    for number, c in enumerate(sorted(found, key=lambda c: -c.moved)[:show], start=1):
        result[f"largest_{number}"] = (
            f"{c.moved / 1e6:.2f} MB {c.kind} {c.type} x{c.times} over {c.group}: {c.source[:80]}"
        )
    return result | memory
