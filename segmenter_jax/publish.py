"""Publishes a model on the Hugging Face hub, with a model card.

From the command line:
  python -m segmenter_jax.publish MODEL OWNER/NAME [--license apache-2.0 --picture overlay.png ...]
"""

import argparse
import sys
from collections.abc import Sequence

from segmenter_jax.runtime.command import run_command

_DESCRIPTION = """\
Uploads a model to the Hugging Face hub, in one commit: model.json, the weights as
model.safetensors, and a model card with classes, protocol, numbers and provenance. Others then use
it as hf://OWNER/NAME wherever a model is asked for.

The hub wants a token: log in with `hf auth login`, or set HF_TOKEN. The licence is that of the
weights that the model began with, where these say it; else give --license. Numbers are those of
the model's run. No picture of your data is uploaded that you do not name with --picture."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m segmenter_jax.publish",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="model directory, workdir of a run, or checkpoint")
    add("repo", metavar="OWNER/NAME", help="repository on the hub; made where it is missing")
    add("--private", action="store_true", help="let nobody else see the repository")
    add("--revision", metavar="BRANCH", help="branch; made where it is missing (default: main)")
    add("--license", metavar="ID", help="of the weights, as the hub names it, say apache-2.0")
    add(
        "--picture",
        metavar="FILE",
        action="append",
        default=[],
        help="picture for the card, public like all of it; may be given several times",
    )
    add("--output", metavar="DIR", help="write the folder there and upload nothing")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from segmenter_jax.commands.publish import run

    run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
