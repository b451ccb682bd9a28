"""Compiled programs as text: their instructions, and how often each of them runs."""

import dataclasses
import functools
import re
from collections.abc import Iterator

import numpy as np

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r" = [su](?:32|64)\[\]\S* constant\((\d+)\)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Array:
    """Type of an array of one device: dtype, dimensions, and size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: in the program.
      opcode: what it does: "fusion", "all-reduce", "custom-call", ...
      type: of its result, with layouts.
      text: the whole line.
      times: how often it runs; None in a loop of an unknown number of rounds.
      source: the operation of the traced program that it is from; "" where the compiler made it.
      computation: that it stands in: the entry, the body of a loop, what is fused, ...
    """

    name: str
    opcode: str
    type: str
    text: str
    times: int | None
    source: str
    computation: str

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """Arrays of its result; one, or those of a tuple."""
        found = []
        for dtype, bits, text in _ARRAY.findall(self.type):
            shape = tuple(int(n) for n in text.split(",") if n)
            size = int(bits or 8) * int(np.prod(shape, dtype=np.int64)) // 8
            found.append(Array(dtype, shape, size))
        return found


def instructions(text: str) -> Iterator[Instruction]:
    """Every instruction of a program, also those of what it calls, with how often it runs.

    Args:
      text: HLO, as `jax.stages.Compiled.as_text` gives it.
    """
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            computations[current] = []
            entry = current if match[1] else entry
        elif current and line.startswith(" "):
            computations[current].append(line)
    yield from _walk(computations, entry, 1)


def _walk(
    computations: dict[str, list[str]], name: str, times: int | None
) -> Iterator[Instruction]:
    for line in computations.get(name, ()):
        if not (match := _INSTRUCTION.match(line)):
            continue
        called = _CALLED.findall(line)
        if branches := _BRANCHES.search(line):
            called += [branch.strip(" %") for branch in branches[1].split(",")]
        source = _source(computations, line)
        yield Instruction(match[1], match[3], match[2], line, times, source, name)
        rounds = _rounds(computations, line) if match[3] == "while" else 1
        for inner in called:
            yield from _walk(computations, inner, times and rounds and times * rounds)


def _rounds(computations: dict[str, list[str]], line: str) -> int | None:
    """Rounds of a loop: as the compiler says, or the bound that its condition compares with."""
    if known := _TRIPS.search(line):
        return int(known[1])
    # JAX's loops of a fixed length count from 0.
    bounds = _BOUND.findall("\n".join(computations[_CONDITION.search(line)[1]]))
    return int(bounds[0]) if len(bounds) == 1 else None


def _source(computations: dict[str, list[str]], line: str) -> str:
    """Name of an instruction's operation, or of the last that was fused into it."""
    if match := _OP_NAME.search(line):
        return match[1]
    if " fusion(" in line:
        for inner in reversed(computations.get(_CALLED.search(line)[1], ())):
            if match := _OP_NAME.search(inner):
                return match[1]
    return ""
