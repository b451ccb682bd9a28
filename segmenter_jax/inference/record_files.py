"""The files that hold records of results, lines of JSON.

Local ones grow by a line at a time. Objects in buckets cannot grow: what is added becomes objects
of their own, which are read after the file that they belong to.
"""

import collections
import contextlib
import io
import pathlib
import re
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from segmenter_jax.runtime import buckets
from segmenter_jax.runtime.files import is_local, naming, open_binary, read_bytes
from segmenter_jax.runtime.lookahead import read_ahead

RECORDS_FILE = "results.jsonl"

_NAME = re.compile(r"results(?:\.(?P<shard>\d+-of-\d+))?(?:\.part-(?P<part>\d+))?\.jsonl")

# Lines in memory become an object after these.
_SECONDS = 30.0
_MOST_LINES = 10_000

# Objects become one after these, or where they have as many lines.
_MOST_PARTS = 100


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


def read_lines(files: Iterable[pathlib.Path]) -> Iterator[str]:
    """Lines of files of records, one file after the other; parts in buckets are read ahead.

    Raises:
      OSError: a file is gone, or cannot be read.
    """
    with ThreadPoolExecutor(buckets.AT_A_TIME) as threads:

        def opened() -> Iterator[tuple[pathlib.Path, Future[bytes] | None]]:
            for file in files:
                is_part = _NAME.fullmatch(file.name)["part"] is not None
                yield file, threads.submit(read_bytes, file) if is_part else None

        for file, part in read_ahead(opened(), buckets.AT_A_TIME):
            with (
                open_binary(file) if part is None else io.BytesIO(part.result()) as raw,
                io.TextIOWrapper(raw, encoding="utf-8", errors="replace") as lines,
            ):
                yield from lines


class Growing:
    """Adds lines to the records of a folder; in a bucket within half a minute."""

    def __init__(self, folder: pathlib.Path, shard: str) -> None:
        """Adds to those of a shard, or to the common ones."""
        self._file = records_file(folder, shard)
        self._lines: list[str] = []
        # Of the timer's thread as well.
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        # Parts that are not yet one, and their lines.
        self._parts: list[pathlib.Path] = []
        self._merged: list[str] = []
        self._number = 0
        if not is_local(folder):
            # After all that are there.
            for file in find_files(folder)[shard]:
                self._number = max(self._number, int(_NAME.fullmatch(file.name)["part"] or 0) + 1)

    def add(self, lines: Iterable[str]) -> None:
        """Adds lines."""
        if is_local(self._file):
            with naming(self._file), open(self._file, "a", encoding="utf-8") as file:
                file.writelines(lines)
            return
        with self._lock:
            for line in lines:
                self._lines.append(line)
                if len(self._lines) >= _MOST_LINES:
                    self._flush()
            if self._lines and self._timer is None:
                self._timer = threading.Timer(_SECONDS, self._flush_later)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Writes what is in memory."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            self._flush()

    def _flush_later(self) -> None:
        with self._lock:
            self._timer = None
            # What could not be written is, or its error shows, with what comes next.
            with contextlib.suppress(OSError):
                self._flush()

    def _flush(self) -> None:
        if not self._lines:
            return
        self._parts.append(self._write(self._lines))
        self._merged += self._lines
        self._lines = []
        # Each costs requests to whoever reads them.
        if len(self._parts) >= _MOST_PARTS or len(self._merged) >= _MOST_LINES:
            if len(self._parts) > 1:
                self._write(self._merged)
                buckets.remove(self._parts)
            self._parts, self._merged = [], []

    def _write(self, lines: Iterable[str]) -> pathlib.Path:
        part = self._file.with_name(f"{self._file.stem}.part-{self._number:09d}.jsonl")
        buckets.write(part, "".join(lines).encode())
        self._number += 1
        return part
