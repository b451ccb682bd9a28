"""A web page that segments the pictures that are given to it.

python -m segmenter_jax.demo MODEL [--port 7860 --samples photo.jpg ...]
"""

import argparse
import sys
from collections.abc import Sequence

from segmenter_jax.runtime.command import run_command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.demo",
        description="Serves a web page that segments the pictures that are given to it: overlay, "
        "shares of the classes, class and confidence under the pointer, attention of a patch, "
        "masks to download. Only this machine reaches it, unless --host or --share say otherwise; "
        'then anybody does who knows the address. Needs pip install "segmenter_jax[demo]".',
    )
    add = parser.add_argument
    add("model", help="model directory, workdir of a run, checkpoint, or hf://OWNER/NAME")
    add("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--share", action="store_true", help="also serve it at a public address of Gradio's")
    add("--samples", nargs="+", default=[], metavar="FILE", help="pictures to offer on the page")
    add("--max_mb", type=float, default=20, help="largest file; default: %(default)s")
    add("--max_megapixels", type=float, default=20, help="largest picture; default: %(default)s")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from segmenter_jax.commands.demo import run

    run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
