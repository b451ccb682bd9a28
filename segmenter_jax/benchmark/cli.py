"""Command line of the benchmarks."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import get_args

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
from segmenter_jax.data.datasets import DATA_DIR, build_dataset
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.attention import IMPLEMENTATIONS
from segmenter_jax.models.config import DTYPES, Decoder
from segmenter_jax.runtime.command import run_command, scale_list
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

_HELP = {
    "step": "the training step on a batch that stays on the device",
    "infer": "images to class ids, by sliding windows",
    "evaluate": "a split of a dataset to its report",
    "loader": "the data loader alone, and the training step fed by it",
    "collectives": "bytes that devices send each other in a training step, compiled and not run",
    "attention": "every attention implementation at the encoder's shape",
    "loss": "the fused and the plain loss at the model's shape",
}


def _common() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    model = parser.add_argument_group("model")
    model.add_argument("--variant", default="Ti/16", help="Ti, S, B or L, and the patch size")
    model.add_argument("--size", type=int, default=512, help="side of crop and window, in pixels")
    model.add_argument("--classes", type=int, default=150)
    model.add_argument("--decoder", choices=get_args(Decoder), default="mask")
    for name in ("width", "depth", "num_heads"):
        model.add_argument(f"--{name}", type=int, help="replaces the variant's")
    model.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    model.add_argument("--attention", choices=IMPLEMENTATIONS, default="auto")
    model.add_argument(
        "--remat", action="store_true", help="recompute each layer in the backward pass"
    )
    model.add_argument(
        "--scan_layers", action="store_true", help="run the encoder's layers as one loop"
    )
    how = parser.add_argument_group("measurement")
    how.add_argument("--batch_size", type=int, default=8, help="over all devices")
    how.add_argument("--devices", type=int, help="number of devices; all by default")
    how.add_argument("--steps", type=int, default=20, help="timed steps")
    how.add_argument("--warmup", type=int, default=3, help="untimed steps before them")
    how.add_argument("--peak_tflops", type=float, help="of one device, for the MFU")
    how.add_argument("--json", help="append the result's JSON line to this file")
    how.add_argument("--compare", help="show the last result of this file beside this one")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m segmenter_jax.benchmark", description="Measures the hot paths."
    )
    subjects = parser.add_subparsers(dest="subject", required=True)
    parsers = {
        name: subjects.add_parser(name, parents=[_common()], help=text, description=text)
        for name, text in _HELP.items()
    }
    for name in ("step", "infer", "evaluate"):
        parsers[name].add_argument("--profile", help="write a profiler trace to this folder")
    for name in ("step", "infer"):
        parsers[name].add_argument(
            "--profile_steps", type=int, default=3, help="steps in the trace, after the timed ones"
        )
    for name in ("step", "collectives", "loader"):
        p = parsers[name]
        p.add_argument("--grad_accum_steps", type=int, default=1)
        p.add_argument("--fsdp", type=int, default=1, help="pieces that parameters are cut into")
        p.add_argument(
            "--photometric", action="store_true", help="with the colour augmentation of training"
        )
    parsers["collectives"].add_argument(
        "--show", type=int, default=5, help="number of largest instructions listed"
    )
    for name in ("infer", "evaluate"):
        p = parsers[name]
        p.add_argument("--stride", type=int, help="of the windows, in pixels; their side if absent")
        p.add_argument("--scales", type=scale_list, default=(1.0,), help="for example 0.5,1,1.5")
        p.add_argument("--flip", action="store_true", help="also flipped versions")
    for name, split in (("evaluate", "validation"), ("loader", "train")):
        p = parsers[name]
        p.add_argument("--dataset", default="shapes", help="a built or generated dataset")
        p.add_argument("--data_dir", default=DATA_DIR)
        p.add_argument("--split", default=split)
    loader = parsers["loader"]
    loader.add_argument("--num_workers", type=int, default=0, help="loader processes; 0: threads")
    loader.add_argument("--num_threads", type=int, help="by default one for each core, up to 4")
    loader.add_argument("--prefetch", type=int, default=4, help="batches kept ready")
    loader.add_argument("--rounds", type=int, default=5, help="of both sides, taking turns")
    text = plan_command.HELP
    plan_command.add_flags(subjects.add_parser("plan", help=text, description=text))
    parsers["attention"].add_argument(
        "--tokens", type=int, help="of the sequence; those of the encoder if absent"
    )
    text = "busy share and longest operations of a profiler trace"
    trace = subjects.add_parser("trace", help=text, description=text)
    trace.add_argument("folder", help="given to --profile, or the workdir of a run")
    trace.add_argument("--top", type=int, default=10, help="number of operations listed")
    return parser


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


def _command(arguments: argparse.Namespace) -> int | None:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser, argv = _parser(), sys.argv[1:] if argv is None else list(argv)
    if "plan" in argv:
        # Overrides of a config's fields, which argparse cannot know.
        overrides = [argument for argument in argv if argument.startswith("--config.")]
        argv = [argument for argument in argv if argument not in overrides]
        parser.set_defaults(overrides=overrides)
    return run_command(parser, _command, argv)
