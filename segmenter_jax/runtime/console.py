"""The terminal: one logger, what of it is shown, in which order, and in which letters."""

import collections
import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator

from absl import logging as absl_logging

logger = logging.getLogger("segmenter_jax")


def print_anything() -> None:
    """Lets letters that a terminal or a redirected output has no codes for appear as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """For long output: that a reader such as `head` has had enough is no failure.

    What is printed has to be flushed within the block.
    """
    try:
        yield
    except BrokenPipeError:
        # What the buffer holds would fail once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit()


def setup_console(is_main_process: bool) -> None:
    """Sends progress of the main process, and only warnings of the others, to the terminal."""
    print_anything()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main_process else logging.WARNING)
    # Orbax tells every stage of every save through absl, and its failures with their tracebacks,
    # which it also raises.
    absl_logging.set_verbosity(absl_logging.FATAL)


class Warnings(logging.Filter):
    """Holds the warnings of a start back until `show`, and remembers all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self._held: list[logging.LogRecord] | None = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown now."""
        if record.levelno < logging.WARNING:
            return True
        if not self.started:
            self._held.append(record)
            return False
        self.counts[record.getMessage()] += 1
        return True

    @property
    def started(self) -> bool:
        """Whether the start is over."""
        return self._held is None

    def show(self) -> None:
        """Shows what was held back; later warnings show at once."""
        held, self._held = self._held or [], None
        for record in held:
            logger.handle(record)


@contextlib.contextmanager
def warnings_last() -> Iterator[Warnings]:
    """Keeps warnings from being buried: they come after what else a start shows.

    At the end of the block, unless it failed, all of them are told once more.

    Yields:
      Its `show` ends the start; a block that does not get so far has nothing to tell again.
    """
    warnings = Warnings()
    logger.addFilter(warnings)
    try:
        yield warnings
    finally:
        started = warnings.started
        warnings.show()
        logger.removeFilter(warnings)
    if started and warnings.counts:
        counts = warnings.counts.items()
        lines = [f"{text} ({n} times)" if n > 1 else text for text, n in counts]
        logger.info("warnings of this start:\n%s", "\n".join(f"  {line}" for line in lines))
