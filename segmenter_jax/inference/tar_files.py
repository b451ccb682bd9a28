"""Tar files of pictures as WebDataset lays them out, read in order, and those of their results.

The results of `KEY.jpg` are members `KEY.ids.png`, `KEY.overlay.jpg`, ... that follow each other,
so that they are fields of one sample there. Nothing is unpacked to the disk.
"""

import collections
import contextlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO, NamedTuple, TextIO

from PIL import Image

from segmenter_jax.data.encoded import IMAGE_SUFFIXES
from segmenter_jax.data.listing import HIDDEN, is_left_out, unread_suffix
from segmenter_jax.inference.records import Record
from segmenter_jax.pictures.video import VIDEO_SUFFIXES
from segmenter_jax.runtime.buckets import StoreError
from segmenter_jax.runtime.errors import DataError
from segmenter_jax.runtime.files import open_binary, size_of, write_whole

TAR_SUFFIX = ".tar"

_PICTURES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in VIDEO_SUFFIXES)
_CHUNK = 2**20


class TarPicture(NamedTuple):
    """A picture in a tar file.

    Attributes:
      name: of the member, as it stands there.
      data: the encoded picture.
      end: bytes of the tar file up to its end.
    """

    name: str
    data: bytes
    end: int


def is_tar(path: PurePath) -> bool:
    """Whether the name is that of a tar file that is not compressed."""
    return path.suffix.lower() == TAR_SUFFIX


def read_pictures(path: Path, left_out: collections.Counter[str]) -> Iterator[TarPicture]:
    """Pictures of a tar file, one at a time in the order in which they stand there.

    Args:
      path: of the file.
      left_out: counts members that are no pictures, or do not count, by the reason.

    Raises:
      DataError: the file is no tar file, damaged, or cut short, which may show after many
        pictures; or it has no pictures.
      OSError: it lies in a bucket that does not answer.
    """
    last, found = None, False
    try:
        with (
            open_binary(path) as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar,
        ):
            size = size_of(path)
            while (member := tar.next()) is not None:
                # It keeps them all otherwise.
                tar.members.clear()
                if reason := _left_out(member):
                    left_out[reason] += 1
                elif not member.isdir():
                    end = member.offset_data + member.size
                    # A damaged size would be taken for memory to read into.
                    if end > size:
                        raise tarfile.ReadError("unexpected end of data")
                    found = True
                    yield TarPicture(member.name, tar.extractfile(member).read(), end)
                last = member.name
            _refuse_rest(file, tar.offset)
    except StoreError:
        raise
    # For damaged headers it raises whatever its parsers meet.
    except Exception as error:
        where = "not a readable tar file" if last is None else f"damaged after {last}"
        raise DataError(f"{path}: {where} ({error})") from error
    if not found:
        raise DataError(f"{path}: no pictures in this tar file")


def _left_out(member: tarfile.TarInfo) -> str | None:
    """Why a member that is no folder does not count, if it does not."""
    if member.isdir():
        return None
    # Names that lead out of the folder are not hidden, but refused.
    parts = (part for part in PurePosixPath(member.name).parts if part != "..")
    if any(map(is_left_out, parts)):
        return HIDDEN
    if member.issym() or member.islnk():
        return "a link"
    if not member.isreg() or member.issparse():
        return "no regular file"
    return unread_suffix(member.name, _PICTURES)


def _refuse_rest(file: BinaryIO, end: int) -> None:
    """Refuses what stands where there should be zeros: the module ends at any damaged header."""
    file.seek(end)
    if not file.read(1):
        raise tarfile.ReadError("its end is missing")
    file.seek(end)
    while chunk := file.read(_CHUNK):
        if chunk.count(0) < len(chunk):
            raise tarfile.ReadError("what follows is no member")


class TarResults:
    """A tar file of results that is being written; see `write_tar`.

    Attributes:
      added: pictures with results.
      failed: pictures without.
    """

    def __init__(self, tar: tarfile.TarFile, lines: TextIO, result: str, source: Record) -> None:
        """Begins with nothing.

        Args:
          tar: written to.
          lines: gets a record as a line of JSON for each result and failure.
          result: path of the tar file of results, for the records.
          source: record of that of the pictures.
        """
        self._tar, self._lines, self._result, self._source = tar, lines, result, source
        self._stems: set[str] = set()
        self.added = self.failed = 0

    def begin(self, name: str) -> None:
        """Checks the name of a picture.

        Raises:
          DataError: it leads out of the folder that the tar file would be unpacked to, or its
            results would have the names of others'.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError("the name leads out of the tar file")
        stem = str(path.with_suffix(""))
        if stem in self._stems:
            raise DataError(f"an earlier picture of this tar file has the key {stem} as well")
        self._stems.add(stem)

    def add(self, picture: TarPicture, results: Iterable[tuple[str, bytes, Record]]) -> None:
        """Adds the results of a picture: what follows its key, encoded data, and the record."""
        for ending, data, record in results:
            stem = picture.name.removesuffix(PurePosixPath(picture.name).suffix)
            member = tarfile.TarInfo(stem + ending)
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
            # It keeps them all otherwise.
            self._tar.members.clear()
            names = {"result": f"{self._result}/{member.name}", "source": self._name(picture.name)}
            self._record(self._source | names | {"bytes": len(picture.data)} | record)
        self.added += 1

    def fail(self, name: str, message: str) -> None:
        """Records why a picture has no results."""
        self.failed += 1
        self._record({"source": self._name(name), "error": message})

    def _name(self, name: str) -> str:
        return f"{self._source['source']}/{name}"

    def _record(self, record: Record) -> None:
        self._lines.write(json.dumps(record) + "\n")


@contextlib.contextmanager
def write_tar(
    folder: Path, result: str, source: Record, record: Callable[[Iterable[Record]], None]
) -> Iterator[TarResults]:
    """Writes a tar file of results, which appears at the end of the block, and then is recorded.

    Args:
      folder: of the results.
      result: path of the tar file below it.
      source: what tells the tar file of the pictures from others; see `records.source_record`.
      record: takes the records of all pictures.
    """
    with tempfile.TemporaryFile("w+", encoding="ascii") as lines:
        with (
            write_whole(folder / result) as part,
            tarfile.open(part, "w:", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
        ):
            yield TarResults(tar, lines, result, source)
        lines.seek(0)
        record(map(json.loads, lines))


def encoded(picture: Image.Image, suffix: str, **options: object) -> bytes:
    """A picture as the file of this suffix that Pillow would write with these options."""
    data = io.BytesIO()
    picture.save(data, Image.registered_extensions()[suffix], **options)
    return data.getvalue()
