"""SIGTERM and Ctrl-C as a request to save and leave, which all processes follow at one step.

JAX's own service for this (`multihost_utils.reached_preemption_sync_point`) notices a SIGTERM up to
a second late, cannot make an evaluation end early, and knows no Ctrl-C.
"""

import collections
import signal
import threading
from types import FrameType
from typing import Any

import jax

from segmenter_jax.runtime import processes

# Steps that pass between a signal and the stop, so that no step waits for the other processes.
LAG = 2


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a flag, so that a run can save and leave.

    Attributes:
      received: name of the signal that this process got, if any.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}
        self._answers: collections.deque[jax.Array] = collections.deque()

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread only; elsewhere there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @property
    def reason(self) -> str:
        """Why a run stops, for its log."""
        return self.received or "signal to another process"

    def agreed(self) -> bool:
        """Whether to stop here; all processes call it once a step, and get the same answer."""
        if jax.process_count() == 1:
            return self.received is not None
        self._answers.append(processes.maximum_async(self.received is not None))
        return len(self._answers) > LAG and bool(self._answers.popleft())

    def agreed_now(self) -> bool:
        """As `agreed`, but waits for the other processes."""
        return bool(processes.maximum(self.received is not None))

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        # A second signal acts at once.
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
