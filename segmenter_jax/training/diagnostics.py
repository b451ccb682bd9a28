"""What a run tells of itself: parameters, memory, where it hangs, and a profile of some steps."""

import contextlib
import dataclasses
import faulthandler
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.errors import first_line
from segmenter_jax.runtime.files import is_local
from segmenter_jax.runtime.tables import align, merge_blocks
from segmenter_jax.training.program import TrainProgram
from segmenter_jax.training.state import StepOptions, TrainState, split_params

PROFILE_FOLDER = "profile"

# Steps of a start before the traced ones: compilation and the filling of buffers are over then.
SETTLE_STEPS = 10

# Setting the alarm takes half a millisecond, so it is not done for every step.
REARM_SECONDS = 1.0

# Of the process itself: what Python calls standard error may be no file, as in notebooks.
_STDERR = 2


def parameter_lines(params: dict[str, Any]) -> list[str]:
    """Names and shapes of parameters; those of repeated blocks share a line."""
    flat = flatten_dict(params, sep="/")
    return merge_blocks(f"{name} {flat[name].shape}" for name in sorted(flat))


@dataclasses.dataclass(frozen=True)
class MemoryRow:
    """What one device holds of something, in bytes, and all devices together without copies."""

    name: str
    on_device: int
    whole: int


def memory_rows(
    target: TrainState, options: StepOptions, temporary: int | None = None
) -> list[MemoryRow]:
    """Memory of a train state and of its step.

    Args:
      target: shapes and shardings of the state, see `TrainProgram.abstract_state`.
      options: of the step.
      temporary: bytes that the compiled step needs on a device besides its arguments and results;
        gradients, gathered parameters and activations are in it. None where it is not known.

    Returns:
      One row each for parameters, optimizer, average (where there is one) and gradients, and for
      the rest of `temporary`, which is mostly activations.
    """
    trained, _ = split_params(target.params, options)
    rows = [_row("parameters", target.params), _row("optimizer", target.opt_state)]
    if target.ema is not None:
        rows.append(_row("average of parameters", target.ema))
    gradients = _row("gradients", trained)
    rows.append(gradients)
    if temporary is not None:
        rest = max(temporary - gradients.on_device, 0)
        rows.append(MemoryRow("activations and work space", rest, rest * _num_devices(target)))
    return rows


def _row(name: str, tree: Any) -> MemoryRow:
    leaves = jax.tree.leaves(tree)
    pieces = (np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64) for x in leaves)
    return MemoryRow(
        name,
        sum(int(n) * x.dtype.itemsize for n, x in zip(pieces, leaves, strict=True)),
        sum(x.size * x.dtype.itemsize for x in leaves),
    )


def _num_devices(target: TrainState) -> int:
    return target.step.sharding.num_devices


def memory_table(rows: list[MemoryRow]) -> str:
    """Rows and their sum as text, in MB (10^6 bytes)."""
    total = MemoryRow("sum", sum(r.on_device for r in rows), sum(r.whole for r in rows))
    cells = [(r.name, f"{r.on_device / 1e6:.1f}", f"{r.whole / 1e6:.1f}") for r in (*rows, total)]
    return "\n".join(align([("memory in MB", "one device", "all, once"), *cells]))


def temporary_bytes(program: TrainProgram, batch_size: int) -> int | None:
    """What a step needs on a device besides its arguments and results, by XLA's plan.

    The program that this compiles is the one that the first step runs.

    Args:
      program: the run.
      batch_size: global.

    Returns:
      Bytes, or None where the platform does not tell.
    """
    lowered = program.step.lower(program.abstract_state(), program.abstract_batch(batch_size))
    plan = lowered.compile().memory_analysis()
    return None if plan is None else plan.temp_size_in_bytes


class Watchdog:
    """Prints what every thread is doing when no step was finished for a while.

    It starts to count with the first `beat`, since compiling takes as long as it takes.

    Args:
      seconds: how long a while is; 0 switches it off. Up to `REARM_SECONDS` are added.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._armed: float | None = None

    def beat(self) -> None:
        """A step was finished."""
        now = time.monotonic()
        if self._seconds and (self._armed is None or now - self._armed >= REARM_SECONDS):
            faulthandler.dump_traceback_later(self._seconds + REARM_SECONDS, file=_STDERR)
            self._armed = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count during a block; after it, if it counted before."""
        counted = self._armed is not None
        self.stop()
        yield
        if counted:
            self.beat()

    def stop(self) -> None:
        """Does not count until the next `beat`."""
        # There is one alarm in a process: another's stays.
        if self._armed is not None:
            faulthandler.cancel_dump_traceback_later()
            self._armed = None


class StepProfile:
    """Traces the first steps of a start after `SETTLE_STEPS`, in the first process.

    Args:
      workdir: receives the trace, under `profile`.
      start_step: the step that training starts or resumes from.
      num_steps: number of steps to trace; 0 traces none.

    Raises:
      ValueError: `workdir` is remote and there is something to trace.
    """

    def __init__(self, workdir: epath.Path, start_step: int, num_steps: int):
        if num_steps and not is_local(workdir):
            raise ValueError(f"a profile needs a local workdir to write to, got {workdir}")
        self._folder = workdir / PROFILE_FOLDER
        first = start_step + SETTLE_STEPS
        # What is still to be done, and before which step.
        self._due = [first, first + num_steps] if num_steps and not jax.process_index() else []

    def due(self, step: int) -> bool:
        """Whether the trace starts or ends between `step` and the next."""
        return step in self._due

    def switch(self) -> None:
        """Starts the trace, or ends it; nothing may be running on the devices."""
        if len(self._due) == 2:
            self._begin()
        else:
            self._end()

    def close(self) -> None:
        """Ends a trace that is running, as after a signal; says so if there was none."""
        if len(self._due) == 1:
            self._end()
        elif self._due:
            logger.warning("no profile: training ended before step %d", self._due[0])

    # Whatever fails in the profiler, training goes on.

    def _begin(self) -> None:
        try:
            jax.profiler.start_trace(str(self._folder))
            self._due.pop(0)
        except Exception as error:
            self._due.clear()
            logger.warning("no profile: %s", first_line(error))

    def _end(self) -> None:
        self._due.clear()
        try:
            jax.profiler.stop_trace()
        except Exception as error:
            logger.warning("no profile: %s", first_line(error))
        else:
            logger.info("profile written to %s", self._folder)
