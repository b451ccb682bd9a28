"""Where a run's numbers and pictures go: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.files import absolute, is_local, naming, write_whole

METRICS_FILE = "metrics.jsonl"


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
        self._path = workdir / METRICS_FILE
        rows = _rows(self._path) if self._path.exists() else ()
        self._lines = [json.dumps(row) + "\n" for row in rows if row["step"] <= resume_step]
        if is_local(workdir):
            with write_whole(self._path) as part:
                part.write_text("".join(self._lines))
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
            with naming(self._path):
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
        if is_local(workdir):
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


def _rows(path: epath.Path) -> Iterator[dict[str, Any]]:
    """Lines of a log, but for one that is half written or was cut short by a kill."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row


def read_metrics(run: os.PathLike | str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every scalar that a run logged.

    Args:
      run: workdir of a run, with `metrics.jsonl`.

    Raises:
      ValueError: there is no such file, or it holds no numbers.
    """
    path = absolute(run) / METRICS_FILE
    if not path.exists():
        raise ValueError(f"{run}: not the workdir of a run (it has no {METRICS_FILE})")
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in _rows(path):
        for name, value in row.items():
            if name not in ("step", "time") and value is not None:
                steps, values = series.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    if not series:
        raise ValueError(f"{path}: no numbers yet")
    return series
