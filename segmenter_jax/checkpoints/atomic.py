"""Directories that appear whole or not at all.

One is built beside its place, and a file of it, its marker, is written last: what has a marker is
whole. Then the old directory goes and the new one moves to its place: by a rename, or file by file
on object stores, which have none. So once there was a whole directory, there is one at `path` or
`staging(path)`, whatever is interrupted.
"""

import os

from etils import epath

from segmenter_jax.runtime.files import is_local, sync, write_whole


def staging(path: epath.Path) -> epath.Path:
    """Where a directory is built before it is published at `path`."""
    return path.parent / f".{path.name}.incomplete"


def whole(path: epath.Path, marker: str) -> epath.Path | None:
    """Where the directory meant by `path` stands; elsewhere only if its move was interrupted."""
    for folder in (path, staging(path)):
        if (folder / marker).exists():
            return folder
    return None


def recover(path: epath.Path, marker: str) -> None:
    """Ends a move that was interrupted, and clears `staging(path)`.

    Where `path` holds what is no part of the directory to be moved, both are left as they are.
    """
    built = staging(path)
    if (built / marker).exists() and not (path / marker).exists():
        if _names(path) <= _names(built):
            _move(path, marker)
    else:
        _remove(built, marker)


def publish(path: epath.Path, marker: str, text: str) -> None:
    """Makes what was built at `staging(path)` stand at `path`, replacing a directory there.

    Args:
      path: final place.
      marker: name of the file that completes the directory.
      text: content of that file.
    """
    built = staging(path)
    _sync_tree(built)
    with write_whole(built / marker) as part:
        part.write_text(text)
    sync(built)
    sync(path.parent)
    _move(path, marker)


def abandon(path: epath.Path, marker: str) -> None:
    """Removes what was built at `staging(path)` unless it is whole, which `recover` sees to."""
    if not (staging(path) / marker).exists():
        _remove(staging(path), marker)


def _move(path: epath.Path, marker: str) -> None:
    _remove(path, marker)
    if is_local(path):
        staging(path).rename(path)
        sync(path.parent)
    else:
        _copy(staging(path), path, last=marker)
        _remove(staging(path), marker)


def _remove(folder: epath.Path, marker: str) -> None:
    """The marker goes first: what is left of an interrupted removal is not whole."""
    if folder.exists():
        (folder / marker).unlink(missing_ok=True)
        folder.rmtree()


def _copy(source: epath.Path, target: epath.Path, last: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for child in sorted(source.iterdir(), key=lambda child: child.name == last):
        if child.is_dir():
            _copy(child, target / child.name, last)
        else:
            child.copy(target / child.name, overwrite=True)


def _names(folder: epath.Path) -> set[str]:
    if folder.is_dir():
        return {child.name for child in folder.iterdir()}
    # A file is never a part of what was built.
    return {os.fspath(folder)} if folder.exists() else set()


def _sync_tree(folder: epath.Path) -> None:
    if is_local(folder):
        for parent, _, files in os.walk(folder):
            for name in files:
                sync(os.path.join(parent, name))
            sync(parent)
