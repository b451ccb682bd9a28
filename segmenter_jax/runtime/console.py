"""The terminal: one logger, what of it is shown, and text that the terminal has no letters for."""

import io
import logging
import sys

from absl import logging as absl_logging

logger = logging.getLogger("segmenter_jax")


def print_anything() -> None:
    """Lets letters that a terminal or a redirected output has no codes for appear as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
