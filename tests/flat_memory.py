"""Watches the memory of a process over thousands of tiny steps.

python -m tests.flat_memory [STEPS]
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from tests.tiny_runs import ROOT, environment, train_arguments, write_dataset

# Steps before which caches and buffers are still filled.
WARM = 500


def resident_mib(pid: int) -> float:
    """Memory of a process, in MiB."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def last_step(workdir: pathlib.Path) -> int:
    """Step of the last whole line of a run's log."""
    log = workdir / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def main(steps: int = 2000) -> None:
    """Prints the memory over the steps; raises if it grew by 2 % or more."""
    with tempfile.TemporaryDirectory(prefix="flat_memory_") as folder:
        source = write_dataset(pathlib.Path(folder) / "scenes")
        workdir = pathlib.Path(folder) / "run"
        settings = {
            "total_steps": WARM + steps,
            "model__depth": 1,
            "model__decoder": "linear",
            "augment__crop_size": 32,
            "augment__base_size": 32,
            "eval__window": 32,
            "eval__every_steps": 500,
            "checkpoint__every_steps": 250,
            "log__every_steps": 50,
        }
        arguments = map(str, train_arguments(workdir, source, **settings))
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
        )
        samples = []
        while process.poll() is None:
            step = last_step(workdir)
            if step >= WARM:
                samples.append((step, resident_mib(process.pid)))
            time.sleep(0.1)
        assert process.returncode == 0
    table = np.array([sample for sample in samples if sample[1] > 0])
    quarter = len(table) // 4
    first, last = (float(np.median(part[:, 1])) for part in (table[:quarter], table[-quarter:]))
    growth = last / first - 1
    print(
        f"{steps} steps after the first {WARM}: median {first:.1f} MiB in their first quarter, "
        f"{last:.1f} MiB in their last, {100 * growth:+.2f} %"
    )
    assert growth < 0.02


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
