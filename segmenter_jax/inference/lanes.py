"""Calls of compiled functions side by side, where the device is a CPU.

XLA splits every operation of a program over the cores and waits for the slowest of them, some
hundred times in a forward pass. Two programs at once fill each other's waits, the more so where
the cores are shared with other work. Accelerators run one call after the other at full speed.
"""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax

from segmenter_jax.runtime.host import usable_cores

# Bounds the memory on machines of many cores.
_MOST = 4

# Calls on a device before the first is waited for: one runs while the next is being prepared.
_QUEUED = 2


class Call(Protocol):
    """A call that was started."""

    def result(self) -> Any:
        """Waits, and returns the tree of the call as NumPy arrays, or raises what it raised."""

    def cancel(self) -> bool:
        """Keeps the call from running if it is still waiting; whether it did."""


class _Dispatched:
    """A call that the device has queued already."""

    def __init__(self, tree: Any):
        self._tree = tree

    def result(self) -> Any:
        return jax.device_get(self._tree)

    def cancel(self) -> bool:
        return False


class Lanes:
    """Starts calls; on one CPU device as many at a time as there are cores, up to four.

    There they run in threads, which JAX's context managers around the caller do not reach.

    Attributes:
      count: calls that run at a time.
      in_flight: calls to start before waiting for the first.
    """

    def __init__(self, devices: Sequence[jax.Device], most: int | None = None):
        """Sets the number of lanes.

        Args:
          devices: that the calls run on.
          most: bound of the number; None leaves it to the cores.
        """
        # Several simulated devices share the cores themselves.
        alone = len(devices) == 1 and devices[0].platform == "cpu"
        self.count = min(usable_cores(), _MOST, most or _MOST) if alone else 1
        self.in_flight = max(self.count, _QUEUED)
        self._threads = ThreadPoolExecutor(self.count, "lane") if self.count > 1 else None
        self._compiled: set[Hashable] = set()

    def start(self, program: Hashable, call: Callable[[], Any]) -> Call:
        """Starts a call.

        Args:
          program: names the program that the call runs; the first call of each compiles it.
          call: returns a tree of arrays on the device.
        """
        if self._threads is None:
            return _Dispatched(call())
        future = self._threads.submit(lambda: jax.device_get(call()))
        # The first runs alone: calls that find nothing compiled would all compile.
        if program not in self._compiled and future.exception() is None:
            self._compiled.add(program)
        return future
