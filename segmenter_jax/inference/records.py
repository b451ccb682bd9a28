"""What the results in a folder were made of, so that only those that still hold are kept.

A line of JSON is added for each result once it is whole. One document, written whole for each
picture, would cost the square of their number, and a file beside each result would double the
files. A line that a killed process left torn counts for nothing: its result is made again.
"""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from segmenter_jax.runtime.files import naming, write_whole

RECORDS_FILE = "results.jsonl"

Record = dict[str, Any]


def source_record(path: pathlib.Path) -> Record:
    """What tells a source from another one, or from itself after a change."""
    stat = path.stat()
    # Not resolved: a link that leads elsewhere since shows in size and time.
    return {"source": os.path.abspath(path), "bytes": stat.st_size, "modified": stat.st_mtime_ns}


class Records:
    """Records of the results in a folder, by the field "result": a path below the folder.

    The folder has one owner as long as this is used.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Reads the records of a folder, which need not have any."""
        self._file = folder / RECORDS_FILE
        self._records: dict[str, Record] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
                self._take(line)

    def find(self, result: str) -> Record | None:
        """The record of a result."""
        return self._records.get(result)

    def forget(self, results: Iterable[str]) -> None:
        """Removes records, before their results are touched; the file exists from then on."""
        for result in results:
            self._records.pop(result, None)
        with write_whole(self._file) as part:
            part.write_text("".join(map(_line, self._records.values())), encoding="utf-8")

    def add(self, records: Iterable[Record]) -> None:
        """Adds records of results that are whole."""
        records = list(records)
        self._records |= {record["result"]: record for record in records}
        with naming(self._file), open(self._file, "a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))

    def _take(self, line: str) -> None:
        try:
            record = json.loads(line)
            self._records[record["result"]] = record
        except (ValueError, LookupError, TypeError):
            pass


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
