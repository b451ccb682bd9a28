"""Built datasets on disk: build one, open one, read its records.

A dataset lives in `DATA_DIR/NAME/VERSION` as TFDS lays it out and explains itself: its classes,
colours and origin are in its `metadata.json`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmenter_jax.data.specs import BENCHMARKS, DatasetSpec
from segmenter_jax.data.staging import build_folder, move_to_place
from segmenter_jax.data.traps import SCENE_PARSE150
from segmenter_jax.runtime.errors import DataError, first_few
from segmenter_jax.runtime.ownership import sole_owner

# Default folder of built datasets, that of TFDS itself.
DATA_DIR = "~/tensorflow_datasets"
GENERATED = ("shapes",)
VERSION = "1.0.0"
_METADATA_FILE = "metadata.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")

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

    def __reduce__(self) -> tuple[type["RecordSource"], tuple[Path, str, int]]:
        return RecordSource, (self._directory, self._split, self._length)

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
        """Returns `image`, `name`, and, if the split has labels, `label` and `label_ids`.

        Image and label are encoded bytes; for `label_ids` see `images.unpack_ids`.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of split {self._split!r} with {self._length} records")
        record = self._records[index]
        example = {"image": record["image"], "name": record["name"].decode("utf-8")}
        if record["label"]:
            # Datasets built by an earlier version have no packed labels.
            example |= {name: record[name] for name in ("label", "label_ids") if name in record}
        return example

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
      unlabelled: splits without labels.
      warnings: what was legal and probably not meant when it was built.
    """

    name: str
    spec: DatasetSpec
    directory: Path
    splits: Mapping[str, int]
    unlabelled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of what says what it was built from, in hexadecimal."""
        return hashlib.sha256((self.directory / _METADATA_FILE).read_bytes()).hexdigest()

    def source(self, split: str, *, needs_labels: bool = True) -> RecordSource:
        """Random access to a split.

        Args:
          split: name of the split.
          needs_labels: refuse a split that has none.

        Returns:
          Its records, in the order of the source.

        Raises:
          ValueError: there is no such split, or it has no labels.
        """
        if split not in self.splits:
            raise ValueError(
                f"dataset {self.name!r} has no split {split!r}; available: {sorted(self.splits)}"
            )
        if needs_labels and split in self.unlabelled:
            raise ValueError(
                f"split {split!r} of dataset {self.name!r} has no labels: it can be predicted, but "
                "neither trained on nor scored"
            )
        return RecordSource(self.directory, split, self.splits[split])


