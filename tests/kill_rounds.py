"""Kills a tiny run at random moments, starts it again, and compares it with one left alone.

python -m tests.kill_rounds [ROUNDS] [SEED]
"""

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

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.tiny_runs import LIGHT, ROOT, environment, train_arguments, write_dataset

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


def kill(workdir: pathlib.Path, source: pathlib.Path, moment: str, rng: random.Random) -> None:
    """Starts the run and kills it at a moment, unless it ends before."""
    log, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    before = time.time()
    process = start(workdir, source)
    if moment == "while it starts":
        time.sleep(rng.uniform(0, 8))
    else:
        wait_until(lambda: log.exists() and log.stat().st_mtime > before, process)
        size = log.stat().st_size if log.exists() else 0
        wait_until(lambda: log.stat().st_size != size, process)
        time.sleep(rng.uniform(0, 1.5))
    if moment == "inside a save":
        wait_until(lambda: any(checkpoints.glob("*tmp*")), process)
        time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.wait()


def state_bytes(folder: pathlib.Path) -> dict[str, bytes]:
    """Every array of a checkpoint."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(folder / "state")
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in paths}


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
            kill(killed, source, moment, rng)
            names = sorted(path.name for path in (killed / "checkpoints").glob("*"))
            inside += any("tmp" in name for name in names)
            print(f"round {index + 1}, killed {moment}: {' '.join(names)}", flush=True)
        assert start(killed, source).wait() == 0, pathlib.Path(f"{killed}.log").read_text()
        messages = pathlib.Path(f"{killed}.log").read_text()
        assert "damaged" not in messages, messages
        last = f"checkpoints/{SETTINGS['total_steps']}"
        assert state_bytes(killed / last) == state_bytes(alone / last)
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
