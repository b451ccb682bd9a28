"""Metrics of steps between two log lines, and what is done when they are not finite."""

import collections
import dataclasses
import math
import time

import jax
import numpy as np
from jax.sharding import Mesh

from segmenter_jax.models.placement import platform_of


def steps_in_flight(mesh: Mesh) -> int:
    """Steps that the host may run ahead of the devices: to hide latency, of which a CPU has none.

    There each step that is begun holds its own temporary memory.
    """
    return 0 if platform_of(mesh) == "cpu" else 2


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


@dataclasses.dataclass
class Progress:
    """Metrics of the steps since the last log line; still on the device until `fetch`.

    Attributes:
      step: number of the last step before them.
      max_skipped: updates in a row that may be skipped because they are not finite.
      in_flight: see `steps_in_flight`.
      skipped_in_a_row: updates skipped up to `step`.
    """

    step: int
    max_skipped: int = 0
    in_flight: int = 2
    skipped_in_a_row: int = 0
    pending: collections.deque = dataclasses.field(default_factory=collections.deque)
    started: float = dataclasses.field(default_factory=time.monotonic)
    paused: float = 0.0

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of one more step, and waits if the host is too far ahead."""
        self.pending.append(metrics)
        if len(self.pending) > self.in_flight:
            self.pending[-1 - self.in_flight]["loss"].block_until_ready()

    def check_finite(self) -> None:
        """Looks at the pending steps.

        Raises:
          NonFiniteLossError: names the first step whose loss, gradient or update is not finite and
            that is not among `max_skipped` skipped ones in a row.
        """
        self._count_skipped(jax.device_get(list(self.pending)))

    def _count_skipped(self, rows: list[dict[str, np.ndarray]]) -> int:
        in_a_row = self.skipped_in_a_row
        for offset, row in enumerate(rows):
            # Finite loss with infinite gradients: the parameters are lost one step earlier.
            bad = [n for n in ("loss", "grad_norm", "update_norm") if not math.isfinite(row[n])]
            in_a_row = in_a_row + 1 if bad else 0
            if in_a_row <= self.max_skipped:
                continue
            skipped = f", after {self.max_skipped} skipped updates" if self.max_skipped else ""
            raise NonFiniteLossError(
                f"the {bad[0]} of step {self.step + offset + 1} is {float(row[bad[0]])}, "
                f"with learning rate {float(row['learning_rate']):.3g}{skipped}; the checkpoint "
                "before it is kept. A lower learning rate or optimizer.clip_norm may help"
            )
        return in_a_row

    def fetch(self) -> dict[str, float]:
        """Means over the pending steps, the rate, and a fresh start; raises as `check_finite`."""
        rows = jax.device_get(list(self.pending))
        self.skipped_in_a_row = self._count_skipped(rows)
        seconds = max(time.monotonic() - self.started - self.paused, 1e-9)
        # A skipped step's loss and norms say nothing about the others.
        counted = [row for row in rows if not row["skipped"]] or rows
        means = {name: float(np.mean([row[name] for row in counted])) for name in rows[0]}
        means["skipped"] = float(np.mean([row["skipped"] for row in rows]))
        means["learning_rate"] = float(rows[-1]["learning_rate"])
        means["steps_per_second"] = len(rows) / seconds
        self.step += len(rows)
        self.pending.clear()
        self.started, self.paused = time.monotonic(), 0.0
        return means
