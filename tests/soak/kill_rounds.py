"""Kills a tiny run at random moments, starts it again, and compares it with one left alone.

python -m tests.soak.kill_rounds [ROUNDS] [SEED]
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

from tests.tiny_runs import LIGHT, ROOT, environment, state_bytes, train_arguments, write_dataset

# Every round gets a little further: it is killed within a few saves.
SETTINGS = LIGHT | {"total_steps": 160, "checkpoint__every_steps": 4, "log__every_steps": 1}
MOMENTS = ("while it starts", "while it trains", "inside a save")


def start(workdir: pathlib.Path, source: pathlib.Path) -> subprocess.Popen:
    """Starts the run; its messages are added to WORKDIR.log."""
    with open(f"{workdir}.log", "a") as log:
        arguments = map(str, train_arguments(workdir, source, **SETTINGS))
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment(), stderr=log
        )


def wait_until(condition, process: subprocess.Popen) -> None:
    """Waits until a condition holds or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.001)


def saves(workdir: pathlib.Path, since: float) -> bool:
    """Whether a save is not finished that began after a run was started."""
    log = workdir / "metrics.jsonl"
    # Opened after leftovers of earlier starts were removed.
    if not log.exists() or log.stat().st_mtime < since:
        return False
    for folder in (workdir / "checkpoints").glob("*tmp*"):
        # Gone if the save was finished in between.
        with contextlib.suppress(FileNotFoundError):
            if folder.stat().st_ctime > since:
                return True
    return False


def kill(workdir: pathlib.Path, source: pathlib.Path, moment: str, rng: random.Random) -> bool:
    """Starts the run and kills it at a moment, unless it ends before.

    Returns:
      Whether it was killed inside a save.
    """
    log, before = workdir / "metrics.jsonl", time.time()
    process = start(workdir, source)
    if moment == "while it starts":
        time.sleep(rng.uniform(0, 8))
    else:
        wait_until(lambda: log.exists() and log.stat().st_mtime > before, process)
        size = log.stat().st_size if log.exists() else 0
        wait_until(lambda: log.stat().st_size != size, process)
        time.sleep(rng.uniform(0, 1.5))
    if moment == "inside a save":
        wait_until(lambda: saves(workdir, before), process)
        time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return saves(workdir, before)


def main(rounds: int = 20, seed: int = 0) -> None:
    """Prints a line per round and raises if anything differs in the end."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kill_rounds_") as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
        source = write_dataset(pathlib.Path(folder) / "scenes")
        alone, killed = (pathlib.Path(folder) / name for name in ("alone", "killed"))
        assert start(alone, source).wait() == 0, pathlib.Path(f"{alone}.log").read_text()
        inside = 0
        for index in range(rounds):
            moment = MOMENTS[index % len(MOMENTS)]
            saving = kill(killed, source, moment, rng)
            inside += saving
            names = sorted(path.name for path in (killed / "checkpoints").glob("*"))
            note = ", inside a save" if saving and moment != "inside a save" else ""
            print(f"round {index + 1}, killed {moment}{note}: {' '.join(names)}", flush=True)
        assert start(killed, source).wait() == 0, pathlib.Path(f"{killed}.log").read_text()
        messages = pathlib.Path(f"{killed}.log").read_text()
        assert "damaged" not in messages, messages
        last = SETTINGS["total_steps"]
        assert state_bytes(killed, last) == state_bytes(alone, last)
        losses = [
            [
                (r["step"], r["train/loss"])
                for r in map(json.loads, text.splitlines())
                if "train/loss" in r
            ]
            for text in ((w / "metrics.jsonl").read_text() for w in (alone, killed))
        ]
        assert losses[0] == losses[1]
        resumed = messages.count("resumed at step")
    print(
        f"{rounds} rounds, {inside} of them inside a save, {resumed} resumed starts: "
        "the final state and all losses are those of the run left alone, bit for bit"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
