"""What the results in a folder were made of, so that only those that still hold are kept.

A line of JSON is added for each result once it is whole. One document, written whole for each
picture, would cost the square of their number, and a file beside each result would double the
files. A line that a killed process left torn counts for nothing: its result is made again.

In a bucket lines become objects every half minute; see `record_files`.

Shards that write to one folder at the same time have a file each. It goes before the common one,
which they only read: what a shard makes again it first says to be forgotten, in its own. Whoever
comes with another number of shards first gathers all in the common file.
"""

import contextlib
import itertools
import json
import pathlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from segmenter_jax.inference.record_files import Growing, find_files, read_lines, records_file
from segmenter_jax.runtime import buckets
from segmenter_jax.runtime.files import (
    full_name,
    is_local,
    make_empty,
    remove_all,
    write_whole,
)

# What can be saved, each kind in a folder of that name.
SAVED = ("overlay", "ids", "palette", "confidence")

# Fields of a line that hold for the source, whatever kinds of results it has.
_OF_SOURCE = (
    *("source", "bytes", "modified", "height", "width", "frames"),
    *("classes", "confidence", "seconds", "error"),
)

_TRIES = 10

Record = dict[str, Any]
T = TypeVar("T")


def source_record(path: pathlib.Path) -> Record:
    """What tells a source from another one, or from itself after a change.

    Raises:
      OSError: there is no such file or object.
    """
    if not is_local(path):
        stored = buckets.find(path)
        if stored is None:
            raise FileNotFoundError(f"{path}: no such object")
        return stored_record(stored)
    stat = path.stat()
    # Not resolved: a link that leads elsewhere since shows in size and time.
    return {"source": full_name(path), "bytes": stat.st_size, "modified": stat.st_mtime_ns}


def stored_record(stored: buckets.Stored) -> Record:
    """As `source_record`, of an object as a bucket lists it."""
    return {"source": full_name(stored.path), "bytes": stored.bytes, "modified": stored.stamp}


class Shard(NamedTuple):
    """One of the parts that the inputs are in.

    Attributes:
      index: from 0.
      count: of the parts.
    """

    index: int
    count: int


def shard_name(index: int, count: int) -> str:
    """Name of one of the shards that write to a folder."""
    return f"{index}-of-{count}"


class Records:
    """Records of the results in a folder, by the field "result": a path below the folder.

    The folder, or the shard of it, has one owner as long as this is used. All but one line at a
    time is kept on disk.
    """

    def __init__(self, folder: pathlib.Path, shard: str = "") -> None:
        """Reads the records of a folder, which need not have any.

        Args:
          folder: of the results.
          shard: whose lines are written, see `shard_name`; none are those of all.
        """
        self._folder, self._shard = folder, shard
        if not shard:
            gather(folder)

        def read() -> _Lines:
            lines, files = _Lines(), find_files(folder)
            for name in dict.fromkeys(("", shard)):
                lines.read(files[name], own=name == shard)
            return lines

        self._lines = _undisturbed(folder, read)
        self._growing = Growing(folder, shard)

    def find(self, result: str) -> Record | None:
        """The record of a result."""
        return self._lines.find(result)

    def forget(self, results: Iterable[str], failed: Iterable[pathlib.Path] = ()) -> None:
        """Removes records, before their results are touched; the common file exists from then on.

        With a tar file go the records of what is in it.

        Args:
          results: to be made again.
          failed: sources to be tried again.
        """
        keys = itertools.chain(results, (_failed(full_name(path)) for path in failed))
        self._lines.forget(keys, hide=bool(self._shard))
        files, own = find_files(self._folder), records_file(self._folder, self._shard)
        self._lines.write(own)
        remove_all(file for file in files[self._shard] if file != own)
        # By which a folder of results is known.
        if self._shard and not files[""]:
            make_empty(records_file(self._folder))

    def add(self, records: Iterable[Record]) -> None:
        """Adds records of results that are whole, and failures."""
        self._growing.add(map(_line, records))

    def close(self) -> None:
        """Writes what is not yet; has to be called at the end."""
        self._growing.close()