def open_dataset(name: str, data_dir: PathLike, source: PathLike | None = None) -> Dataset:
    """Opens a dataset that was built before.

    Args:
      name: name of the dataset.
      data_dir: where built datasets live.
      source: the folder or archive it was built from; if given, the built dataset must match its
        content.

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
        unlabelled=tuple(split for split in metadata.get("unlabelled", ()) if split in splits),
        warnings=tuple(metadata.get("warnings", ())),
    )


def build_dataset(
    name: str,
    data_dir: PathLike,
    source: PathLike | None = None,
    *,
    overwrite: bool = False,
    allow_partial: bool = False,
    wait: bool = True,
) -> Dataset:
    """Builds a dataset if it is missing, and opens it.

    Args:
      name: a benchmark or a generated dataset, or any other name for a folder of one's own.
      data_dir: where built datasets live.
      source: a folder or zip archive: the official files of a benchmark; otherwise
        `classes.json` and what it describes.
      overwrite: build again what is there already.
      allow_partial: accept a benchmark whose numbers of records are not the published ones.
      wait: for the end of another process that builds it, instead of an error.

    Returns:
      The dataset.

    Raises:
      ValueError: the name is not known and there is no source, or another process builds it.
      DataError: the source is not what it has to be, in structure or in any record, or has changed
        since the dataset was built. Nothing is left behind.
    """
    directory = _directory(name, data_dir)
    if directory.is_dir() and not overwrite:
        return open_dataset(name, data_dir, source)
    if name not in GENERATED and source is None:
        raise ValueError(_missing_message(name, data_dir, source))
    with sole_owner(directory.parent, wait=wait):
        # Another process may have built it meanwhile.
        if overwrite or not directory.is_dir():
            with build_folder(directory) as folder:
                _build(name, folder, directory, source, allow_partial)
    return open_dataset(name, data_dir, source)


def _build(
    name: str, folder: Path, directory: Path, source: PathLike | None, allow_partial: bool
) -> None:
    builder = make_builder(name, folder, source, allow_partial=allow_partial)
    if not sys.stderr.isatty():
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
    # TFDS announces a download of unknown size; its bars go to stderr.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=folder / "downloads", file_format="array_record")
    move_to_place(folder / name / VERSION, directory)


def built_datasets(data_dir: PathLike) -> list[str]:
    """Names of the datasets built in `data_dir`, sorted."""
    root = Path(data_dir).expanduser()
    return sorted(path.parts[-3] for path in root.glob(f"*/{VERSION}/{_METADATA_FILE}"))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"dataset name {name!r} must be letters, digits, '_', '-' and '.', "
            "starting with a letter or digit"
        )


def _directory(name: str, data_dir: PathLike) -> Path:
    _check_name(name)
    return Path(data_dir).expanduser().resolve() / name / VERSION


def _missing_message(name: str, data_dir: PathLike, source: PathLike | None) -> str:
    if name == "scene_parse150":
        return SCENE_PARSE150
    if name in BENCHMARKS and source is None:
        command = _build_command(name, "...")
        return f"dataset {name!r} is not built in {data_dir}; build it with `{command}`"
    if name in GENERATED or source is not None:
        return f"dataset {name!r} is not built in {data_dir}; build it first"
    return (
        f"unknown dataset {name!r}; benchmarks: {sorted(BENCHMARKS)}, generated: "
        f"{list(GENERATED)}, built in {data_dir}: {built_datasets(data_dir)}, or give the source "
        "folder of your own"
    )


def _build_command(name: str, source: PathLike) -> str:
    known = name.replace("_59", " --without_background")
    kind = known if name in BENCHMARKS else f"folder --name={name}"
    return f"python -m segmenter_jax.prepare_data {kind} --source={source}"


def _no_source_message(name: str, source: PathLike) -> str:
    return f"dataset {name!r} is generated and takes no source, got {str(source)!r}"


def make_builder(
    name: str, data_dir: Path, source: PathLike | None, *, allow_partial: bool = False
) -> Any:
    """The TFDS builder of a dataset.

    Args:
      name, source, allow_partial: see `build_dataset`.
      data_dir: where it would write.

    Raises:
      ValueError: a dataset cannot have this name, or is generated and has no source.
      DataError: there is no such source, or it does not say what its classes are.
    """
    from segmenter_jax.data import builders

    _check_name(name)
    if name in GENERATED:
        if source is not None:
            raise ValueError(_no_source_message(name, source))
        return builders.Shapes(data_dir=data_dir)
    if name in BENCHMARKS:
        return builders.BENCHMARK_BUILDERS[name](
            source=Path(source), data_dir=data_dir, allow_partial=allow_partial
        )
    return builders.Folder(name=name, source=Path(source), data_dir=data_dir)


def _check_source(
    name: str, directory: Path, metadata: Mapping[str, Any], source: PathLike
) -> None:
    if "files" not in metadata and "digest" not in metadata:
        raise ValueError(_no_source_message(name, source))
    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise DataError(f"{path}: no such folder (source of dataset {name!r})")
    changes = _changes(name, metadata, path)
    if changes:
        raise DataError(
            f"dataset {name!r} in {directory} was built from {metadata['source']}, but {path} "
            f"differs: {first_few(changes, 5, '; ')}. Build it again with "
            f"`{_build_command(name, source)} --overwrite`, or under another name"
        )


def _changes(name: str, metadata: Mapping[str, Any], source: Path) -> list[str]:
    """One line per difference between a source and what a dataset was built from."""
    if "files" in metadata:
        from segmenter_jax.data.builders import folder

        return folder.changed_files(source, metadata["files"])
    digest = make_builder(name, source, source).digest()
    return [] if digest == metadata["digest"] else ["files were added, removed or changed in size"]
