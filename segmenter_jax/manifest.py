"""Lists what `predict` made, one line for each source, whichever shards made it.

python -m segmenter_jax.manifest overlays/ -o manifest.jsonl
"""

import argparse
import collections
import json
import sys
from collections.abc import Iterable, Sequence

from segmenter_jax.inference.records import Record, manifest
from segmenter_jax.runtime.command import run_command
from segmenter_jax.runtime.console import reader_may_leave
from segmenter_jax.runtime.files import is_local, place, write_whole


def _counted(entries: Iterable[Record], counts: collections.Counter[str]) -> Iterable[str]:
    for entry in entries:
        counts["failed" if entry["error"] else "segmented"] += 1
        yield json.dumps(entry) + "\n"


def _command(arguments: argparse.Namespace) -> None:
    folder = place(arguments.folder)
    if is_local(folder) and not folder.is_dir():
        raise ValueError(f"{arguments.folder}: no such folder")
    counts: collections.Counter[str] = collections.Counter()
    lines = _counted(manifest(folder), counts)
    if arguments.output is None:
        with reader_may_leave():
            sys.stdout.writelines(lines)
            sys.stdout.flush()
    else:
        with write_whole(arguments.output) as part, open(part, "w", encoding="utf-8") as file:
            file.writelines(lines)
    if not counts:
        raise ValueError(f"{arguments.folder}: holds no results of segmenter_jax.predict")
    text = f"{counts['segmented']} sources segmented, {counts['failed']} failed"
    print(text, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.manifest",
        description="Lists what segmenter_jax.predict made in a folder as lines of JSON, one for "
        "each source: its size, its classes with their shares of the pixels, the mean confidence "
        "where a run saved confidence, the seconds it took, its results, and the error of one that "
        "was skipped. Runs that are still at work may be looked at.",
    )
    parser.add_argument("folder", help="folder of the results")
    parser.add_argument("-o", "--output", help="file of the lines; default: the standard output")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
