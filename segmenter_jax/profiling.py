"""A profiler's trace of some steps of training."""

from typing import Any

import jax
from etils import epath

from segmenter_jax.logging import logger

FOLDER = "profile"

# Steps of a start before the traced ones: compilation and the filling of buffers are over then.
SETTLE_STEPS = 10


class StepProfile:
    """Traces the first steps of a start after `SETTLE_STEPS`, in the first process.

    Args:
      workdir: receives the trace, under `profile`.
      start_step: the step that training starts or goes on from.
      num_steps: number of steps to trace; 0 traces none.

    Raises:
      ValueError: `num_steps` is negative, or `workdir` is remote and there is something to trace.
    """

    def __init__(self, workdir: epath.Path, start_step: int, num_steps: int):
        if num_steps < 0:
            raise ValueError(f"log.profile_steps must be at least 0, got {num_steps}")
        if num_steps and "://" in str(workdir):
            raise ValueError(
                f"log.profile_steps={num_steps} needs a local workdir to write to, got {workdir}"
            )
        self._folder = workdir / FOLDER
        wanted = num_steps and jax.process_index() == 0
        self._first = start_step + SETTLE_STEPS if wanted else None
        self._last = start_step + SETTLE_STEPS + num_steps
        self._running = False

    def before(self, step: int) -> None:
        """Starts the trace if the step after `step` is the first one wanted."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """Ends the trace if `step` is the last one wanted; waits for the devices to finish it."""
        if self._running and step == self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running, as at the end of a short run."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logger.info("profile of the last steps written to %s", self._folder)
