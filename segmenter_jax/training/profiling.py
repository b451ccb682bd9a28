"""A profiler's trace of some steps of training."""

import jax
from etils import epath

from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.errors import first_line

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
