"""Figures of runs, models and datasets, and the report of a run as a web page.

python -m segmenter_jax.visualize report runs/quickstart
"""

import argparse
import sys
from collections.abc import Sequence

from segmenter_jax.data.datasets import DATA_DIR
from segmenter_jax.runtime.command import run_command

_MODEL = "model directory, workdir of a run, checkpoint, or hf://OWNER/NAME"
_REPORT = "workdir of a run, or a file of `evaluate --json`"


def _pixel(text: str) -> tuple[int, int]:
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pixel such as 120,80") from None
    return x, y


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segmenter_jax.visualize", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str, more: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=about, description=more or f"{about}.".capitalize()
        )
        if page := name == "report":
            help_output = "file of the page; default: report.html in the workdir"
        else:
            help_output = "file of the picture (.png)"
        command.add_argument("-o", "--output", required=not page, help=help_output)
        return command

    report = add(
        "report",
        "a run as one web page",
        "Writes one HTML file of a run that needs no other file and no network: config, curves, "
        "scores, confusion matrix, predictions and where the weights come from.",
    )
    report.add_argument("run", metavar="RUN", help="workdir of a run, finished or not")
    report.add_argument(
        "--picture", help="also features of this picture and attention to it, by the run's model"
    )
    curves = add(
        "curves", "losses, learning rates and scores of runs against steps, for comparison"
    )
    curves.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a run")
    confusion = add("confusion", "confusion matrix of a report")
    confusion.add_argument("report", help=_REPORT)
    classes = add("classes", "IoU of each class by two models, the largest gains on top")
    classes.add_argument("reports", nargs=2, metavar="REPORT", help=_REPORT)
    features = add(
        "features",
        "what the encoder tells apart in pictures",
        "Colours the patches of pictures by the three principal components of the encoder's last "
        "features; all pictures share the colours.",
    )
    features.add_argument("model", help=_MODEL)
    features.add_argument("images", nargs="+", metavar="image", help="a picture")
    _add_dataset(add("dataset", "images of a dataset with their labels"))
    _add_attention(
        add(
            "attention",
            "what a model attends to in a picture",
            "Heat maps of what the encoder's class token, a patch, or a class embedding of the "
            "decoder attends to; every panel has its own scale.",
        )
    )
    return parser


def _add_attention(attention: argparse.ArgumentParser) -> None:
    attention.add_argument("model", help=_MODEL)
    attention.add_argument("image", help="a picture")
    attention.add_argument(
        "--layer", type=int, default=-1, help="from 0, or -1 for the last; default: %(default)s"
    )
    attention.add_argument("--head", type=int, help="from 0; default: all heads and their mean")
    who = attention.add_mutually_exclusive_group()
    who.add_argument(
        "--patch", type=_pixel, metavar="X,Y", help="attention of the patch around this pixel"
    )
    who.add_argument("--cls", action="store_true", help="attention of the class token; the default")
    who.add_argument(
        "--class", dest="class_name", metavar="NAME", help="attention of this class's embedding"
    )
    attention.add_argument("--decoder", action="store_true", help="layers of the mask decoder")
    attention.add_argument("--rollout", action="store_true", help="follow all layers up to LAYER")


def _add_dataset(dataset: argparse.ArgumentParser) -> None:
    dataset.add_argument("dataset", help="name of the dataset")
    dataset.add_argument("--data_dir", default=DATA_DIR, help="folder of built datasets")
    dataset.add_argument("--source", help="folder to build the dataset from, if it is not built")
    dataset.add_argument("--split", default="train", help="default: %(default)s")
    dataset.add_argument("--first", type=int, default=0, help="record to begin with, from 0")
    dataset.add_argument("--count", type=int, default=12, help="records; default: %(default)s")


def _run(arguments: argparse.Namespace) -> None:
    from segmenter_jax.commands.visualize import run

    run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
