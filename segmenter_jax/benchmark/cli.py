"""Command line of the benchmarks."""

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from segmenter_jax.data.datasets import DATA_DIR
from segmenter_jax.models.choices import DTYPES, IMPLEMENTATIONS, Decoder
from segmenter_jax.runtime.command import run_command, scale_list

_PLAN_EPILOG = """
Fields of the config are overridden as --config.batch_size=64, with the equals sign.
For TPUs install '.[tpu]', for GPUs '.[cuda]'; neither needs the device.
"""

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
    text = "whether a config fits devices that are not there, and how fast it may be; nothing runs"
    _add_plan_flags(subjects.add_parser("plan", help=text, description=text))
    parsers["attention"].add_argument(
        "--tokens", type=int, help="of the sequence; those of the encoder if absent"
    )
    text = "busy share and longest operations of a profiler trace"
    trace = subjects.add_parser("trace", help=text, description=text)
    trace.add_argument("folder", help="given to --profile, or the workdir of a run")
    trace.add_argument("--top", type=int, default=10, help="number of operations listed")
    return parser


def _add_plan_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _PLAN_EPILOG
    parser.add_argument("--config", required=True, help="name of a config, or path of a file")
    parser.add_argument(
        "--topology",
        action="append",
        required=True,
        help="such as v4:2x2x1, v5e:2x4, v5p:2x2x2, v6e:2x4, tpu7x:2x2x1, a100:8, h100:8, h200:8; "
        "several with commas between them, or by repeating the flag",
    )
    parser.add_argument("--num_classes", type=int, help="of a dataset that is not at hand")
    parser.add_argument(
        "--search",
        action="store_true",
        help="also the largest batch that fits, and the cheapest change that makes the recipe fit",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=10,
        help="programs that a search compiles, 4 for the batch",
    )
    parser.add_argument(
        "--json", nargs="?", const="-", help="append a JSON line to this file; without one print it"
    )


def _run(arguments: argparse.Namespace) -> int | None:
    from segmenter_jax.benchmark.subjects import run

    return run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser, argv = _parser(), sys.argv[1:] if argv is None else list(argv)
    if "plan" in argv:
        # Overrides of a config's fields, which argparse cannot know.
        overrides = [argument for argument in argv if argument.startswith("--config.")]
        argv = [argument for argument in argv if argument not in overrides]
        parser.set_defaults(overrides=overrides)
    return run_command(parser, _run, argv)
