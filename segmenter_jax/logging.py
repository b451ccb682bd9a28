"""Where a run's numbers and pictures go: console, `metrics.jsonl`, TensorBoard events."""

import json
import logging
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import numpy as np
from absl import logging as absl_logging

logger = logging.getLogger("segmenter_jax")


def setup_console(is_main_process: bool) -> None:
    """Sends progress of the main process, and only warnings of the others, to the terminal."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main_process else logging.WARNING)
    # Orbax tells every stage of every save through absl, at level INFO.
    absl_logging.set_verbosity(absl_logging.WARNING)


class RunLog:
    """Writes scalars and pictures of one run; does nothing where `enabled` is false.

    A resumed run appends, after dropping what was logged beyond the step it resumes from, so that
    a step appears once however often the run was killed.
    """

    def __init__(self, workdir: str | pathlib.Path, resume_step: int, enabled: bool = True):
        self._file = self._events = None
        if not enabled:
            return
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _drop_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        self._events = _summary_writer()(str(workdir), purge_step=resume_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line of scalars; names may hold "/" to group them."""
        if self._file is None:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 (H, W, 3), to the TensorBoard events."""
        if self._events is not None:
            self._events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            self._file.close()
            self._events.close()


def _summary_writer() -> type:
    """`tensorboardX.SummaryWriter`, without the PyTorch that it imports where there is one."""
    hide = "torch" not in sys.modules
    if hide:
        # An entry of None makes the import fail, which tensorboardX takes for "not installed".
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter


def _drop_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            # A line cut short by a kill.
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
