"""Pictures of attention, training curves and datasets.

python -m segmenter_jax.visualize attention MODEL photo.jpg --class sky -o attention.png
"""

import argparse
import sys
from collections.abc import Sequence

from segmenter_jax.data.datasets import DATA_DIR
from segmenter_jax.runtime.command import run_command


def _pixel(text: str) -> tuple[int, int]:
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pixel such as 120,80") from None
    return x, y


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segmenter_jax.visualize", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    attention = commands.add_parser(
        "attention",
        help="what a model attends to in a picture",
        description="Heat maps of what the encoder's class token, a patch, or a class embedding of "
        "the decoder attends to; every panel has its own scale.",
    )
    attention.add_argument(
        "model", help="model directory, workdir of a run, checkpoint, or hf://OWNER/NAME"
    )
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

    curves = commands.add_parser(
        "curves", help="loss, learning rate and mean IoU of runs against steps"
    )
    curves.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a run")

    dataset = commands.add_parser("dataset", help="images of a dataset with their labels")
    dataset.add_argument("dataset", help="name of the dataset")
    dataset.add_argument("--data_dir", default=DATA_DIR, help="folder of built datasets")
    dataset.add_argument("--source", help="folder to build the dataset from, if it is not built")
    dataset.add_argument("--split", default="train", help="default: %(default)s")
    dataset.add_argument("--first", type=int, default=0, help="record to begin with, from 0")
    dataset.add_argument("--count", type=int, default=12, help="records; default: %(default)s")

    for command in (attention, curves, dataset):
        command.add_argument("-o", "--output", required=True, help="file of the picture (.png)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from segmenter_jax.commands.visualize import run

    run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
