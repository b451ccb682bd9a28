"""Tells where a run hangs."""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator

from segmenter_jax.runtime.console import logger


class Watchdog:
    """Prints the stacks of all threads when nothing was finished for a while.

    It starts to count with the first `beat`, since compiling takes as long as it takes.

    Args:
      seconds: how long a while is; 0 switches it off.
    """

    def __init__(self, seconds: float):
        if seconds < 0:
            raise ValueError(f"log.stall_seconds must be at least 0, got {seconds}")
        self._seconds = seconds
        self._last: float | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Something was finished."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count during a block."""
        self._last = None
        yield
        self.beat()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 10)):
            last = self._last
            if last is None or time.monotonic() - last < self._seconds:
                continue
            logger.warning(
                "no step was finished for %.0f s; this is what every thread is doing",
                time.monotonic() - last,
            )
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            # Once per stall: the next beat starts to count anew.
            self._last = None
