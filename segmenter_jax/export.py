"""Writes a model as files that are used without this package.

python -m segmenter_jax.export MODEL OUTPUT --to onnx --size 512x1024
"""

import argparse
import sys
from collections.abc import Sequence

from segmenter_jax.data.datasets import DATA_DIR
from segmenter_jax.runtime.command import image_size, run_command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.export",
        description="Writes a folder that is used without this package. `network` takes uint8 "
        "pixels of any number of windows (B, window, window, C) and gives patch logits; `picture` "
        "takes a whole picture (H, W, C) of one size and gives class ids and confidence, with the "
        "model's own scaling and windows inside. Normalisation is inside of both. export.json says "
        "classes, colours, arrays and sums.",
    )
    add = parser.add_argument
    add("model", help="model directory, workdir of a run, or checkpoint")
    add("output", help="folder to write")
    add(
        "--to",
        choices=("stablehlo", "onnx"),
        required=True,
        help="stablehlo: for jax.export, one file for CPUs, NVIDIA GPUs and TPUs; onnx: for "
        "onnxruntime and others (needs the extra [export])",
    )
    add(
        "--size",
        type=image_size,
        metavar="HxW",
        help="size of the whole picture, in pixels; default: that of a window",
    )
    add(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="of ONNX files: float16 products, or 8-bit dense layers (int8); what that costs in "
        "mean IoU is measured and printed",
    )
    add(
        "--dataset",
        "--data",
        help="to measure that on; default: that of the model's run, else shapes",
    )
    add("--data_dir", help=f"folder of built datasets; default: that of the run, else {DATA_DIR}")
    add("--split", help="default: that of the run's evaluations, else validation")
    add("--overwrite", action="store_true", help="replace OUTPUT if it is an export")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from segmenter_jax.commands.export import run

    run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
