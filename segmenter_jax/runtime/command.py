"""What the argparse command lines share: exit codes, error lines, flags of inference."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from segmenter_jax.runtime.console import print_anything
from segmenter_jax.runtime.errors import one_line

FAILED = 1
USAGE = 2
INTERRUPTED = 130


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None,
) -> int:
    """Parses arguments and runs a command.

    Args:
      parser: of the command; `--debug` is added to it.
      command: does the work; returns an exit code, None meaning 0. Wrong usage that only it can
        tell is an `argparse.ArgumentError`.
      argv: arguments; None takes those of the process.

    Returns:
      The command's code; 1 after a failure, which is printed as one line unless `--debug` asks
      for the traceback. Wrong usage leaves with code 2, as argparse does.
    """
    print_anything()
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    argv = sys.argv[1:] if argv is None else list(argv)
    # Taken from anywhere, also behind the name of a subcommand.
    rest = [argument for argument in argv if argument != "--debug"]
    arguments = parser.parse_args(["--debug", *rest] if rest != argv else rest)
    try:
        return command(arguments) or 0
    except argparse.ArgumentError as error:
        parser.error(str(error))
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED


def scale_list(text: str) -> tuple[float, ...]:
    """Reads "0.5,1,1.5"; for argparse's `type`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers such as 0.5,0.75,1"
        ) from None


def image_size(text: str) -> tuple[int, int]:
    """Reads (height, width) from "512x1024", or "640" of a square; for argparse's `type`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 640 or 512x1024")
    return int(parts[0]), int(parts[-1])


def add_protocol_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that override a model's own inference settings."""
    # A flag that is not given leaves no trace, so that the model's own value holds.
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--window", type=int, help="side of the windows, in pixels")
    add("--stride", type=int, help="stride of the windows, in pixels")
    add("--scales", type=scale_list, help="for example 0.5,0.75,1,1.25,1.5,1.75; default: 1")
    add("--flip", action="store_true", help="also average flipped versions")
    help_native = "do not scale to the base size"
    add("--native", dest="base_size", action="store_const", const=None, help=help_native)
    add("--batch_size", type=int, help="windows at a time")


def protocol_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of `InferenceSettings` that were given by the flags of `add_protocol_flags`."""
    names = ("window", "stride", "scales", "flip", "base_size", "batch_size")
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
