"""Calls of compiled programs side by side on a CPU.

XLA splits every operation of a program over the cores and waits for the slowest of them, some
hundred times in a forward pass. Two programs at once fill each other's waits.
"""

import functools
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from segmenter_jax.runtime.host import usable_cores

# Bounds the memory on machines of many cores.
_MOST = 4

# Calls that a device is given before the first is waited for: one runs, the next is prepared.
QUEUED = 2


class Calls:
    """Starts calls, as many at a time as there are cores, up to four.

    They run in threads, which JAX's context managers around the caller do not reach.

    Attributes:
      at_a_time: calls that run at a time.
      ahead: calls to start before the first is waited for.
    """

    def __init__(self, most: int | None = None):
        """Sets the number of calls at a time.

        Args:
          most: bound of the number; None leaves it to the cores.
        """
        self.at_a_time = min(usable_cores(), _MOST, most or _MOST)
        self.ahead = max(self.at_a_time, QUEUED)
        self._threads = ThreadPoolExecutor(self.at_a_time) if self.at_a_time > 1 else None
        self._compiled: set[Hashable] = set()

    def start(self, program: Hashable, call: Callable[[], Any]) -> Callable[[], Any]:
        """Starts a call.

        Args:
          program: names the program that the call runs; the first call of each compiles it.
          call: returns a tree of arrays on the device.

        Returns:
          A function that waits, and returns the tree as NumPy arrays or raises the call's error.
        """
        if self._threads is None:
            return functools.partial(jax.device_get, call())
        future = self._threads.submit(lambda: jax.device_get(call()))
        # The first runs alone: calls that find nothing compiled would all compile.
        if program not in self._compiled and future.exception() is None:
            self._compiled.add(program)
        return future.result
