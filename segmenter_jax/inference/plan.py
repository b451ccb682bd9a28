"""What to segment, and the names of its results: any number of sources at a few bytes each."""

import functools
import glob
import hashlib
import os
import pathlib
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from segmenter_jax.data.bucket_listing import iter_object_pattern, iter_objects
from segmenter_jax.data.encoded import IMAGE_SUFFIXES
from segmenter_jax.data.listing import (
    describe_left_out,
    iter_folder,
    iter_pattern,
    only,
    printable,
)
from segmenter_jax.inference.record_files import RECORDS_FILE
from segmenter_jax.inference.records import Record, source_record, stored_record
from segmenter_jax.inference.results import NAMES
from segmenter_jax.inference.tar_files import TAR_SUFFIX, is_tar
from segmenter_jax.pictures.video import VIDEO_SUFFIXES
from segmenter_jax.runtime import buckets
from segmenter_jax.runtime.buckets import Stored
from segmenter_jax.runtime.files import exists, is_local, place

# Rows that are in memory at a time.
_PAGE = 1000

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE found (
  path BLOB PRIMARY KEY, input, below BLOB, stem BLOB, longer BLOB, lot, bytes, stamp);
CREATE TABLE planned (number INTEGER PRIMARY KEY, path BLOB, stem BLOB, lot, bytes, stamp);
BEGIN;
"""

# Names that would be the same are told apart by their suffix.
_PLAN = """
CREATE INDEX stems ON found (stem);
INSERT INTO planned (path, stem, lot, bytes, stamp) SELECT path,
  CASE WHEN EXISTS (SELECT 1 FROM found AS o WHERE o.stem = found.stem AND o.path != found.path)
  THEN longer ELSE stem END, lot, bytes, stamp FROM found ORDER BY input, below;
