"""Builds, checks and describes datasets.

python -m segmenter_jax.prepare_data ade20k --source=ADEChallengeData2016.zip
"""

import argparse
import sys
from collections.abc import Sequence

from segmenter_jax.data.datasets import DATA_DIR
from segmenter_jax.data.origins import ORIGINS
from segmenter_jax.runtime.command import run_command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.prepare_data", description="Builds and checks datasets."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="what can be built, from which files")
    listing.add_argument("--data_dir", default=DATA_DIR, help="default: %(default)s")
    for name, origin in ORIGINS.items():
        build = commands.add_parser(
            name, help=f"build {name}", description=origin.replace("%", "%%")
        )
        build.add_argument("--source", help="folder or zip archive of the original files")
        build.add_argument("--data_dir", default=DATA_DIR, help="default: %(default)s")
        build.add_argument("--overwrite", action="store_true", help="build again what is there")
        if name == "folder":
            build.add_argument("--name", default="folder", help="name of the dataset")
        else:
            build.add_argument(
                "--allow_partial",
                action="store_true",
                help="accept other numbers of records than the published ones",
            )
        if name == "ade20k":
            build.add_argument("--download", action="store_true", help="fetch the original files")
        if name == "pascal_context":
            build.add_argument(
                "--without_background", action="store_true", help="the variant of 59 classes"
            )
    check = commands.add_parser(
        "check",
        help="find every problem of a source or a built dataset",
        description="Reads everything once, in parallel, and lists every problem. Exits with 1 if "
        "there is one.",
    )
    check.add_argument("--source", help="folder or zip archive; without it, the built dataset")
    check.add_argument("--name", default="folder", help="a benchmark, or any other for a folder")
    check.add_argument("--data_dir", default=DATA_DIR, help="default: %(default)s")
    check.add_argument("--contact_sheet", metavar="FILE", help="write overlays to look at (PNG)")
    check.add_argument("--allow_partial", action="store_true", help="do not compare the counts")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from segmenter_jax.commands.prepare_data import run

    return run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
