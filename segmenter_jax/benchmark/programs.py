"""The training step, inference, evaluation and the loader, as the commands run them."""

import argparse
import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from segmenter_jax.benchmark import flops
from segmenter_jax.benchmark.measure import (
    Result,
    compile_timed,
    device_memory,
    summarise,
    time_calls,
)
from segmenter_jax.benchmark.stages import measure_stages
from segmenter_jax.data.datasets import Dataset, build_dataset
from segmenter_jax.data.pipeline import Stream, eval_examples, train_batches
from segmenter_jax.data.transforms import EvalTransform, TrainTransform
from segmenter_jax.evaluation.scoring import score
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.models.normalization import NORMALIZATION
from segmenter_jax.models.params import init_params
from segmenter_jax.training import sharding
from segmenter_jax.training.optimizers import make_optimizer
from segmenter_jax.training.state import StepOptions, TrainState, create_train_state
from segmenter_jax.training.step import make_train_step
from segmenter_jax.training.step_metrics import MAX_STEPS_IN_FLIGHT

Batch = dict[str, jax.Array]

_MEAN, _STD = NORMALIZATION["vit"]


@dataclasses.dataclass(frozen=True)
class StepParts:
    """The project's training step with SGD, not yet compiled, and what it is made of."""

    model: Segmenter
    optimizer: optax.GradientTransformation
    options: StepOptions
    mesh: Mesh
    step: Any


def step_parts(config: SegmenterConfig, options: argparse.Namespace) -> StepParts:
    """Builds the training step that the flags describe."""
    model = Segmenter(config)
    mesh = sharding.make_mesh(options.fsdp, options.devices)
    sharding.check_batch_size(options.batch_size, mesh, options.grad_accum_steps)
    schedule = optax.constant_schedule(1e-3)
    optimizer = make_optimizer("sgd", momentum=0.9, weight_decay=0.0, clip_norm=None)
    step_options = StepOptions(
        _MEAN,
        _STD,
        photometric=options.photometric,
        grad_accum_steps=options.grad_accum_steps,
        loss_implementation=options.loss,
        num_shards=mesh.size,
    )
    step = make_train_step(model, optimizer, schedule, step_options, mesh, seed=0)
    return StepParts(model, optimizer, step_options, mesh, step)


class TrainingStep:
    """The project's compiled training step, and a batch that stays on the device."""

    def __init__(self, config: SegmenterConfig, options: argparse.Namespace):
        parts = step_parts(config, options)
        self.mesh = parts.mesh
        self.state: TrainState = create_train_state(
            parts.model, parts.optimizer, parts.options, parts.mesh, seed=0
        )
        self.batch = sharding.put_batch(random_batch(config, options.batch_size), self.mesh)
        self.compiled, self.memory = compile_timed(parts.step, self.state, self.batch)

    def __call__(self, batch: Batch | None = None) -> Any:
        """One step on `batch`, or on the resident one; returns its metrics."""
        batch = self.batch if batch is None else batch
        self.state, metrics = self.compiled(self.state, batch)
        return metrics


def random_batch(config: SegmenterConfig, batch_size: int) -> dict[str, np.ndarray]:
    """A uint8 training batch of noise; every pixel is labelled."""
    rng = np.random.default_rng(0)
    shape = (batch_size, *config.image_size)
    return {
        "image": rng.integers(0, 256, (*shape, config.in_channels), np.uint8),
        "label": rng.integers(0, min(config.num_classes, 255), shape, np.uint8),
        "valid_size": np.full((batch_size, 2), config.image_size, np.int32),
    }


def benchmark_step(config: SegmenterConfig, options: argparse.Namespace) -> Result:
    """The training step on a resident batch, each waited for."""
    step = TrainingStep(config, options)
    times = summarise(time_calls(step, options.steps, options.warmup))
    _profile(step, options)
    images_per_s = 1e3 * options.batch_size / times["step_ms"]
    work = flops.TRAIN_FACTOR * sum(flops.forward_flops(config).values())
    return {
        "images_per_s": images_per_s,
        **times,
        **flops.utilisation(work, images_per_s, step.mesh.size, options.peak),
        **step.memory,
        **device_memory(),
        "loss": float(step()["loss"]),
    }


def _profile(call: Callable[[], Any], options: argparse.Namespace) -> None:
    """Traces some more calls: tracing takes time, so none of them is a timed one."""
    if options.profile:
        with jax.profiler.trace(options.profile):
            time_calls(call, options.profile_steps, warmup=0)


def _engine(config: SegmenterConfig, options: argparse.Namespace) -> SlidingWindow:
    window = config.image_size[0]
    settings = InferenceSettings(
        window=window,
        stride=options.stride or window,
        scales=options.scales,
        flip=options.flip,
        batch_size=options.batch_size,
    )
    devices = jax.local_devices()[: options.devices]
    return SlidingWindow(Segmenter(config), settings, mean=_MEAN, std=_STD, devices=devices)


def _random_params(config: SegmenterConfig) -> Any:
    return jax.jit(lambda: init_params(config, seed=0))()


