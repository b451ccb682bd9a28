"""Watches the memory of a process over thousands of tiny steps.

python -m tests.soak.flat_memory [STEPS]
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from tests.tiny_runs import LIGHT, ROOT, environment, train_arguments, write_dataset

# Steps between two looks. Before the first, everything has happened once: steps, log lines,
# checkpoints, an evaluation.
EVERY = 200

SETTINGS = LIGHT | {
    "model__width": 32,
    "batch_size": 2,
    "eval__every_steps": EVERY // 2,
    "checkpoint__every_steps": EVERY // 4,
    "log__every_steps": 10,
}


def own_mib(pid: int) -> float:
    """Memory of a process that no file backs, in MiB: pages of files come and go as others ask."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(values[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 2**10


def last_step(workdir: pathlib.Path) -> int:
    """Step of the last whole line of a run's log."""
    log = workdir / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def watch(process: subprocess.Popen, workdir: pathlib.Path) -> list[float]:
    """Memory of a run at every `EVERY`-th step, in MiB; prints it meanwhile."""
    found = []
    while process.poll() is None:
        step = last_step(workdir)
        if step >= EVERY * (len(found) + 1):
            found.append(own_mib(process.pid))
            print(f"step {step}: {found[-1]:.1f} MiB", flush=True)
        time.sleep(0.02)
    return found


def main(steps: int = 2000) -> None:
    """Prints the memory over the steps; raises if it grew by 2 % or more."""
    with tempfile.TemporaryDirectory(prefix="flat_memory_") as folder:
        source = write_dataset(pathlib.Path(folder) / "scenes")
        workdir = pathlib.Path(folder) / "run"
        # The last look comes before the end of the run.
        settings = SETTINGS | {"total_steps": EVERY + steps + EVERY // 2}
        with open(f"{workdir}.log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, train_arguments(workdir, source, **settings))],
                cwd=ROOT,
                env=environment(),
                stderr=log,
            )
        found = watch(process, workdir)
        assert process.returncode == 0, pathlib.Path(f"{workdir}.log").read_text()
    growth = max(found) / found[0] - 1
    print(f"{steps} steps after the first {EVERY}: at most {100 * growth:+.2f} %")
    assert growth < 0.02


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
