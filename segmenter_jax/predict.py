"""Segments files, folders and videos from the command line.

python -m segmenter_jax.predict MODEL photo.jpg folder/ clip.mp4 -o overlays/
"""

import argparse
import sys
from collections.abc import Sequence

from segmenter_jax.inference.records import SAVED, Shard
from segmenter_jax.runtime.command import add_protocol_flags, run_command


def _shard(text: str) -> Shard:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shard i/n with i in 0..n-1, such as 0/4 to 3/4"
        )
    return Shard(int(index), int(count))


def _saved_list(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(SAVED)):
        raise argparse.ArgumentTypeError(f"unknown results {unknown}; choose from {SAVED}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.predict",
        description="Segments pictures and videos. OUTPUT gets the folders overlay/, ids/ (class "
        "ids as grey values), palette/ (class ids that show in their colours) and confidence/ "
        "(probability of the class, black to white), and legend.png. Videos become videos in "
        "overlay/ and folders of frames elsewhere. results.jsonl says how each result was made: "
        "what the same model made of the same file with the same settings is not made again. A "
        "file that cannot be read is reported and skipped; the exit code is then 1.",
    )
    parser.add_argument(
        "model", help="model directory, workdir of a run, checkpoint, or hf://OWNER/NAME"
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        help='files, folders, which are mirrored, or patterns like "a/**/*.jpg"; gs:// and s3:// '
        "addresses as well",
    )
    parser.add_argument(
        "--tar",
        action="store_true",
        help="inputs are tar files of pictures (WebDataset); each gets a tar file of results in "
        "tar/ with members such as KEY.ids.png",
    )
    parser.add_argument(
        "-o", "--output", required=True, help="folder of the results, or address of one"
    )
    parser.add_argument(
        "--save",
        type=_saved_list,
        default=("overlay", "ids"),
        help=f"results to write, of {','.join(SAVED)}; default: overlay,ids",
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the colours, 0..1")
    parser.add_argument(
        "--video",
        choices=(".mp4", ".gif"),
        help="format of written videos; default: .gif for a GIF, else .mp4",
    )
    parser.add_argument("--overwrite", action="store_true", help="also make what is finished")
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="only the I-th of N parts of the inputs, from 0/N; parts may run at the same time",
    )
    parser.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="ray: on all machines of a Ray cluster, which see the same files; default: here",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="show no progress and no summary, only what went wrong"
    )
    add_protocol_flags(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from segmenter_jax.commands.predict import run

    return run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
