"""Object stores such as gs:// and s3://, by fsspec: what files do for local paths."""

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from etils import epath

if TYPE_CHECKING:
    import fsspec

# How addresses begin, and the extras that install what reads and writes them.
_EXTRAS = {"gs": "gcs", "s3": "s3"}
SCHEMES = tuple(f"{scheme}://" for scheme in _EXTRAS)

# What changes with the content of an object, the first that a store tells: a sum, or a time.
_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "updated", "mtime")


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
    with file:
        yield file


def put(files: Mapping[os.PathLike, os.PathLike]) -> None:
    """Copies local files to addresses of one store. Each appears whole, or not at all."""
    for path in itertools.islice(files, 1):
        with _asking(path):
            _store(path).put([*map(os.fspath, files.values())], [*map(os.fspath, files)])


def write(path: os.PathLike | str, data: bytes) -> None:
    """Writes an object, which appears whole, or not at all."""
    with _asking(path):
        _store(path).pipe_file(os.fspath(path), data)


def remove(path: os.PathLike | str) -> None:
    """Removes an object, and all below its address; also where there is none."""
    with _asking(path), contextlib.suppress(FileNotFoundError):
        _store(path).rm(os.fspath(path), recursive=True)


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
    """Makes whatever clients of stores raise an `OSError` that names an address."""
    try:
        yield
    except ImportError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such object, or no such bucket") from error
    except Exception as error:
        raise OSError(f"{path}: {error or type(error).__name__}") from error


def _address(folder: epath.Path, name: str) -> epath.Path:
    """Of what a store of the same kind calls by this name, with or without the scheme."""
    scheme = os.fspath(folder).partition("://")[0]
    return epath.Path(f"{scheme}://{name.removeprefix(f'{scheme}://')}")


def _stored(path: epath.Path, info: Mapping[str, Any]) -> Stored:
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name)), "")
    return Stored(path, info["size"], stamp)
