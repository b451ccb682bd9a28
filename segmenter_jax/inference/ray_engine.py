"""Many sources on a cluster of machines: Ray Data gives pieces of the list to models.

Each device of the cluster, or each machine without any, has a process with the model. It writes
results, as one process alone would; only the process that asked keeps records, so that what was
lost with a machine, and is made again by another, counts once. The list lies beside the results,
and every process reads the pieces that it is given.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.inference.plan import Plan
from segmenter_jax.inference.predictor import Predictor, read_model
from segmenter_jax.inference.records import Record, source_record
from segmenter_jax.inference.results import Results, Wanted
from segmenter_jax.inference.run import Run
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.files import full_name, place, read_bytes, remove_all, write_whole
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.runtime.progress import Progress

# Sources that are given to a process at a time, and made again where it is lost.
PIECE = 64

_LIST = ".todo.jsonl"


@dataclasses.dataclass(frozen=True)
class Job:
    """What each process has to know.

    Attributes:
      model: as `read_model` takes it, with the same meaning on every machine.
      weights: its `weights_digest`.
      protocol: fields of `InferenceSettings` that differ from the model's own.
      wanted: what to make.
      outputs: maps to compute, see `SlidingWindow.predict`.
    """

    model: str
    weights: str
    protocol: Mapping[str, Any]
    wanted: Wanted
    outputs: tuple[str, ...]


def connect() -> types.ModuleType:
    """Joins the Ray cluster that this process is in, or starts one on this machine.

    Returns:
      The module `ray`.

    Raises:
      ImportError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('--engine ray needs Ray: pip install "segmenter_jax[ray]"') from error
    if not ray.is_initialized():
        ray.init()
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def segment_on_ray(
    ray: types.ModuleType,
    job: Job,
    plan: Plan,
    results: Results,
    quiet: bool,
) -> int:
    """Segments all sources of a plan on a Ray cluster.

    All machines see sources and results under the same names.

    Args:
      ray: see `connect`.
      job: what every process has to know.
      plan: what is to be made.
      results: gets the records.
      quiet: show no progress.

    Returns:
      How many sources were skipped.
    """
    if not plan:
        return 0
    folder = place(full_name(results.folder))
    options, count = _actors(ray)
    failed = 0
    with list_file(folder, plan) as offsets:
        number = len(offsets) - 1
        # Not `range`, which makes its numbers in tasks that want whole cores.
        numbers = ray.data.from_items(list(range(number)), override_num_blocks=number)
        pieces = numbers.map_batches(
            Worker,
            fn_constructor_args=(job, folder, offsets),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
            scheduling_strategy="SPREAD",
            **options,
        )
        with Progress(len(plan), "file", quiet=quiet) as progress:
            for piece in pieces.iter_rows():
                results.take(json.loads(piece["records"]), json.loads(piece["seen"]))
                failed += piece["failed"]
                progress.update(piece["sources"])
    return int(failed)


def _actors(ray: types.ModuleType) -> tuple[dict[str, float], int]:
    """What each process needs of a machine, and how many there may be."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := sum(int(resources.get("GPU", 0)) for resources in nodes):
        return {"num_gpus": 1, "num_cpus": 0}, gpus
    # A process takes all cores of its machine, also of one whose process was lost; claiming a bit
    # of one keeps it from machines without cores for work, such as the head of many clusters.
    return {"num_cpus": 0.01}, sum("CPU" in resources for resources in nodes)


@contextlib.contextmanager
def list_file(folder: pathlib.Path, plan: Plan) -> Iterator[np.ndarray]:
    """Keeps a list of what is to be made, in a folder, while it is needed.

    Args:
      folder: of the results.
      plan: what is to be made.

    Yields:
      int64 (pieces + 1,): where each piece begins in the list, in bytes, and the end.
    """
    path, offsets = folder / _LIST, []
    with write_whole(path) as part, open(part, "w", encoding="ascii") as file:
        for number, (source, stem) in enumerate(plan.items()):
            if number % PIECE == 0:
                offsets.append(file.tell())
            listed = plan.listed(source)
            file.write(json.dumps([full_name(source), os.fspath(stem), listed]) + "\n")
        offsets.append(file.tell())
    try:
        yield np.array(offsets, np.int64)
    finally:
        remove_all([path])


class Worker:
    """A model in a process of the cluster, which Ray calls with batches of piece numbers."""

    def __init__(self, job: Job, folder: pathlib.Path, offsets: np.ndarray) -> None:
        """Reads the model.

        Args:
          job: what every process has to know.
          folder: of the results, with the list in it.
          offsets: see `list_file`.

        Raises:
          ValueError: another model lies there than where the job began.
        """
        keep_freed_memory()
        prepare_compilation()
        self._job, self._folder, self._offsets = job, folder, offsets
        description, params = read_model(job.model)
        if weights_digest(params) != job.weights:
            raise ValueError(f"{job.model}: is another model here than where the job began")
        self._predictor = Predictor(description, params)
        self._engine = self._predictor.engine(**job.protocol)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        rows = [self._segment(int(piece)) for piece in batch["item"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _segment(self, piece: int) -> dict[str, Any]:
        (plan, listed), records = self._read(piece), _Kept()
        job, settings = self._job, self._engine.settings
        description = self._predictor.description
        results = Results(
            *(self._folder, plan, job.wanted, description, settings, job.weights, records),
            source=lambda path: listed[path] or source_record(path),
        )
        run = Run(self._predictor, self._engine, job.outputs, results, quiet=True)
        failed = run.segment(plan)
        return {
            "records": json.dumps(records.records),
            "seen": json.dumps(results.facts.counts()),
            "failed": failed,
            "sources": len(plan),
        }

    def _read(
        self, piece: int
    ) -> tuple[dict[pathlib.Path, pathlib.PurePath], dict[pathlib.Path, Record | None]]:
        """Sources of a piece with the names of their results, and what was listed of objects."""
        text = read_bytes(self._folder / _LIST, *self._offsets[piece : piece + 2].tolist())
        rows = [(place(path), *rest) for path, *rest in map(json.loads, text.splitlines())]
        return (
            {path: pathlib.PurePath(stem) for path, stem, _ in rows},
            {path: listed for path, _, listed in rows},
        )


class _Kept:
    """Keeps records for who asked."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, records: Iterable[Record]) -> None:
        self.records += records