def gather(folder: pathlib.Path, count: int | None = None) -> None:
    """Brings the records of shards into the common file, while none of them is at work.

    Args:
      folder: of the results.
      count: leave shards of this number alone.
    """

    def work() -> None:
        found = find_files(folder)
        of_shards = [name for name in found if name and not name.endswith(f"-of-{count}")]
        if not of_shards:
            return
        lines = _Lines()
        for name in ("", *of_shards):
            lines.read(found[name], own=True)
        common = records_file(folder)
        lines.write(common, hidden=False)
        remove_all(file for name in ("", *of_shards) for file in found[name] if file != common)

    _undisturbed(folder, work)


def manifest(folder: pathlib.Path) -> Iterator[Record]:
    """One entry for each source of the results in a folder, whichever shards made them.

    Yields:
      Sources in order, each with its `bytes`, `modified` (a time, or what a bucket tells contents
      by), `height`, `width`, `frames` of a video, `classes` with their shares of the pixels, mean
      `confidence`, `seconds`, `error` and `results`; what is not known is None.
    """

    def read() -> _Lines:
        lines = _Lines()
        for files in find_files(folder).values():
            lines.read(files, own=True)
        return lines

    lines = _undisturbed(folder, read)
    # Of a tar file the pictures are listed, and itself where it failed.
    listed = (record for record in lines.by_source() if "save" not in record)
    for _, records in itertools.groupby(listed, lambda record: record["source"]):
        entry = dict.fromkeys(_OF_SOURCE) | {"results": []}
        for record in records:
            entry |= {name: record[name] for name in _OF_SOURCE if name in record}
            entry["results"] += [record["result"]] if "result" in record else []
        yield entry


def _undisturbed(folder: pathlib.Path, work: Callable[[], T]) -> T:
    """Does what reads files of records again where others remove them: buckets have no locks."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return work()
    raise OSError(f"{folder}: others change its records all the time; start again")


class _Lines:
    """Lines by what they record, the last of each, in a private file on disk."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; "
            "CREATE TABLE lines (key PRIMARY KEY, own, source, line) WITHOUT ROWID; BEGIN"
        )

    def read(self, files: Iterable[pathlib.Path], own: bool) -> None:
        parsed = _parsed(read_lines(files))
        rows = ((_key(r), own, _ascii(r.get("source")), _line(r)) for r in parsed)
        self._base.executemany("REPLACE INTO lines VALUES (?, ?, ?, ?)", rows)

    def find(self, key: str) -> Record | None:
        query = "SELECT line FROM lines WHERE key = ? AND source != 'null'"
        row = self._base.execute(query, (_ascii(key),)).fetchone()
        return row and json.loads(row[0])

    def forget(self, keys: Iterable[str], hide: bool) -> None:
        """Removes lines of these keys and of what is below them.

        Args:
          keys: of the lines.
          hide: put such in their place that hide them in files read before.
        """
        change = "DELETE FROM lines"
        if hide:
            line = """'{"result": ' || key || '}' || char(10)"""
            change = f"UPDATE lines SET own = 1, source = 'null', line = {line}"
        # "0" is what follows "/".
        self._base.executemany(
            f"{change} WHERE key = ?1 || '\"' OR (key > ?1 || '/' AND key < ?1 || '0')",
            ((_ascii(key)[:-1],) for key in keys),
        )

    def write(self, file: pathlib.Path, hidden: bool = True) -> None:
        query = "SELECT line FROM lines WHERE own AND (? OR source != 'null')"
        with write_whole(file) as part, open(part, "w", encoding="utf-8") as lines:
            lines.writelines(row[0] for row in self._base.execute(query, (hidden,)))

    def by_source(self) -> Iterator[Record]:
        query = "SELECT line FROM lines WHERE source != 'null' ORDER BY source, key"
        return (json.loads(row[0]) for row in self._base.execute(query))


def _parsed(lines: Iterable[str]) -> Iterator[Record]:
    for line in lines:
        try:
            record = json.loads(line)
            _key(record)
        except (ValueError, LookupError, TypeError):
            continue
        yield record


def _failed(source: str) -> str:
    """Key of a failure: no path of a result begins with one."""
    return f"/{source}"


def _key(record: Record) -> str:
    return _ascii(record["result"] if "result" in record else _failed(record["source"]))


def _ascii(text: str | None) -> str:
    """Names may hold what no letter stands for."""
    return json.dumps(text)


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
