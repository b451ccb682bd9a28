"""Where a dataset is built, and how it gets to its place when it is whole."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def build_folder(directory: Path) -> Iterator[Path]:
    """A folder to build a dataset in; gone after the block.

    Only a process that is killed leaves it, and the next build of the dataset removes it.

    Args:
      directory: place of the finished dataset, `DATA_DIR/NAME/VERSION`. The caller owns
        `DATA_DIR/NAME`, see `runtime.ownership`.

    Yields:
      `DATA_DIR/.build_NAME`.
    """
    folder = directory.parents[1] / f".build_{directory.parent.name}"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def move_to_place(built: Path, directory: Path) -> None:
    """Moves a built dataset to its place, from where one that is there goes first.

    Args:
      built: in a folder of `build_folder`, on the same disk.
      directory: its place.
    """
    with contextlib.suppress(FileNotFoundError):
        directory.rename(built.with_name("former"))
    built.rename(directory)