def benchmark_infer(config: SegmenterConfig, options: argparse.Namespace) -> Result:
    """Images on the host to class ids on the host, `batch_size` images at a time."""
    engine, params = _engine(config, options), _random_params(config)
    images = random_batch(config, options.batch_size)["image"]
    examples = [{"image": image} for image in images]

    def predict() -> list[np.ndarray]:
        return [maps["ids"] for _, maps in engine.predict(params, examples)]

    start = time.perf_counter()
    predict()
    first_s = time.perf_counter() - start
    times = summarise(time_calls(predict, options.steps, options.warmup))
    _profile(predict, options)
    images_per_s = 1e3 * options.batch_size / times["step_ms"]
    result = {"protocol": engine.settings.protocol(), "images_per_s": images_per_s, **times}
    if options.scales == (1.0,) and not options.flip:
        work = sum(flops.forward_flops(config).values())
        devices = options.devices or jax.local_device_count()
        result |= flops.utilisation(work, images_per_s, devices, options.peak)
    return result | {"first_call_s": first_s} | device_memory()


def _dataset(options: argparse.Namespace) -> Dataset:
    return build_dataset(options.dataset, options.data_dir)


def benchmark_evaluate(config: SegmenterConfig, options: argparse.Namespace) -> Result:
    """A split from records to its report, as `segmenter_jax.evaluate` does it."""
    dataset = _dataset(options)
    source = dataset.source(options.split)
    engine, params = _engine(config, options), _random_params(config)

    def run() -> tuple[float, Any]:
        start = time.perf_counter()
        with contextlib.closing(eval_examples(source, EvalTransform(dataset.spec))) as examples:
            results = engine.predict(params, examples)
            report = score(results, dataset.spec, engine.settings.protocol())
        return time.perf_counter() - start, report

    first_s, _ = run()
    with jax.profiler.trace(options.profile) if options.profile else contextlib.nullcontext():
        seconds, report = run()
    return {
        "protocol": engine.settings.protocol(),
        "images": report.num_images,
        "images_per_s": report.num_images / seconds,
        "seconds": seconds,
        "first_run_s": first_s,
        **device_memory(),
    }


def _real_batches(
    dataset: Dataset, transform: TrainTransform, options: argparse.Namespace
) -> Stream:
    return train_batches(
        dataset.source(options.split),
        transform,
        global_batch_size=options.batch_size,
        seed=0,
        num_workers=options.num_workers,
        num_threads=options.num_threads,
        prefetch=options.prefetch,
    )


def _run_ahead(step: TrainingStep, batches: Iterator[Batch | None], steps: int) -> float:
    """Seconds per step when the host does not wait for each, as in training."""
    pending: collections.deque[Any] = collections.deque()
    start = time.perf_counter()
    for _ in range(steps):
        pending.append(step(next(batches)))
        if len(pending) > MAX_STEPS_IN_FLIGHT:
            jax.block_until_ready(pending.popleft())
    jax.block_until_ready(list(pending))
    return (time.perf_counter() - start) / steps


def benchmark_loader(config: SegmenterConfig, options: argparse.Namespace) -> Result:
    """The loader alone, and the training step with it against the step with a resident batch.

    Rounds of both take turns, so that a disturbance of the machine meets both.
    """
    dataset = _dataset(options)
    size = config.image_size[0]
    transform = TrainTransform(dataset.spec, crop_size=size, base_size=size, aspect_bound=4.0)
    rates = measure_stages(dataset.source(options.split), transform, seconds=1.0)
    step = TrainingStep(config, options)
    with contextlib.closing(_real_batches(dataset, transform, options)) as host_batches:
        alone = time_calls(lambda: next(host_batches), options.steps, _settle(options))
        feeds: dict[str, Callable[[], Batch | None]] = {
            "resident": lambda: None,
            "loader": lambda: sharding.put_batch(next(host_batches), step.mesh),
        }
        seconds: dict[str, list[float]] = {name: [] for name in feeds}
        for _ in range(options.rounds):
            for name, feed in feeds.items():
                batches = iter(feed, object())
                _run_ahead(step, batches, _settle(options))
                seconds[name].append(_run_ahead(step, batches, options.steps))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    ratios = np.divide(seconds["loader"], seconds["resident"])
    return {
        **{f"{rate.stage}, images/s per core": rate.images_per_core for rate in rates},
        "loader_images_per_s": options.batch_size * len(alone) / sum(alone),
        "resident_step_ms": 1e3 * medians["resident"],
        "loader_step_ms": 1e3 * medians["loader"],
        "images_per_s": options.batch_size / medians["loader"],
        "loader_over_resident": float(np.median(ratios)),
        "loader_over_resident_min": float(ratios.min()),
        "loader_over_resident_max": float(ratios.max()),
    }


def _settle(options: argparse.Namespace) -> int:
    """Untimed steps that use up what was made ready while the other side ran."""
    buffered = options.prefetch * max(options.num_workers, 1)
    return max(options.warmup, buffered + MAX_STEPS_IN_FLIGHT)
