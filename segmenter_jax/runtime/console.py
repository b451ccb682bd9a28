"""The terminal: one logger, what of it is shown, and tables of text."""

import logging
from collections.abc import Sequence

from absl import logging as absl_logging

logger = logging.getLogger("segmenter_jax")


def setup_console(is_main_process: bool) -> None:
    """Sends progress of the main process, and only warnings of the others, to the terminal."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main_process else logging.WARNING)
    # Orbax tells every stage of every save through absl, and its failures with their tracebacks,
    # which it also raises.
    absl_logging.set_verbosity(absl_logging.FATAL)


def aligned(rows: Sequence[Sequence[str]], alignment: str) -> str:
    """A table as lines of text.

    Args:
      rows: cells, as many in each row.
      alignment: "<" or ">" for each column: at which side its cells begin.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{a}{w}}" for cell, a, w in zip(row, alignment, widths, strict=True)
        ).rstrip()
        for row in rows
    )
