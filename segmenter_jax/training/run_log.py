"""Where a run's numbers and pictures go: `metrics.jsonl` and TensorBoard events."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from segmenter_jax.runtime.console import logger


class RunLog:
    """Writes scalars and pictures of one run; does nothing where `enabled` is false.

    A resumed run appends, after dropping what was logged beyond the step it resumes from, so that
    a step appears once however often the run was killed.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int, enabled: bool = True):
        """Opens the log.

        Args:
          workdir: local or remote; TensorBoard events need `tensorboardX` to know a remote one.
          resume_step: the last step that is kept.
          enabled: whether this process writes.
        """
        self._lines: list[str] = []
        self._path = self._file = self._events = None
        if not enabled:
            return
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        self._lines = _lines_until(self._path, resume_step)
        if "://" not in os.fspath(workdir):
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(self._lines))
            temporary.replace(self._path)
            self._file = self._path.open("a")
        self._events = _event_writer(os.fspath(workdir), resume_step + 1)

    def has(self, step: int, name: str) -> bool:
        """Whether a scalar of this name was logged for a step before this start."""
        return any(row["step"] == step and name in row for row in map(json.loads, self._lines))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line of scalars; names may hold "/" to group them."""
        if self._path is None:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._lines.append(json.dumps(line) + "\n")
        if self._file is None:
            # Object stores cannot append.
            self._path.write_text("".join(self._lines))
        else:
            self._file.write(self._lines[-1])
            self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 (H, W, 3), to the TensorBoard events."""
        if self._events is not None:
            self._events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes the files."""
        for file in (self._file, self._events):
            if file is not None:
                file.close()


def _event_writer(workdir: str, first_step: int) -> Any:
    """Writer of TensorBoard events; None, with a warning, where the file system is unknown."""
    try:
        return _summary_writer()(workdir, purge_step=first_step)
    except (ImportError, OSError) as error:
        if "://" not in workdir:
            raise
        logger.warning("no TensorBoard events in %s: %s", workdir, error)
        return None


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


def _lines_until(path: epath.Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            # A line cut short by a kill.
            continue
    return kept
