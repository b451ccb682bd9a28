"""Inference and evaluation, as the commands run them."""

import contextlib
import time
from typing import Any

import jax
import numpy as np

from segmenter_jax.benchmark import flops
from segmenter_jax.benchmark.measure import (
    Result,
    Timing,
    device_memory,
    summarise,
    time_calls,
)
from segmenter_jax.benchmark.step import random_batch
from segmenter_jax.data.datasets import Dataset
from segmenter_jax.data.pipeline import eval_examples
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.evaluation.scoring import score
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.models.params import init_params
from segmenter_jax.models.placement import platform_of

# Images of one call, in batches, where the devices work on one while the next is cut.
_BATCHES = 8


def _engine(
    config: SegmenterConfig, settings: InferenceSettings, devices: int | None
) -> tuple[SlidingWindow, Any]:
    """An engine and random parameters for it."""
    mean, std = NORMALIZATION["vit"]
    engine = SlidingWindow(
        Segmenter(config), settings, mean=mean, std=std, devices=jax.local_devices()[:devices]
    )
    return engine, jax.jit(lambda: init_params(config, seed=0))()


def benchmark_infer(
    config: SegmenterConfig, settings: InferenceSettings, devices: int | None, timing: Timing
) -> Result:
    """Images on the host to class ids on the host; times of `settings.batch_size` images."""
    engine, params = _engine(config, settings, devices)
    examples = [{"image": x} for x in random_batch(config, settings.batch_size)["image"]]
    batches = 1 if platform_of(engine.model.mesh) == "cpu" else _BATCHES
    params = engine.place(params)

    def predict() -> list[np.ndarray]:
        return [maps["ids"] for _, maps in engine.predict(params, examples * batches)]

    start = time.perf_counter()
    predict()
    first_s = time.perf_counter() - start
    seconds = time_calls(predict, timing.steps, timing.warmup)
    times = summarise([s / batches for s in seconds])
    timing.trace(predict)
    images_per_s = 1e3 * settings.batch_size / times["step_ms"]
    result = {"protocol": settings.protocol(), "images_per_s": images_per_s, **times}
    if settings.scales == (1.0,) and not settings.flip:
        work = sum(flops.forward_flops(config).values())
        devices = devices or jax.local_device_count()
        result |= flops.utilisation(work, images_per_s, devices, timing.peak_tflops)
    result |= {"batches_per_call": batches, "first_call_s": first_s}
    return result | device_memory()


def benchmark_evaluate(
    config: SegmenterConfig,
    settings: InferenceSettings,
    devices: int | None,
    dataset: Dataset,
    split: str,
    profile: str | None,
) -> Result:
    """A split from records to its report, as `segmenter_jax.evaluate` does it.

    Args:
      config: the network.
      settings: how images are cut.
      devices: number of devices; None means all.
      dataset: a built one.
      split: of the dataset.
      profile: receives a trace of the timed run.
    """
    source = dataset.source(split)
    engine, params = _engine(config, settings, devices)

    def run() -> tuple[float, Any]:
        start = time.perf_counter()
        with contextlib.closing(eval_examples(source, EvalTransform(dataset.spec))) as examples:
            results = engine.predict(params, examples)
            report = score(results, dataset.spec, engine.settings.protocol())
        return time.perf_counter() - start, report

    first_s, _ = run()
    with jax.profiler.trace(profile) if profile else contextlib.nullcontext():
        seconds, report = run()
    return {
        "protocol": settings.protocol(),
        "images": report.num_images,
        "images_per_s": report.num_images / seconds,
        "seconds": seconds,
        "first_run_s": first_s,
        **device_memory(),
    }
