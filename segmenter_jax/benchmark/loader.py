"""The training loader: its stages, the loader alone, and the training step that it feeds."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import jax
import numpy as np

from segmenter_jax.benchmark.measure import Result, Timing, time_calls
from segmenter_jax.benchmark.step import StepSettings, TrainingStep
from segmenter_jax.data.datasets import Dataset
from segmenter_jax.data.images import decode_image
from segmenter_jax.data.pipeline import train_batches
from segmenter_jax.data.transforms import TrainTransform, read_label
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.training.program import Batch


@dataclasses.dataclass(frozen=True)
class LoaderSettings:
    """What the command line sets of the loader.

    Attributes:
      num_workers, num_threads, prefetch: see `train_batches`.
      rounds: of the steps with the loader and of those without, taking turns.
    """

    num_workers: int
    num_threads: int | None
    prefetch: int
    rounds: int

    def settle_steps(self, warmup: int, in_flight: int) -> int:
        """Untimed steps that use up what was made ready while the other side ran."""
        buffered = self.prefetch * max(self.num_workers, 1)
        return max(warmup, buffered + in_flight)


@dataclasses.dataclass(frozen=True)
class Rate:
    """Speed of one stage.

    Attributes:
      stage: what was done to each image.
      images_per_second: how often, in wall-clock time.
      images_per_core: the same per second of CPU time, over all threads of this process.
    """

    stage: str
    images_per_second: float
    images_per_core: float


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
      Reading alone; decoding of images and of labels alone; the transform alone and with reading.
    """
    # As the loader has it, which gives each of its threads one core.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    records = [source[i] for i in range(min(len(source), 64))]
    rng = np.random.default_rng(seed)
    spec = transform.spec
    stages: dict[str, Callable[[int], object]] = {
        "read": lambda i: source[i % len(source)],
        "decode image": lambda i: decode_image(
            records[i % len(records)]["image"], "image", channels=spec.channels, strict=False
        ),
        "decode label": lambda i: read_label(records[i % len(records)], spec),
        "transform": lambda i: transform(records[i % len(records)], rng),
        "read and transform": lambda i: transform(source[i % len(source)], rng),
    }
    try:
        return [_rate(stage, work, seconds) for stage, work in stages.items()]
    finally:
        cv2.setNumThreads(threads)


def _rate(stage: str, work: Callable[[int], object], seconds: float) -> Rate:
    work(0)
    start, cpu = time.perf_counter(), time.process_time()
    for count in itertools.count(1):
        work(count)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            break
    return Rate(stage, count / elapsed, count / max(time.process_time() - cpu, 1e-9))


def _run_ahead(step: TrainingStep, batches: Iterator[Batch | None], steps: int) -> float:
    """Seconds per step when the host does not wait for each, as in training."""
    pending: collections.deque[Any] = collections.deque()
    start = time.perf_counter()
    for _ in range(steps):
        pending.append(step(next(batches)))
        if len(pending) > step.in_flight:
            jax.block_until_ready(pending.popleft())
    jax.block_until_ready(list(pending))
    return (time.perf_counter() - start) / steps


def benchmark_loader(
    config: SegmenterConfig,
    settings: StepSettings,
    dataset: Dataset,
    split: str,
    loader: LoaderSettings,
    timing: Timing,
) -> Result:
    """The loader alone, and the training step with it against the step with a resident batch.

    Rounds of both take turns, so that a disturbance of the machine meets both.

    Args:
      config: the network.
      settings: of the step.
      dataset: a built one.
      split: of the dataset.
      loader: how batches are made.
      timing: steps of each round.
    """
    source = dataset.source(split)
    size = config.image_size[0]
    transform = TrainTransform(dataset.spec, crop_size=size, base_size=size, aspect_bound=4.0)
    rates = measure_stages(source, transform, seconds=1.0)
    step = TrainingStep(config, settings)
    settle = loader.settle_steps(timing.warmup, step.in_flight)
    with train_batches(
        source,
        transform,
        global_batch_size=settings.batch_size,
        seed=0,
        num_workers=loader.num_workers,
        num_threads=loader.num_threads,
        prefetch=loader.prefetch,
    ) as host_batches:
        alone = time_calls(lambda: next(host_batches), timing.steps, settle)
        feeds: dict[str, Callable[[], Batch | None]] = {
            "resident": lambda: None,
            "loader": lambda: step.put(next(host_batches)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in feeds}
        for _ in range(loader.rounds):
            for name, feed in feeds.items():
                batches = iter(feed, object())
                _run_ahead(step, batches, settle)
                seconds[name].append(_run_ahead(step, batches, timing.steps))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    ratios = np.divide(seconds["loader"], seconds["resident"])
    return {
        **{f"{rate.stage}, images/s per core": rate.images_per_core for rate in rates},
        "loader_images_per_s": settings.batch_size * len(alone) / sum(alone),
        "resident_step_ms": 1e3 * medians["resident"],
        "loader_step_ms": 1e3 * medians["loader"],
        "images_per_s": settings.batch_size / medians["loader"],
        "loader_over_resident": float(np.median(ratios)),
        "loader_over_resident_min": float(ratios.min()),
        "loader_over_resident_max": float(ratios.max()),
    }
