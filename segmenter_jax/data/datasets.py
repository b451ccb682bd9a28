"""Built datasets on disk: build one, open one, read its records.

A dataset lives in `DATA_DIR/NAME/VERSION` as TFDS lays it out and explains itself: its classes,
colours and origin are in its `metadata.json`.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmenter_jax.data.specs import DataError, DatasetSpec

GENERATED = ("shapes",)
VERSION = "1.0.0"
_METADATA_FILE = "metadata.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_MAX_LISTED = 5

PathLike = str | os.PathLike[str]


class RecordSource:
    """Random access to the records of one split.

    Opens its files when first read and travels to worker processes as a path.

    Args:
      directory: folder of the built dataset.
      split: name of the split.
      length: number of records.
    """

    def __init__(self, directory: Path, split: str, length: int):
        self._directory = directory
        self._split = split
        self._length = length

    def __getstate__(self) -> tuple[Path, str, int]:
        return self._directory, self._split, self._length

    def __setstate__(self, state: tuple[Path, str, int]) -> None:
        self.__init__(*state)

    @functools.cached_property
    def _records(self) -> Any:
        # Worker processes import this module; only those that read pay for TFDS.
        import tensorflow_datasets as tfds

        skip = tfds.decode.SkipDecoding()
        builder = tfds.builder_from_directory(str(self._directory))
        return builder.as_data_source(self._split, decoders={"image": skip, "label": skip})

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` and `label` as the original encoded bytes, and `name`."""
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of split {self._split!r} with {self._length} records")
        record = self._records[index]
        return {
            "image": record["image"],
            "label": record["label"],
            "name": record["name"].decode("utf-8"),
        }

    def __repr__(self) -> str:
        return f"RecordSource({str(self._directory)!r}, {self._split!r}, {self._length})"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A built dataset.

    Attributes:
      name: its name.
      spec: its classes, colours and label values.
      directory: where it lives.
      splits: number of records by split.
    """

    name: str
    spec: DatasetSpec
    directory: Path
    splits: Mapping[str, int]

    def source(self, split: str) -> RecordSource:
        """Random access to a split.

        Args:
          split: name of the split.

        Returns:
          A source of records with `image` and `label` (encoded bytes) and `name`.

        Raises:
          ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(
                f"dataset {self.name!r} has no split {split!r}; available: {sorted(self.splits)}"
            )
        return RecordSource(self.directory, split, self.splits[split])


def open_dataset(name: str, data_dir: PathLike, source: PathLike | None = None) -> Dataset:
    """Opens a dataset that was built before.

    Args:
      name: name of the dataset.
      data_dir: where built datasets live.
      source: the folder it was built from; if given, the built dataset must match its content.

    Returns:
      The dataset.

    Raises:
      ValueError: the dataset is not known or not built; the message lists those that are.
      DataError: the source changed since the dataset was built.
    """
    directory = _directory(name, data_dir)
    if not directory.is_dir():
        raise ValueError(_missing_message(name, data_dir, source))
    metadata = json.loads((directory / _METADATA_FILE).read_text(encoding="utf-8"))
    if source is not None:
        _check_source(name, directory, metadata, source)
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(str(directory)).info.splits
    return Dataset(
        name=name,
        spec=DatasetSpec.from_dict(metadata["spec"]),
        directory=directory,
        splits={split: info.num_examples for split, info in splits.items()},
    )


def build_dataset(
    name: str, data_dir: PathLike, source: PathLike | None = None, *, overwrite: bool = False
) -> Dataset:
    """Builds a dataset if it is missing, and opens it.

    Args:
      name: a generated dataset, or any name for the folder given as `source`.
      data_dir: where built datasets live.
      source: a folder with `images/SPLIT`, `annotations/SPLIT` and `classes.json`.
      overwrite: build again what is there already.

    Returns:
      The dataset.

    Raises:
      ValueError: the name is not known and there is no source.
      DataError: the source is not what it has to be, in structure or in any record, or has changed
        since the dataset was built. Nothing is left behind.
    """
    directory = _directory(name, data_dir)
    if directory.is_dir() and not overwrite:
        return open_dataset(name, data_dir, source)
    if name in GENERATED and source is not None:
        raise ValueError(_no_source_message(name, source))
    if name not in GENERATED and source is None:
        raise ValueError(_missing_message(name, data_dir, source))
    _build(name, directory, source, overwrite)
    return open_dataset(name, data_dir, source)


def built_datasets(data_dir: PathLike) -> list[str]:
    """Names of the datasets built in `data_dir`, sorted."""
    root = Path(data_dir).expanduser()
    return sorted(path.parts[-3] for path in root.glob(f"*/{VERSION}/{_METADATA_FILE}"))


def _directory(name: str, data_dir: PathLike) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"dataset name {name!r} must be letters, digits, '_', '-' and '.', "
            "starting with a letter or digit"
        )
    return Path(data_dir).expanduser().resolve() / name / VERSION


def _missing_message(name: str, data_dir: PathLike, source: PathLike | None) -> str:
    if name in GENERATED or source is not None:
        return f"dataset {name!r} is not built in {data_dir}; build it first"
    return (
        f"unknown dataset {name!r}; generated: {list(GENERATED)}, built in {data_dir}: "
        f"{built_datasets(data_dir)}, or give the source folder of your own"
    )


def _no_source_message(name: str, source: PathLike) -> str:
    return f"dataset {name!r} is generated and takes no source, got {str(source)!r}"


def _build(name: str, directory: Path, source: PathLike | None, overwrite: bool) -> None:
    """Builds aside and moves the result into place, so that a failure changes nothing."""
    root = directory.parent.parent
    created = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".build_", dir=root))
    try:
        builder = _builder(name, staging, source)
        # TFDS announces a download of unknown size into the staging folder; its bars go to stderr.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_dir=staging / "downloads", file_format="array_record"
            )
        directory.parent.mkdir(exist_ok=True)
        if overwrite and directory.is_dir():
            directory.rename(staging / "former")
        # Another process may have finished the same build first.
        if not directory.is_dir():
            (staging / name / VERSION).rename(directory)
    finally:
        shutil.rmtree(staging)
        for path in created:
            if any(path.iterdir()):
                break
            path.rmdir()


def _builder(name: str, data_dir: Path, source: PathLike | None) -> Any:
    from segmenter_jax.data import builders

    if name in GENERATED:
        return builders.Shapes(data_dir=str(data_dir))
    return builders.Folder(name=name, source=Path(source), data_dir=data_dir)


def _check_source(
    name: str, directory: Path, metadata: Mapping[str, Any], source: PathLike
) -> None:
    if "files" not in metadata:
        raise ValueError(_no_source_message(name, source))
    from segmenter_jax.data.builders import folder

    path = Path(source).expanduser().resolve()
    if not path.is_dir():
        raise DataError(f"{path}: no such folder (source of dataset {name!r})")
    changes = folder.changed_files(path, metadata["files"])
    if changes:
        shown = "; ".join(changes[:_MAX_LISTED])
        more = f"; and {len(changes) - _MAX_LISTED} more" if len(changes) > _MAX_LISTED else ""
        raise DataError(
            f"dataset {name!r} in {directory} was built from {metadata['source']}, but {path} "
            f"differs: {shown}{more}. Build it again with overwrite, or under another name"
        )
