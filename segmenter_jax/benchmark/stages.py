"""How many images per second the loader gives, by stage."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from segmenter_jax.data.images import decode_image, unpack_ids
from segmenter_jax.data.pipeline import default_threads, train_batches
from segmenter_jax.data.transforms import TrainTransform


@dataclasses.dataclass(frozen=True)
class Rate:
    """Speed of one stage.

    Attributes:
      stage: what was done to each image.
      images_per_second: how often, in wall-clock time.
      images_per_core: the same per second of CPU time, over all threads of this process; None
        where other processes do the work.
    """

    stage: str
    images_per_second: float
    images_per_core: float | None


def measure_stages(
    source: Sequence[Any], transform: TrainTransform, *, seconds: float = 2.0, seed: int = 0
) -> list[Rate]:
    """Measures each stage of the training loader in one thread.

    Args:
      source: records.
      transform: the training transform.
      seconds: how long each stage is run.
      seed: of the random crops.

    Returns:
      Reading alone; decoding of images and of labels alone, unless the source is decoded; the
      transform alone and with reading.
    """
    cv2.setNumThreads(0)
    records = [source[i] for i in range(min(len(source), 64))]
    rng = np.random.default_rng(seed)
    spec = transform.spec
    stages: dict[str, Callable[[int], object]] = {"read": lambda i: source[i % len(source)]}
    if not isinstance(records[0]["image"], np.ndarray):
        stages |= {
            "decode image": lambda i: decode_image(
                records[i % len(records)]["image"], "image", channels=spec.channels
            ),
            "decode label": lambda i: unpack_ids(records[i % len(records)]["label_ids"], "label"),
        }
    stages |= {
        "transform": lambda i: transform(records[i % len(records)], rng),
        "read and transform": lambda i: transform(source[i % len(source)], rng),
    }
    return [_rate(stage, work, seconds) for stage, work in stages.items()]


def measure_loader(
    source: Sequence[Any],
    transform: TrainTransform,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    num_threads: int | None = None,
    prefetch: int = 4,
    seconds: float = 5.0,
    seed: int = 0,
) -> Rate:
    """Measures the training loader as training uses it, after its buffers have filled.

    Args:
      source: records.
      transform: the training transform.
      batch_size: images per batch.
      num_workers, num_threads, prefetch: see `train_batches`.
      seconds: how long it is run.
      seed: of order and crops.
    """
    num_threads = default_threads() if num_threads is None else num_threads
    with train_batches(
        source,
        transform,
        global_batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        num_threads=num_threads,
        prefetch=prefetch,
    ) as batches:
        # What is ready before the clock starts must not count.
        for _ in range(prefetch * max(num_workers, 1) + num_threads + 1):
            next(batches)
        stage = f"loader, {num_workers} workers, {num_threads} threads"
        rate = _rate(stage, lambda _: next(batches), seconds)
    return dataclasses.replace(
        rate,
        images_per_second=rate.images_per_second * batch_size,
        images_per_core=None if num_workers else rate.images_per_core * batch_size,
    )


def _rate(stage: str, work: Callable[[int], object], seconds: float) -> Rate:
    work(0)
    start, cpu = time.perf_counter(), time.process_time()
    for count in itertools.count(1):
        work(count)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            break
    return Rate(stage, count / elapsed, count / max(time.process_time() - cpu, 1e-9))
