"""Evaluates a model, or the predictions of any tool, on a split.

python -m segmenter_jax.evaluate runs/quickstart --dataset shapes
"""

import argparse
import sys
from collections.abc import Sequence

from segmenter_jax.data.datasets import DATA_DIR
from segmenter_jax.runtime.command import add_protocol_flags, run_command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.evaluate",
        description="Evaluates a model, or PNG files of class ids that any tool made, on a split "
        "of a dataset, at the labels' own sizes. Classes that occur in neither labels nor "
        "predictions are left out of the means. A split without labels is predicted only, for "
        "--save_predictions.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "model", nargs="?", help="model directory, workdir of a run, checkpoint, or hf://OWNER/NAME"
    )
    what.add_argument(
        "--predictions", metavar="DIR", help="folder of PNG files named after their images"
    )
    parser.add_argument(
        "--prediction_ids",
        choices=("original", "trained"),
        default="original",
        help="values in the PNG files: those of the dataset's own label files, or 0..K-1",
    )
    parser.add_argument("--dataset", help="name of the dataset; default: that of the model's run")
    parser.add_argument(
        "--data_dir", help=f"folder of built datasets; default: that of the run, else {DATA_DIR}"
    )
    parser.add_argument("--source", help="folder to build the dataset from, if it is not built")
    parser.add_argument("--split", help="default: that of the run's evaluations, else validation")
    add_protocol_flags(parser)
    parser.add_argument("--save_predictions", metavar="DIR", help="write class ids as PNG files")
    parser.add_argument("--boundary_iou", action="store_true", help="also measure boundaries")
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="also measure the calibration error; draw confidence against accuracy (.png)",
    )
    parser.add_argument(
        "--binary",
        action="store_true",
        help="also average over images, for a background and a foreground class: IoU at 0.5 and "
        "mean absolute error of the foreground's probability, with and without foreground apart",
    )
    parser.add_argument("--confusion", metavar="FILE", help="draw the confusion matrix (.png)")
    parser.add_argument("--worst", metavar="FILE", help="contact sheet of the worst images (.png)")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write the per-class table as CSV")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from segmenter_jax.commands.evaluate import run

    run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
