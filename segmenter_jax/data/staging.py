"""Where a dataset is built before it gets its place, and what an interrupted build left there."""

import contextlib
import fcntl
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_PREFIX, _LOCK, _ORIGIN, _FINISHED = ".build_", "lock", "origin.json", "finished"
_SHARD = re.compile(r"-(?P<split>\w+)\.array_record-\d+-of-(?P<count>\d+)")


@contextlib.contextmanager
def staging(root: Path, origin: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to build in, below `root`, so that a failure changes nothing.

    It is gone afterwards, with folders that had to be made for it; only an interruption leaves it,
    for `abandoned` to find.

    Args:
      root: where built datasets live.
      origin: what is built from what; JSON values.
    """
    created = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    with (folder / _LOCK).open("w") as lock:
        # Where nothing can be locked, nothing can be found abandoned either. The origin, which
        # makes a folder findable, comes after the lock.
        _lock(lock)
        (folder / _ORIGIN).write_text(json.dumps(origin), encoding="utf-8")
        try:
            yield folder
        except Exception:
            _remove(folder, created)
            raise
        _remove(folder, created)


@contextlib.contextmanager
def abandoned(root: Path, origin: Mapping[str, Any]) -> Iterator[list[Path]]:
    """Folders that interrupted builds of a dataset left.

    They are held while the block runs and gone afterwards, unless that is interrupted, too.

    Args:
      root: where built datasets live.
      origin: as given to `staging`; what was built under the same "name" from something else is
        removed, but not given.
    """
    found: list[Path] = []
    held: list[Path] = []
    with contextlib.ExitStack() as locks:
        for folder in sorted(root.glob(f"{_PREFIX}*")):
            theirs = _origin(folder)
            if theirs is None or theirs.get("name") != origin["name"]:
                continue
            try:
                file = locks.enter_context((folder / _LOCK).open("r+"))
            except FileNotFoundError:
                # Its own build has just ended.
                continue
            if _lock(file):
                held.append(folder)
                if theirs == origin:
                    found.append(folder)
        try:
            yield found
        except Exception:
            _remove_all(held)
            raise
        _remove_all(held)


def keep_finished(folder: Path, name: str) -> None:
    """Keeps the record files of splits that are finished: TFDS deletes its own when interrupted.

    Args:
      folder: as `staging` gives it; a dataset is being built in it.
      name: of the dataset.
    """
    kept = folder / _FINISHED
    kept.mkdir(exist_ok=True)
    for path in folder.glob(f"{name}/incomplete.*/{name}-*"):
        # Where files cannot have two names, an interrupted build starts again.
        with contextlib.suppress(OSError):
            (kept / path.name).hardlink_to(path)


def finished_splits(folder: Path, name: str) -> dict[str, list[str]]:
    """What `keep_finished` kept, by split, where all files of a split are there.

    Args:
      folder: as `abandoned` gives it.
      name: of the dataset.
    """
    found: dict[str, list[str]] = {}
    complete: dict[str, list[str]] = {}
    for path in sorted((folder / _FINISHED).glob(f"{name}-*")):
        if match := _SHARD.fullmatch(path.name.removeprefix(name)):
            files = found.setdefault(match["split"], [])
            files.append(str(path))
            if len(files) == int(match["count"]):
                complete[match["split"]] = files
    return complete


def _origin(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / _ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lock(file: IO) -> bool:
    """Holds a file as long as it is open, also against the end of this process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(folder: Path, created: list[Path]) -> None:
    shutil.rmtree(folder)
    for path in created:
        if any(path.iterdir()):
            break
        path.rmdir()


def _remove_all(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
