"""The files that hold records of results, lines of JSON.

Local ones grow by a line at a time. Objects in buckets cannot grow: what is added becomes objects
of their own, which are read after the file that they belong to.
"""

import collections
import io
import pathlib
import re
import time
from collections.abc import Iterable, Iterator

from segmenter_jax.runtime import buckets
from segmenter_jax.runtime.files import is_local, naming, open_binary

RECORDS_FILE = "results.jsonl"

_NAME = re.compile(r"results(?:\.(?P<shard>\d+-of-\d+))?(?:\.part-(?P<part>\d+))?\.jsonl")

# Lines in memory become an object after these.
_SECONDS = 30.0
_MOST_LINES = 10_000


def records_file(folder: pathlib.Path, shard: str = "") -> pathlib.Path:
    """The file of a shard, or the common one."""
    return folder / (f"results.{shard}.jsonl" if shard else RECORDS_FILE)


def find_files(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Files of records by shard, the common ones under "" first; each in the order of writing."""
    found = collections.defaultdict(list, {"": []})
    if is_local(folder):
        names = [path.name for path in folder.glob("results*.jsonl")]
    else:
        names = list(buckets.level(folder).objects)
    for name in sorted(names):
        if match := _NAME.fullmatch(name):
            found[match["shard"] or ""].append(folder / name)
    return found


def read_lines(file: pathlib.Path) -> Iterator[str]:
    """Lines of a file of records."""
    with (
        open_binary(file) as raw,
        io.TextIOWrapper(raw, encoding="utf-8", errors="replace") as lines,
    ):
        yield from lines


class Growing:
    """Adds lines to the records of a folder."""

    def __init__(self, folder: pathlib.Path, shard: str) -> None:
        """Adds to those of a shard, or to the common ones."""
        self._file = records_file(folder, shard)
        self._lines: list[str] = []
        self._written = time.monotonic()
        self._parts = 0
        if not is_local(folder):
            # After all that are there.
            for file in find_files(folder)[shard]:
                self._parts = max(self._parts, int(_NAME.fullmatch(file.name)["part"] or 0) + 1)

    def add(self, lines: Iterable[str]) -> None:
        """Adds lines, in a bucket in a while."""
        if is_local(self._file):
            with naming(self._file), open(self._file, "a", encoding="utf-8") as file:
                file.writelines(lines)
            return
        for line in lines:
            self._lines.append(line)
            if len(self._lines) >= _MOST_LINES:
                self.flush()
        if time.monotonic() - self._written > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is in memory."""
        if self._lines:
            part = self._file.with_name(f"{self._file.stem}.part-{self._parts:09d}.jsonl")
            buckets.write(part, "".join(self._lines).encode())
            self._parts += 1
            self._lines.clear()
        self._written = time.monotonic()
