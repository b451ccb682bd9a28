"""Directories that appear whole or not at all, by renaming one that was built beside them."""

import os

from etils import epath


def absolute(path: os.PathLike | str) -> epath.Path:
    """An absolute local path, or a remote one as it is."""
    path = epath.Path(path)
    return epath.Path(os.path.abspath(path.expanduser())) if is_local(path) else path


def is_local(path: os.PathLike | str) -> bool:
    """Whether a path is one of the local file system, where renames are atomic."""
    return "://" not in os.fspath(path)


def staging(path: epath.Path) -> epath.Path:
    """Where a directory is built before it is published at `path`."""
    return path.parent / f".{path.name}.incomplete"


def previous(path: epath.Path) -> epath.Path:
    """Where the directory that is being replaced at `path` stands for a moment."""
    return path.parent / f".{path.name}.previous"


def recover(path: epath.Path) -> None:
    """Ends a replacement that was interrupted between its two renames."""
    if previous(path).exists():
        if path.exists():
            previous(path).rmtree()
        else:
            previous(path).rename(path)


def publish(path: epath.Path) -> None:
    """Makes what was built at `staging(path)` stand at `path`, replacing a directory there."""
    _sync_tree(staging(path))
    if path.exists():
        path.rename(previous(path))
    staging(path).rename(path)
    _sync(path.parent)
    if previous(path).exists():
        previous(path).rmtree()


def _sync_tree(folder: epath.Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(os.path.join(parent, name))
        _sync(parent)


def _sync(path: os.PathLike | str) -> None:
    """Makes a file, or a directory's list of names, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
