"""Where a dataset is built, and how it gets to its place when it is whole."""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def build_folder(directory: Path) -> Iterator[Path]:
    """A folder to build a dataset in; gone after the block, with folders that were made for it.

    Only a process that is killed leaves it, and the next build of the dataset removes it. Builds
    that run at the same time have a folder each.

    Args:
      directory: place of the finished dataset, `DATA_DIR/NAME/VERSION`.

    Yields:
      `DATA_DIR/.build_NAME_*`.
    """
    name, root = directory.parent.name, directory.parent.parent
    created = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    _clear(root, f".build_{name}_*")
    folder = Path(tempfile.mkdtemp(prefix=f".build_{name}_", dir=root))
    try:
        with (folder / "new_lock").open("w") as file:
            # Without locks nobody could tell whether the build still runs, so it stays hidden.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
                (folder / "new_lock").rename(folder / "lock")
            yield folder
    finally:
        shutil.rmtree(folder)
        # Ends at the first that holds something.
        with contextlib.suppress(OSError):
            for path in created:
                path.rmdir()


def move_to_place(built: Path, directory: Path, *, overwrite: bool) -> None:
    """Moves a built dataset to its place, unless another process has built it meanwhile.

    Args:
      built: in a folder of `build_folder`, on the same disk.
      directory: its place.
      overwrite: take the place of what is there.
    """
    directory.parent.mkdir(exist_ok=True)
    if overwrite:
        with contextlib.suppress(FileNotFoundError):
            directory.rename(built.with_name("former"))
    try:
        built.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise


def _clear(root: Path, pattern: str) -> None:
    """Removes what killed builds have left: their locks are free."""
    for lock in root.glob(f"{pattern}/lock"):
        with contextlib.suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent)
