"""Segments many small pictures in shards, kills some of them, and compares with one process.

python -m tests.soak.big_jobs [PICTURES] [NAMES]

Four shards write to one folder at the same time; two of them are killed twice and started again.
Where Ray is installed, a cluster of two nodes does the same work, and one of them is killed. In the
end every result has to be there once and whole, byte for byte that of a run left alone, the
manifest has to name every picture once, and no process may have grown. NAMES is how many sources
are planned, and found to be recorded, without being there, to see what memory they take.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from segmenter_jax.inference.plan import Plan
from segmenter_jax.inference.record_files import RECORDS_FILE
from segmenter_jax.inference.records import Records, manifest
from segmenter_jax.runtime.progress import Progress
from tests.models_on_disk import write_golden_model
from tests.ray_cluster import ray_cluster
from tests.soak.flat_memory import own_mib
from tests.soak.predict_kills import files, write_picture
from tests.tiny_runs import ROOT, environment

SHARDS = 4
KILLED, KILLS = (1, 2), 2

# Growth after the first tenth of the work, in which everything has happened once.
MOST_GROWTH_MIB = 32


class Worker:
    """A process that segments, killed and started again as often as it is to be.

    Attributes:
      memory: MiB at each look.
    """

    def __init__(self, arguments: list, records: pathlib.Path, pictures: int, kills: int = 0):
        self._arguments, self._records, self._pictures = arguments, records, pictures
        rng = random.Random(str(records))
        # Moments at which so many are recorded, and some time later.
        shares = sorted(rng.uniform(0.05, 0.9) for _ in range(kills))
        self._kill_at = [int(share * pictures) for share in shares]
        self.memory: list[float] = []
        self._start()

    def _start(self) -> None:
        # Of one that goes on, the first tenth of its own work counts.
        self._found = self.recorded()
        with open(f"{self._records.parent}.log", "a") as log:
            command = [sys.executable, "-m", "segmenter_jax.predict", *map(str, self._arguments)]
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdout=log, stderr=log
            )

    def recorded(self) -> int:
        """Pictures whose results are recorded."""
        return self._records.read_bytes().count(b"\n") if self._records.exists() else 0

    def look(self) -> bool:
        """Looks after the process; returns whether it has ended for good."""
        done = self.recorded()
        if self.process.poll() is None:
            if done > self._found + self._pictures // 10:
                # Of one that ends just now, there is nothing to see.
                with contextlib.suppress(KeyError):
                    self.memory.append(own_mib(self.process.pid))
            if self._kill_at and done >= self._kill_at[0]:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                print(f"killed {self._records.name} at {done} of {self._pictures}", flush=True)
                self._kill_at.pop(0)
                # Memory is that of one process.
                self.memory.clear()
                self._start()
            return False
        assert self.process.returncode == 0, pathlib.Path(f"{self._records.parent}.log").read_text()
        return True


def watch(
    workers: list[Worker], name: str, pictures: int, report: Callable[[int], None] = lambda _: None
) -> None:
    """Waits for workers; prints their rate and memory and raises if one has grown.

    Args:
      workers: they work at the same time.
      name: of what they do.
      pictures: how many there are for all of them.
      report: is told again and again how many are recorded.
    """
    started = time.monotonic()
    with Progress(pictures, "picture", name) as progress:
        seen = 0
        while not all([worker.look() for worker in workers]):
            time.sleep(0.2)
            if (done := sum(worker.recorded() for worker in workers)) > seen:
                progress.update(done - seen)
                seen = done
            report(seen)
    seconds = time.monotonic() - started
    print(f"{name}: {pictures / seconds:.1f} pictures/s in {seconds:.0f} s", flush=True)
    for worker in workers:
        if worker.memory:
            first, most = worker.memory[0], max(worker.memory)
            print(f"  memory {first:.0f} MiB, at most {most:.0f} MiB", flush=True)
            assert most - first < MOST_GROWTH_MIB


def watch_cluster(arguments: list, folder: pathlib.Path, pictures: int) -> None:
    """Waits for a job on a Ray cluster, a node of which is killed while it works."""

    def kill_one(done: int) -> None:
        if len(cluster.nodes) == 2 and done > pictures // 4:
            cluster.kill_one_at_work()
            print(f"killed a node at {done} of {pictures}", flush=True)

    with ray_cluster() as cluster:
        os.environ["RAY_ADDRESS"] = cluster.address
        try:
            job = Worker([*arguments, folder, "--engine", "ray"], folder / RECORDS_FILE, pictures)
            watch([job], "2 nodes of Ray", pictures, kill_one)
        finally:
            del os.environ["RAY_ADDRESS"]
        assert len(cluster.nodes) == 1


def check(shared: pathlib.Path, alone: pathlib.Path, pictures: int) -> None:
    """Raises unless a folder holds every result once and whole, and lists every picture."""
    found, expected = files(shared), files(alone)
    for name in [name for name in found if name.endswith(".jsonl")]:
        del found[name]
    # Of several shards it has all classes.
    del found["legend.png"], expected["legend.png"]
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())[:10]
    assert found == expected
    lines = [
        json.loads(line)["result"]
        for file in shared.glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert len(set(lines)) == len(lines) == pictures
    entries = list(manifest(shared))
    assert len(entries) == len({entry["source"] for entry in entries}) == pictures
    assert all(entry["results"] and entry["seconds"] and not entry["error"] for entry in entries)


def many_names(folder: pathlib.Path, count: int) -> None:
    """Prints what memory it takes to plan many sources and to know what is recorded of them."""
    before, started = own_mib(os.getpid()), time.monotonic()
    with open(folder / RECORDS_FILE, "w") as file:
        for index in range(count):
            record = {"result": f"ids/{index:08d}.png", "source": f"/in/{index:08d}.png"}
            file.write(json.dumps(record | {"model": "0" * 64, "bytes": index}) + "\n")
    plan = Plan()
    for index in range(count):
        name = f"{index:08d}.png"
        plan.add(pathlib.Path("/in", name), 0, pathlib.PurePath(name))
    plan.settle()
    records = Records(folder)
    plan.keep(lambda path: records.find(f"ids/{plan[path]}.png") is None)
    assert len(plan) == 0
    grown = own_mib(os.getpid()) - before
    seconds = time.monotonic() - started
    print(f"{count} names: {grown:+.0f} MiB, {seconds:.0f} s", flush=True)
    assert grown < MOST_GROWTH_MIB


def main(pictures: int = 20_000, names: int = 1_000_000) -> None:
    """Prints rates and memory; raises if anything differs in the end."""
    with tempfile.TemporaryDirectory(prefix="big_jobs_") as name:
        folder = pathlib.Path(name)
        many_names(folder, names)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
        model, inputs = write_golden_model(folder / "model"), folder / "in"
        inputs.mkdir()
        for index in range(pictures):
            write_picture(inputs / f"{index:05d}.png", index)
        alone, shared = folder / "alone", folder / "shared"
        arguments = [model, inputs, "--save", "ids", "-o"]
        watch([Worker([*arguments, alone], alone / RECORDS_FILE, pictures)], "alone", pictures)
        workers = [
            Worker(
                [*arguments, shared, "--shard", f"{i}/{SHARDS}"],
                shared / f"results.{i}-of-{SHARDS}.jsonl",
                pictures // SHARDS,
                KILLS * (i in KILLED),
            )
            for i in range(SHARDS)
        ]
        watch(workers, f"{SHARDS} shards", pictures)
        check(shared, alone, pictures)
        print(f"{pictures} pictures, {KILLS * len(KILLED)} kills: every result once and whole")
        if importlib.util.find_spec("ray"):
            watch_cluster(arguments, folder / "cluster", pictures)
            check(folder / "cluster", alone, pictures)
            print(f"{pictures} pictures, a node killed: every result once and whole")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
