"""How far long work is: a bar, or a plain line a minute where the output is no terminal."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

_REPORT_SECONDS = 60

_Item = TypeVar("_Item")


class Progress:
    """Counts what is done; the rate leaves out the time before the first was done.

    Before that programs are compiled. The output is the terminal's, standard error.
    """

    def __init__(self, total: int | None, unit: str, name: str = "", quiet: bool = False) -> None:
        """Starts counting.

        Args:
          total: of what there is to do; None if it is not known.
          unit: what is counted, in the singular.
          name: of the work.
          quiet: show nothing.
        """
        self._total, self._unit, self._name, self._quiet = total, unit, name, quiet
        self._done, self._reported = 0, time.monotonic()
        # When the first were done, and how many.
        self._first: float | None = None
        self._before = 0
        # None: on a terminal only.
        disable = True if quiet else None
        self._bar = tqdm(total=total, unit=unit, desc=name or None, disable=disable)

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._first is None:
            self._first, self._before = now, self._done
        if self._bar.disable and not self._quiet and now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            print(self._line(now - self._first), file=sys.stderr, flush=True)

    def reach(self, count: int) -> None:
        """So many are done in all."""
        self.update(count - self._done)

    def _line(self, seconds: float) -> str:
        of = f" of {self._total}" if self._total else ""
        line = f"{self._name}: " * bool(self._name) + f"{self._done}{of} {self._unit}s"
        if seconds and self._done > self._before:
            rate = (self._done - self._before) / seconds
            line += f", {rate:.3g} {self._unit}s/s"
            if self._total:
                line += f", {tqdm.format_interval((self._total - self._done) / rate)} left"
        return line

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()


def counted(
    items: Iterable[_Item], total: int, unit: str, name: str = "", quiet: bool = False
) -> Iterator[_Item]:
    """Passes items on and shows how many are done: one is when the next is taken."""
    with Progress(total, unit, name, quiet) as progress:
        for item in items:
            yield item
            progress.update()
