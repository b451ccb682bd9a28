"""One owner at a time of a folder that a command writes to, or of each part of it."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator

import filelock
from etils import epath

from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.files import absolute, is_local

_LOCK = ".lock"

# Covers an owner that is about to leave, and one that has not said its name yet.
_PATIENCE_SECONDS = 1.0

# Of parts that come at the same time, one of which brings order to the folder.
_ENTRY = ".entry.lock"

# A file system without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class InUseError(ValueError):
    """Another process writes to a folder."""


@contextlib.contextmanager
def sole_owner(
    folder: os.PathLike | str, *, beside: bool = False, wait: bool = False
) -> Iterator[None]:
    """Keeps others that ask for the same folder out of it until the end of the block.

    The lock of a process that ends in whatever way ends with it. Object stores have no locks:
    nothing is kept from anybody there.

    Args:
      folder: made, with its parents, where it is missing; what was made and is left empty by the
        block is removed.
      beside: keep the lock in the parent, for a folder that is replaced as a whole; then only the
        parent is made.
      wait: for the end of another owner, instead of an error.

    Raises:
      InUseError: another process owns the folder; says which, and where.
    """
    folder = absolute(folder)
    if not is_local(folder):
        yield
        return
    place = folder.parent if beside else folder
    file = place / (f".{folder.name}{_LOCK}" if beside else _LOCK)
    made = [path for path in (place, *place.parents) if not path.exists()]
    place.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder, file, wait):
            _refuse_parts(folder, None)
            yield
    finally:
        # Ends at the first that holds something.
        with contextlib.suppress(OSError):
            for path in made:
                os.rmdir(path)


@contextlib.contextmanager
def part_owner(
    folder: os.PathLike | str, index: int, count: int, enter: Callable[[], None]
) -> Iterator[None]:
    """As `sole_owner` for one of several parts of a folder, which may have an owner each.

    Args:
      folder: made, with its parents, where it is missing.
      index: of the part, from 0.
      count: of the parts that the folder is in.
      enter: called while no other part enters, and none of another count is owned.

    Raises:
      InUseError: another process owns the part, the folder, or a part where it is in others.
    """
    folder = absolute(folder)
    if not is_local(folder):
        enter()
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as own, contextlib.ExitStack() as entry:
        entry.enter_context(_locked(folder, folder / _ENTRY, wait=True))
        entry.enter_context(_locked(folder, folder / _LOCK, wait=False))
        _refuse_parts(folder, count)
        part = folder / f".{index}-of-{count}{_LOCK}"
        own.enter_context(_locked(folder, part, wait=False))
        enter()
        entry.close()
        yield


def _refuse_parts(folder: epath.Path, count: int | None) -> None:
    """Refuses a folder of which parts are owned, but those of this count."""
    for file in folder.glob(f".*-of-*{_LOCK}") if folder.exists() else ():
        if not file.name.endswith(f"-of-{count}{_LOCK}"):
            with _locked(folder, file, wait=False):
                pass


@contextlib.contextmanager
def _locked(folder: epath.Path, file: epath.Path, wait: bool) -> Iterator[None]:
    lock = filelock.FileLock(file, fallback_to_soft=False)
    try:
        _acquire(lock, folder, file, wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: no locks here; nothing else may write to it meanwhile", folder)
        yield
        return
    try:
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        # Before the release: whoever waits for the lock then makes a new file.
        file.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: filelock.FileLock, folder: epath.Path, file: epath.Path, wait: bool) -> None:
    try:
        lock.acquire(timeout=_PATIENCE_SECONDS)
    except filelock.Timeout:
        owner = file.read_text().strip() if file.exists() else ""
        message = f"{folder}: in use by {owner or 'another process'}"
        if not wait:
            raise InUseError(message) from None
        logger.info("%s: waiting for its end", message)
        lock.acquire()
