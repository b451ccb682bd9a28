"""Sources of records to batches: order, randomness and sharing between processes.

The global order of training records is a function of the seed alone: every epoch is shuffled anew
and epochs follow each other without a seam. Batch `step` of the whole machine is records
`step * B .. (step + 1) * B`, each transformed with a generator derived from the seed and its
position. So what a step sees depends on neither workers, threads nor processes, and a run resumes
from the step number.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from segmenter_jax.runtime.host import keep_freed_memory, usable_cores

# The default number of reading threads in a process is at most this.
_MAX_DEFAULT_THREADS = 4

# Added to the priority value of reading threads, on the scale of `nice`.
_NICENESS = 10

_thread = threading.local()


class Stream(Iterator[dict[str, Any]]):
    """An iterator whose background threads and processes end with `close` or the `with` block.

    Until then, if it reads in this process, OpenCV starts no threads here: those that read already
    use every core, and OpenCV has one setting for the whole process.

    Args:
      dataset: what to iterate over.
      reads_here: whether threads of this process do the work, rather than other processes.
    """

    def __init__(self, dataset: grain.IterDataset, *, reads_here: bool = True):
        self._iterator = iter(dataset)
        self._reads_here = reads_here
        self._opencv_threads = cv2.getNumThreads() if reads_here else 1
        if reads_here:
            cv2.setNumThreads(0)

    def __next__(self) -> dict[str, Any]:
        example = next(self._iterator)
        # Arrays of other processes are in shared memory, which their last user has to remove: that
        # would be JAX, which on a CPU keeps arrays as they are until this process has ended.
        return example if self._reads_here else {k: np.array(v) for k, v in example.items()}

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends prefetching; may be called twice."""
        self._iterator.close()
        # Of several open streams, the first has switched them off, and switches them on again.
        if self._opencv_threads > 1:
            cv2.setNumThreads(self._opencv_threads)
            self._opencv_threads = 1


def default_threads() -> int:
    """The default number of reading threads: one per core, up to four."""
    # More threads than cores would slow down a training step that runs on the same cores.
    return min(usable_cores(), _MAX_DEFAULT_THREADS)


def train_batches(
    source: Sequence[Any],
    transform: Callable[[Any, np.random.Generator], dict[str, np.ndarray]],
    *,
    global_batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int | None = None,
    prefetch: int = 4,
) -> Stream:
    """Endless training batches of one process.

    Batch `step` of process p holds records `step * B + p * B / P .. step * B + (p + 1) * B / P` of
    the global order, for global batch size B and P processes.

    Args:
      source: random access to records.
      transform: record and generator -> arrays of fixed shapes.
      global_batch_size: B, records per step over all processes.
      seed: determines order and random transformations.
      start_step: step of the first batch.
      process_index: p.
      process_count: P.
      num_workers: processes that read and transform; 0 does it in threads of this one.
      num_threads: reading threads, per worker if there are workers; 0 works on demand, None takes
        one for each core, up to four.
      prefetch: batches kept ready, per worker if there are workers.

    Returns:
      Iterator over the batches `start_step`, `start_step + 1`, ... of this process: the arrays of
      the transform with a leading axis B / P.

    Raises:
      ValueError: a size or index is out of range; B is not divisible by P.
    """
    _check_process(process_index, process_count)
    if len(source) == 0:
        raise ValueError("the training split has no records")
    _check_batch(global_batch_size, process_count)
    num_threads = default_threads() if num_threads is None else num_threads
    if start_step < 0 or num_workers < 0 or num_threads < 0 or prefetch < 1:
        raise ValueError(
            f"{start_step=}, {num_workers=} and {num_threads=} must not be negative, "
            f"{prefetch=} must be at least 1"
        )
    if num_threads:
        transform = functools.partial(_in_background, transform)
    batches = _ordered_batches(source, transform, global_batch_size // process_count, seed)
    # In global order, process p owns every P-th share of a batch from p on.
    mine = batches[start_step * process_count + process_index :: process_count]
    dataset = mine.to_iter_dataset(_read_options(num_threads, prefetch))
    if num_workers:
        return Stream(_in_workers(dataset, num_workers, prefetch), reads_here=False)
    return Stream(dataset)


def _ordered_batches(
    source: Sequence[Any],
    transform: Callable[[Any, np.random.Generator], dict[str, np.ndarray]],
    size: int,
    seed: int,
) -> grain.MapDataset:
    """Endless batches of `size` records in the order of the seed."""
    return (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat(None, reseed_each_epoch=True)
        .random_map(transform)
        # Nothing is dropped from an endless order; without it Grain overflows at batch size 1.
        .batch(size, drop_remainder=True)
    )


def _in_workers(dataset: grain.IterDataset, num_workers: int, prefetch: int) -> grain.IterDataset:
    """Moves the work to processes that make the batches in turn."""
    if not flags.FLAGS.is_parsed():
        # Grain reads absl flags, which only `app.run` parses.
        flags.FLAGS.mark_as_parsed()
    # Workers share whole batches of an endless order, so none is dropped at their seams.
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
    return dataset.mp_prefetch(options, worker_init_fn=_start_worker)


def eval_examples(
    source: Sequence[Any],
    transform: Callable[[Any], dict[str, Any]],
    *,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
) -> Stream:
    """Every record of a split exactly once over all processes.

    Args:
      source: random access to records.
      transform: record -> example.
      process_index: p; this process reads records p, p + P, p + 2P, ...
      process_count: P.
      num_threads: reading threads; see `train_batches`.

    Returns:
      Iterator over this process's examples, in order; empty if there are fewer records than
      processes and none is left for this one.

    Raises:
      ValueError: the process index is out of range.
    """
    _check_process(process_index, process_count)
    num_threads = default_threads() if num_threads is None else num_threads
    dataset = grain.MapDataset.source(source)[process_index::process_count].map(transform)
    return Stream(dataset.to_iter_dataset(_read_options(num_threads, 4 * num_threads)))


def _check_process(process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(f"{process_index=} must lie in 0..{process_count - 1}, {process_count=}")


def _check_batch(global_batch_size: int, process_count: int) -> None:
    if global_batch_size < 1 or global_batch_size % process_count:
        raise ValueError(
            f"{global_batch_size=} must be a multiple of {process_count=}, for example "
            f"{max(global_batch_size // process_count, 1) * process_count} or "
            f"{(global_batch_size // process_count + 1) * process_count}"
        )


def _read_options(num_threads: int, buffer_size: int) -> grain.ReadOptions:
    if num_threads == 0:
        return grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(buffer_size, num_threads)
    )


def _start_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    cv2.setNumThreads(0)
    keep_freed_memory()


def _in_background(
    transform: Callable[[Any, np.random.Generator], dict[str, np.ndarray]],
    record: Any,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The transform in a thread that leaves the cores to those of the training step."""
    if not getattr(_thread, "is_lowered", False):
        _thread.is_lowered = True
        # Only Linux has priorities for threads.
        if sys.platform == "linux":
            thread = threading.get_native_id()
            priority = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, thread, priority)
    return transform(record, rng)
