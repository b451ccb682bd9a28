"""Local and remote paths, and files that appear whole or not at all."""

import contextlib
import glob
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from etils import epath

from segmenter_jax.runtime import buckets


def absolute(path: os.PathLike | str) -> epath.Path:
    """An absolute local path, or a remote one as it is; of a link, what it points to."""
    path = epath.Path(path)
    if not is_local(path):
        return path
    local = os.path.abspath(path.expanduser())
    return epath.Path(os.path.realpath(local) if os.path.islink(local) else local)


def is_local(path: os.PathLike | str) -> bool:
    """Whether a path is one of the local file system, where renames are atomic."""
    return "://" not in os.fspath(path)


def place(text: str) -> pathlib.Path:
    """What the user calls by a name: a local path, or an address in a bucket.

    Raises:
      ValueError: it is an address of another kind.
    """
    if is_local(text):
        return pathlib.Path(text).expanduser()
    if not os.fspath(text).startswith(buckets.SCHEMES):
        raise ValueError(f"{text}: addresses of buckets begin with {' or '.join(buckets.SCHEMES)}")
    path = epath.Path(text)
    # After the root and the scheme.
    bucket = "".join(path.parts[2:3])
    if not bucket or glob.has_magic(bucket):
        raise ValueError(f"{text}: names no bucket, which cannot be a pattern")
    return path


def full_name(path: os.PathLike | str) -> str:
    """An absolute path, of a link its own; or an address."""
    return os.path.abspath(path) if is_local(path) else os.fspath(path)


def exists(path: os.PathLike | str) -> bool:
    """Whether there is a file or folder, or an object."""
    return os.path.exists(path) if is_local(path) else buckets.find(path) is not None


def is_same(path: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two names lead to one file or object that is there."""
    if is_local(path) and is_local(other):
        return path.exists() and path.samefile(other)
    return os.fspath(path) == os.fspath(other)


def size_of(path: os.PathLike | str) -> int:
    """Bytes of a file or an object; none of one that is gone."""
    if is_local(path):
        return os.path.getsize(path) if os.path.exists(path) else 0
    found = buckets.find(path)
    return found.bytes if found else 0


def read_bytes(path: os.PathLike | str, start: int = 0, end: int | None = None) -> bytes:
    """Bytes of a file or an object, all or some."""
    if not is_local(path):
        return buckets.read(path, start, end)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else end - start)


def make_empty(path: pathlib.Path) -> None:
    """Makes an empty file or object where there is none."""
    if is_local(path):
        path.touch()
    elif not exists(path):
        buckets.write(path, b"")


def remove_all(paths: Iterable[pathlib.Path]) -> None:
    """Removes files or objects of one place, also where there are none."""
    paths = list(paths)
    if paths and not is_local(paths[0]):
        buckets.remove(paths)
        return
    for path in paths:
        path.unlink(missing_ok=True)


def open_binary(path: os.PathLike | str) -> contextlib.AbstractContextManager[BinaryIO]:
    """Opens a file or an object to be read."""
    return open(path, "rb") if is_local(path) else buckets.opened(path)


# What `glob` takes for a pattern.
_PATTERN = frozenset("*?[\\")


def check_no_pattern(path: os.PathLike | str) -> None:
    """Refuses a path to write to that would be taken for a pattern.

    Orbax looks for the parts of what it has written with `glob`, without escaping their path, and
    passes over parts that it does not find.

    Raises:
      ValueError: the path, made absolute, holds such a character.
    """
    path = absolute(path)
    if found := sorted(_PATTERN & set(os.fspath(path))):
        raise ValueError(
            f"{path}: models and checkpoints cannot be saved below a path with {' '.join(found)}, "
            "which Orbax takes for a pattern; choose one without"
        )


@contextlib.contextmanager
def write_whole(path: os.PathLike | str) -> Iterator[epath.Path]:
    """Gives a place to write a file to, which moves to `path` at the end of the block.

    After a failure in the block nothing of it is left, and an older file stays; an error of the
    system, such as a full disk, names `path`.

    Args:
      path: local or remote; its folder is made where it is missing.

    Yields:
      A local path with the same suffix, beside `path` if that is local; `path` itself where it is
      a device or a pipe.
    """
    regular = os.path.isfile(path) or os.path.isdir(path)
    if is_local(path) and os.path.exists(path) and not regular:
        yield epath.Path(path)
        return
    path = absolute(path)
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            part = epath.Path(folder) / path.name
            with naming(path, part):
                yield part
            buckets.put({path: part})
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".incomplete.{path.name}"
    try:
        with naming(path, part):
            yield part
            sync(part)
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def write_whole_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """As `write_whole`, of a folder of files; in a bucket its files appear one after the other.

    Yields:
      An empty folder, which replaces `path` at the end of the block.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            yield folder
            buckets.remove_folder(path)
            buckets.put({path / file.name: file for file in sorted(folder.iterdir())})
        return
    part = path.with_name(f".incomplete.{path.name}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def naming(path: os.PathLike | str, part: os.PathLike | str | None = None) -> Iterator[None]:
    """Makes errors of the system in the block, such as a full disk, name a file.

    Args:
      path: the file they are to name where they name none.
      part: another file, in whose place they are to name it.
    """
    try:
        yield
    except buckets.StoreError:
        # It names an address.
        raise
    except OSError as error:
        if error.errno is None:
            if os.fspath(path) in str(error):
                raise
            raise OSError(f"{path}: {error}") from error
        if error.filename not in (None, part and os.fspath(part)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


def sync(path: os.PathLike | str) -> None:
    """Makes a local file, or a directory's list of names, survive a power failure."""
    if not is_local(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
