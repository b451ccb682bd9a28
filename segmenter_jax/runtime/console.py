"""The terminal: one logger, and what of it is shown."""

import logging

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
