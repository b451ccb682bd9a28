"""What the benchmarks measure, by the names that the command line has for it."""

import argparse
import dataclasses
import json
from collections.abc import Callable

import jax

from segmenter_jax.benchmark import flops, plan_command
from segmenter_jax.benchmark.collectives import benchmark_collectives
from segmenter_jax.benchmark.inference import benchmark_evaluate, benchmark_infer
from segmenter_jax.benchmark.kernels import benchmark_attention, benchmark_loss
from segmenter_jax.benchmark.loader import LoaderSettings, benchmark_loader
from segmenter_jax.benchmark.measure import Result, Timing, environment
from segmenter_jax.benchmark.report import report
from segmenter_jax.benchmark.step import StepSettings, benchmark_step
from segmenter_jax.benchmark.trace import read_trace, summarise_trace
from segmenter_jax.data.datasets import build_dataset
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.runtime.tables import align, cell

SUBJECTS: dict[str, Callable[[SegmenterConfig, argparse.Namespace], Result]] = {
    "step": lambda model, a: benchmark_step(model, _step(a), _timing(a)),
    "infer": lambda model, a: benchmark_infer(model, _inference(a), a.devices, _timing(a)),
    "evaluate": lambda model, a: benchmark_evaluate(
        model, _inference(a), a.devices, build_dataset(a.dataset, a.data_dir), a.split, a.profile
    ),
    "loader": lambda model, a: benchmark_loader(
        model, _step(a), build_dataset(a.dataset, a.data_dir), a.split, _loader(a), _timing(a)
    ),
    "collectives": lambda model, a: benchmark_collectives(model, _step(a), a.show),
    "attention": lambda model, a: benchmark_attention(model, a.batch_size, a.tokens, _timing(a)),
    "loss": lambda model, a: benchmark_loss(model, a.batch_size, _timing(a)),
}


def _step(a: argparse.Namespace) -> StepSettings:
    return StepSettings(a.batch_size, a.devices, a.fsdp, a.grad_accum_steps, a.photometric)


def _inference(a: argparse.Namespace) -> InferenceSettings:
    return InferenceSettings(
        window=a.size,
        stride=a.stride or a.size,
        scales=a.scales,
        flip=a.flip,
        batch_size=a.batch_size,
    )


def _loader(a: argparse.Namespace) -> LoaderSettings:
    return LoaderSettings(a.num_workers, a.num_threads, a.prefetch, a.rounds)


def _timing(a: argparse.Namespace) -> Timing:
    peak = (a.peak_tflops, "--peak_tflops") if a.peak_tflops else flops.peak_tflops()
    timing = Timing(a.steps, a.warmup, peak)
    if a.subject in ("step", "infer"):
        return dataclasses.replace(timing, profile=a.profile, profile_steps=a.profile_steps)
    return timing


def model_config(arguments: argparse.Namespace) -> SegmenterConfig:
    """Network that the flags describe."""
    sizes = {name: getattr(arguments, name) for name in ("width", "depth", "num_heads")}
    return SegmenterConfig.from_variant(
        arguments.variant,
        num_classes=arguments.classes,
        image_size=(arguments.size, arguments.size),
        decoder=arguments.decoder,
        dtype=arguments.dtype,
        attention=arguments.attention,
        remat=arguments.remat,
        scan_layers=arguments.scan_layers,
        **{name: value for name, value in sizes.items() if value is not None},
    )


def _trace(arguments: argparse.Namespace) -> None:
    result = summarise_trace(read_trace(arguments.folder), arguments.top)
    columns = ("ms", "percent", "count", "name", "source")
    longest = [[cell(operation[name]) for name in columns] for operation in result["longest"]]
    print("\n".join(align([columns, *longest])))
    print(json.dumps(result))


def run(arguments: argparse.Namespace) -> int | None:
    """Measures the subject and prints the result; returns the exit code."""
    if arguments.subject == "plan":
        return plan_command.run(arguments)
    if arguments.subject == "trace":
        return _trace(arguments)
    for name, least in (("batch_size", 1), ("steps", 1), ("warmup", 0)):
        if (value := getattr(arguments, name)) < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    keep_freed_memory()
    prepare_compilation()
    config = model_config(arguments)
    values = SUBJECTS[arguments.subject](config, arguments)
    settings = {
        "benchmark": arguments.subject,
        "variant": arguments.variant,
        "size": arguments.size,
        "tokens": flops.num_tokens(config),
        "batch": arguments.batch_size,
        "classes": arguments.classes,
        "decoder": config.decoder,
        "dtype": config.compute_dtype(),
        "attention": config.attention,
        "remat": config.remat,
        "scan_layers": config.scan_layers,
    }
    result = settings | values | environment(arguments.devices or jax.device_count())
    report(result, arguments.json, arguments.compare)
    return None