CREATE INDEX paths ON planned (path);
CREATE INDEX names ON planned (stem);
DROP TABLE found;
"""


class Plan(Mapping[pathlib.Path, pathlib.PurePath]):
    """Sources, and the names of their results without suffix, relative to the output folder.

    It lies in a private file on disk, which ends with it.
    """

    def __init__(self) -> None:
        """Makes an empty one, for `add` and then `settle`."""
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(_TABLES)

    def add(
        self,
        path: pathlib.Path,
        order: int,
        below: pathlib.PurePath,
        stored: Stored | None = None,
    ) -> None:
        """Adds a source; the last holds of several that name one file.

        Args:
          path: of the file.
          order: number of the input that it came from.
          below: its path below that.
          stored: as what a bucket listed it.
        """
        stem = os.fsencode(below.with_suffix(""))
        longer = stem + os.fsencode(f"_{below.suffix[1:]}")
        # Of the name alone: other files change nothing, and equal names stay together.
        lot = int.from_bytes(hashlib.blake2b(stem, digest_size=7).digest())
        self._base.execute(
            "INSERT INTO found VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET "
            "below = excluded.below, stem = excluded.stem, longer = excluded.longer, "
            "lot = excluded.lot",
            (os.fsencode(path), order, os.fsencode(below), stem, longer, lot)
            + ((stored.bytes, stored.stamp) if stored else (None, None)),
        )

    def settle(self) -> None:
        """Orders the sources and names their results.

        Raises:
          ValueError: two would have the same results.
        """
        for statement in filter(str.strip, _PLAN.split(";")):
            self._base.execute(statement)
        same = self._base.execute(
            "SELECT a.path, b.path, a.stem FROM planned AS a JOIN planned AS b "
            "ON a.stem = b.stem AND a.number < b.number ORDER BY b.number LIMIT 1"
        ).fetchone()
        if same:
            first, second, stem = map(os.fsdecode, same)
            raise ValueError(f"{first} and {second} would both write {stem}")

    def keep_shard(self, index: int, count: int) -> None:
        """Keeps the sources of one of `count` shards, which depends on their own names alone."""
        self._base.execute("DELETE FROM planned WHERE lot % ? != ?", (count, index))

    def keep(self, condition: Callable[[pathlib.Path], object]) -> None:
        """Keeps the sources for which a condition holds."""
        for page in self._pages():
            gone = [(n,) for n, path, _ in page if not condition(_path(path))]
            self._base.executemany("DELETE FROM planned WHERE number = ?", gone)

    def __getitem__(self, path: pathlib.Path) -> pathlib.PurePath:
        """Name of the results of a source."""
        query = "SELECT stem FROM planned WHERE path = ?"
        row = self._base.execute(query, (os.fsencode(path),)).fetchone()
        if row is None:
            raise KeyError(path)
        return pathlib.PurePath(os.fsdecode(row[0]))

    def listed(self, path: pathlib.Path) -> Record | None:
        """As `records.source_record`, of an object as it was listed; None of a file."""
        query = "SELECT bytes, stamp FROM planned WHERE path = ? AND bytes IS NOT NULL"
        row = self._base.execute(query, (os.fsencode(path),)).fetchone()
        return stored_record(Stored(path, *row)) if row else None

    def source_record(self, path: pathlib.Path) -> Record:
        """As `records.source_record`, without asking the bucket for each object again."""
        return self.listed(path) or source_record(path)

    def __iter__(self) -> Iterator[pathlib.Path]:
        """Sources in the order of the inputs, folders and matches sorted."""
        return (_path(path) for page in self._pages() for _, path, _ in page)

    def __len__(self) -> int:
        return self._base.execute("SELECT count(*) FROM planned").fetchone()[0]

    def _pages(self) -> Iterator[list[tuple[int, bytes, bytes]]]:
        query = "SELECT number, path, stem FROM planned WHERE number > ? ORDER BY number LIMIT ?"
        last = 0
        while page := self._base.execute(query, (last, _PAGE)).fetchall():
            yield page
            last = page[-1][0]


def _path(name: bytes) -> pathlib.Path:
    # Not `place`, which would take a file "~" for a home.
    text = os.fsdecode(name)
    return pathlib.Path(text) if is_local(text) else epath.Path(text)


def planned_outputs(inputs: Sequence[str], tars: bool = False) -> Plan:
    """What to read, and the names of its results.

    Args:
      inputs: files; folders, whose pictures and videos are taken by the rule of `data.listing` and
        mirrored; and patterns such as "photos/**/*.jpg", mirrored below their fixed part; all of
        them also in buckets.
      tars: take tar files, and nothing else.

    Raises:
      ValueError: an input does not exist or matches nothing, or is not what is taken, a folder has
        no pictures but results of earlier runs, which are left out, or two files would have the
        same results.
    """
    plan, what = Plan(), "tar files" if tars else "pictures"
    holds_records = functools.lru_cache(lambda folder: exists(folder / RECORDS_FILE))
    for order, name in enumerate(inputs):
        results = count = 0
        for path, below, stored in _expand(name, tars):
            count += 1
            if _is_result(path, below, holds_records):
                results += 1
            else:
                plan.add(path, order, below, stored)
        if results and results == count:
            raise ValueError(f"{name}: no {what} but {results} results of earlier runs")
        if results:
            print(f"{name}: left out: {results} results of earlier runs", file=sys.stderr)
    plan.settle()
    return plan


def _is_result(
    path: pathlib.Path,
    below: pathlib.PurePath,
    holds_records: Callable[[pathlib.Path], bool],
) -> bool:
    """Whether a file is a result in a folder of results, if that is not above `path` less `below`.

    Args:
      path: the file.
      below: its path below the folder that is searched.
      holds_records: whether a folder is one of results.
    """
    inner = zip(path.parents, reversed(below.parts), strict=False)
    return any(name in NAMES and holds_records(folder) for folder, name in inner)


class _Source(NamedTuple):
    """A file or an object of an input, and its path below that."""

    path: pathlib.Path
    below: pathlib.PurePath
    stored: Stored | None = None


class _Several(NamedTuple):
    """Files or objects by their paths below an input, and where they are looked for."""

    files: Iterator[tuple[str, pathlib.Path | Stored]]
    where: str = "in this folder"


def _expand(name: str, tars: bool) -> Iterator[_Source]:
    """Files of one input; says what was left out."""
    path = place(name)
    left_out: dict[str, list[str]] = {}
    what, suffixes = "pictures", IMAGE_SUFFIXES + VIDEO_SUFFIXES
    if tars:
        what, suffixes = "tar files", (TAR_SUFFIX,)
    looked = _look(path, left_out)
    if looked is None:
        raise ValueError(f"{name}: no such file or folder")
    if isinstance(looked, _Source):
        if is_tar(path) and not tars:
            raise ValueError(f"{name}: a tar file, the pictures of which --tar segments")
        if tars and not is_tar(path):
            raise ValueError(f"{name}: no tar file ({TAR_SUFFIX}), and --tar takes nothing else")
        yield looked
        return
    nothing = True
    for below, where in only(looked.files, suffixes, left_out):
        nothing = False
        stored = where if isinstance(where, Stored) else None
        yield _Source(stored.path if stored else where, pathlib.PurePath(below), stored)
    text = describe_left_out(left_out)
    if nothing:
        also = f"; left out: {text}" if text else ""
        raise ValueError(f"{name}: no {what} {looked.where}{also}")
    if text:
        print(f"{printable(name)}: left out: {text}", file=sys.stderr)


def _look(path: pathlib.Path, left_out: dict[str, list[str]]) -> _Source | _Several | None:
    """What a name is, if it is anything."""
    below, is_pattern = pathlib.PurePath(path.name), glob.has_magic(os.fspath(path))
    if is_local(path):
        if path.is_dir():
            return _Several(iter_folder(path, left_out))
        if path.exists():
            return _Source(path, below)
        return _Several(iter_pattern(path), "match") if is_pattern else None
    if stored := buckets.find(path):
        return _Source(path, below, stored)
    if buckets.is_folder(path):
        return _Several(iter_objects(path, left_out))
    return _Several(iter_object_pattern(path), "match") if is_pattern else None
