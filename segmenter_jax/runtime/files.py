"""Local and remote paths, and files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath


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
      A path beside it with the same suffix; `path` itself where it is a device or a pipe.
    """
    regular = os.path.isfile(path) or os.path.isdir(path)
    if is_local(path) and os.path.exists(path) and not regular:
        yield epath.Path(path)
        return
    path = absolute(path)
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
def naming(path: os.PathLike | str, part: os.PathLike | str | None = None) -> Iterator[None]:
    """Makes errors of the system in the block, such as a full disk, name a file.

    Args:
      path: the file they are to name where they name none.
      part: another file, in whose place they are to name it.
    """
    try:
        yield
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
