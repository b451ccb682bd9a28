"""Object stores such as gs:// and s3://, by fsspec: what files do for local paths."""

import contextlib
import functools
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from etils import epath

from segmenter_jax.runtime.errors import one_line

if TYPE_CHECKING:
    import fsspec

# How addresses begin, and the extras that install what reads and writes them.
_EXTRAS = {"gs": "gcs", "s3": "s3"}
SCHEMES = tuple(f"{scheme}://" for scheme in _EXTRAS)

# Requests that run at a time.
AT_A_TIME = 32

# What changes with the content of an object, the first that a store tells. Google's "etag" is
# none: it changes with the rights to an object as well.
_STAMPS = ("ETag", "md5Hash", "generation", "LastModified", "updated", "mtime")

_READ_BYTES = 2**16


class StoreError(OSError):
    """A store does not do what it is asked; the message names an address."""


class Stored(NamedTuple):
    """An object, as a store lists it.

    Attributes:
      path: its address.
      bytes: its size.
      stamp: changes with its content.
    """

    path: epath.Path
    bytes: int
    stamp: str


class Level(NamedTuple):
    """What lies directly below an address.

    Attributes:
      folders: names of what has objects below it in turn.
      objects: by name.
    """

    folders: list[str]
    objects: dict[str, Stored]


def level(folder: os.PathLike | str) -> Level:
    """Lists one level of a store; of one that does not exist, nothing."""
    found, folder = Level([], {}), epath.Path(folder)
    with _asking(folder), contextlib.suppress(FileNotFoundError):
        for info in _store(folder).ls(os.fspath(folder), detail=True):
            name = info["name"].rstrip("/").rpartition("/")[2]
            # Some keep an empty object in place of a folder.
            if info["name"].endswith("/") or folder == _address(folder, info["name"]):
                continue
            if info["type"] == "directory":
                found.folders.append(name)
            else:
                found.objects[name] = _stored(folder / name, info)
    return found


def find(path: os.PathLike | str) -> Stored | None:
    """An object; None if there is none of this address."""
    with _asking(path), contextlib.suppress(FileNotFoundError):
        info = _store(path).info(os.fspath(path))
        if info["type"] == "file":
            return _stored(epath.Path(path), info)
    return None


def is_folder(path: os.PathLike | str) -> bool:
    """Whether objects lie below an address."""
    with _asking(path):
        return _store(path).isdir(os.fspath(path))


def read(path: os.PathLike | str, start: int = 0, end: int | None = None) -> bytes:
    """Bytes of an object, all or some."""
    with _asking(path):
        # Of an empty object stores refuse any range.
        return _store(path).cat_file(os.fspath(path), start=start or None, end=end)


@contextlib.contextmanager
def opened(path: os.PathLike | str) -> Iterator[BinaryIO]:
    """Opens an object to be read from front to back, or here and there."""
    with _asking(path):
        file = _store(path).open(os.fspath(path), "rb")
    with io.BufferedReader(_Reading(path, file), _READ_BYTES) as reader:
        yield reader


def put(files: Mapping[os.PathLike, os.PathLike]) -> None:
    """Copies local files to addresses of one store. Each appears whole, or not at all."""
    for path in itertools.islice(files, 1):
        with _asking(path):
            _store(path).put([*map(os.fspath, files.values())], [*map(os.fspath, files)])


def write(path: os.PathLike | str, data: bytes) -> None:
    """Writes an object, which appears whole, or not at all."""
    with _asking(path):
        _store(path).pipe_file(os.fspath(path), data)


def remove(paths: Iterable[os.PathLike | str]) -> None:
    """Removes objects, also where there are none."""

    def remove_one(path: os.PathLike | str) -> None:
        with _asking(path), contextlib.suppress(FileNotFoundError):
            # Not `rm`, which takes brackets in an address for a pattern.
            _store(path).rm_file(os.fspath(path))

    with ThreadPoolExecutor(AT_A_TIME) as threads:
        # Which raises what they raise.
        list(threads.map(remove_one, paths))


def remove_folder(path: os.PathLike | str) -> None:
    """Removes all objects below an address, also where there are none."""
    folder = epath.Path(path)
    with _asking(path):
        found = [_address(folder, name) for name in _store(path).find(os.fspath(path))]
    # Where nothing is below it, an object of the address itself is found.
    remove(object for object in found if object != folder)


class _Reading(io.RawIOBase):
    """An open object, whose errors name its address."""

    def __init__(self, path: os.PathLike | str, file: Any) -> None:
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _asking(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _asking(self._path):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def _store(path: os.PathLike | str) -> "fsspec.AbstractFileSystem":
    return _store_of(os.fspath(path).partition("://")[0])


@functools.lru_cache
def _store_of(scheme: str) -> "fsspec.AbstractFileSystem":
    import fsspec

    try:
        # Kept listings would take memory by the number of names, and miss what others write.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        # Who calls may know other schemes.
        extra = _EXTRAS.get(scheme)
        needed = f'needs pip install "segmenter_jax[{extra}]"' if extra else "cannot be read"
        raise ImportError(f"{scheme}:// {needed}") from error


@contextlib.contextmanager
def _asking(path: os.PathLike | str) -> Iterator[None]:
    """Makes whatever clients of stores raise an error that names an address."""
    try:
        yield
    except ImportError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such object, or no such bucket") from error
    except Exception as error:
        raise StoreError(f"{path}: {one_line(error)}") from error


def _address(folder: epath.Path, name: str) -> epath.Path:
    """Of what a store of the same kind calls by this name, with or without the scheme."""
    scheme = os.fspath(folder).partition("://")[0]
    return epath.Path(f"{scheme}://{name.removeprefix(f'{scheme}://')}")


def _stored(path: epath.Path, info: Mapping[str, Any]) -> Stored:
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name)), "")
    return Stored(path, info["size"], stamp)
