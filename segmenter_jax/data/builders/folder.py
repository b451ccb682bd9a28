"""Any dataset laid out as folders of images and PNG labels.

classes.json
images/SPLIT/**/NAME.{jpg,jpeg,png,bmp,webp,tif,tiff}
annotations/SPLIT/**/NAME.png
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmenter_jax.data.builders.base import (
    RawRecord,
    RecordReader,
    SegmentationBuilder,
    raise_problems,
)
from segmenter_jax.data.specs import DataError, DatasetSpec

CLASSES_FILE = "classes.json"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png",)
_SPLIT_NAME = re.compile(r"[A-Za-z]\w*")


class Folder(SegmentationBuilder, skip_registration=True):
    """A dataset from a folder.

    Args:
      name: name of the dataset.
      source: the folder.
      data_dir: where built datasets live.
    """

    name = "folder"

    def __init__(self, *, name: str, source: Path, data_dir: Path):
        self.name = name
        self._source = Path(source).expanduser().resolve()
        self._spec = read_classes(self._source, name)
        self._manifest: dict[str, list[Any]] = {}
        super().__init__(data_dir=str(data_dir))

    @property
    def spec(self) -> DatasetSpec:
        """Classes and label values of the dataset."""
        return self._spec

    def provenance(self) -> dict[str, Any]:
        """The folder and, filled while building, its files."""
        classes = self._source / CLASSES_FILE
        self._manifest[CLASSES_FILE] = _fingerprint(classes, classes.read_bytes())
        return {"source": str(self._source), "files": self._manifest}

    def record_readers(self) -> dict[str, list[RecordReader]]:
        """For every split, one reader per pair of files."""
        return {
            split: [functools.partial(self._read, split, *pair) for pair in pairs]
            for split, pairs in find_pairs(self._source).items()
        }

    def _read(self, split: str, image_path: Path, label_path: Path) -> RawRecord:
        contents, names = [], []
        for path in (image_path, label_path):
            contents.append(path.read_bytes())
            names.append(path.relative_to(self._source).as_posix())
            self._manifest[names[-1]] = _fingerprint(path, contents[-1])
        stem = label_path.relative_to(self._source / "annotations" / split).with_suffix("")
        return RawRecord(stem.as_posix(), *contents, *names)


def read_classes(source: Path, name: str) -> DatasetSpec:
    """Reads `classes.json` of a folder dataset.

    Args:
      source: the dataset's folder.
      name: name of the dataset.

    Returns:
      The spec: trained ids follow the order of `classes`; `ignore_ids` (default [255]) are ignored.

    Raises:
      DataError: the file is missing or does not say what it must.
    """
    path = source / CLASSES_FILE
    if not source.is_dir():
        raise DataError(f"{source}: no such folder")
    if not path.is_file():
        raise DataError(f"{path}: missing; it lists the classes of the dataset")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        classes = fields["classes"]
        ids = [_integer(entry["id"]) for entry in classes]
        names = tuple(str(entry["name"]) for entry in classes)
        colors = tuple(tuple(_integer(value) for value in entry["color"]) for entry in classes)
        ignored = [_integer(value) for value in fields.get("ignore_ids", [255])]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}: expected {{"classes": [{{"id": 0, "name": "sky", "color": [128, 128, 128]}}, '
            f'...], "ignore_ids": [255]}}; could not read it ({error!r})'
        ) from error
    try:
        pairs = [*zip(ids, range(len(ids)), strict=True), *((value, 255) for value in ignored)]
        return DatasetSpec(name, names, colors, label_map=tuple(pairs))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def find_pairs(source: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Lists the image and label files of every split, paired by their relative stem.

    Args:
      source: the dataset's folder.

    Returns:
      For every split, pairs (image, label) sorted by stem.

    Raises:
      DataError: a folder is missing, a split is empty, or files are unpaired; all are listed.
    """
    splits: set[str] = set()
    for kind in ("images", "annotations"):
        if not (source / kind).is_dir():
            raise DataError(f"{source / kind}: missing folder; expected {kind}/SPLIT/...")
        splits |= {
            p.name for p in (source / kind).iterdir() if p.is_dir() and not p.name.startswith(".")
        }
    if not splits:
        raise DataError(f"{source / 'images'}: no split; expected subfolders such as train and val")
    problems: list[str] = []
    pairs = {split: _pair_split(source, split, problems) for split in sorted(splits)}
    raise_problems(problems)
    return pairs


def changed_files(source: Path, manifest: Mapping[str, list[Any]]) -> list[str]:
    """Compares a folder with what a dataset was built from.

    Args:
      source: the dataset's folder.
      manifest: size, modification time and sha256 by relative path, from the built dataset.

    Returns:
      One line per file that was added, removed or changed. A file is read only if its
      modification time differs.
    """
    current = {CLASSES_FILE: source / CLASSES_FILE}
    for pairs in find_pairs(source).values():
        for path in (path for pair in pairs for path in pair):
            current[path.relative_to(source).as_posix()] = path
    lines = [f"{name} was added" for name in sorted(current.keys() - manifest.keys())]
    lines += [f"{name} was removed" for name in sorted(manifest.keys() - current.keys())]
    for name in sorted(current.keys() & manifest.keys()):
        size, modified, digest = manifest[name]
        status = current[name].stat()
        if (status.st_size, status.st_mtime_ns) == (size, modified):
            continue
        if status.st_size != size or _digest(current[name].read_bytes()) != digest:
            lines.append(f"{name} was changed")
    return lines


def _pair_split(source: Path, split: str, problems: list[str]) -> list[tuple[Path, Path]]:
    if not _SPLIT_NAME.fullmatch(split) or split == "all":
        problems.append(
            f"images/{split}: a split's name must be letters, digits and underscores, and not 'all'"
        )
        return []
    images = _files_by_stem(source, "images", split, IMAGE_SUFFIXES, problems)
    labels = _files_by_stem(source, "annotations", split, LABEL_SUFFIXES, problems)
    if not images and not labels:
        problems.append(f"images/{split}: the split is empty; expected {_listed(IMAGE_SUFFIXES)}")
    for stem in sorted(images.keys() - labels.keys()):
        image = images[stem].relative_to(source).as_posix()
        problems.append(f"{image}: no label annotations/{split}/{stem}.png")
    for stem in sorted(labels.keys() - images.keys()):
        label = labels[stem].relative_to(source).as_posix()
        problems.append(
            f"{label}: no image images/{split}/{stem} with one of {_listed(IMAGE_SUFFIXES)}"
        )
    return [(images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())]


def _files_by_stem(
    source: Path, kind: str, split: str, suffixes: tuple[str, ...], problems: list[str]
) -> dict[str, Path]:
    root = source / kind / split
    files: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem in files:
            problems.append(
                f"{path.relative_to(source).as_posix()}: {files[stem].name} has the same stem"
            )
        files[stem] = path
    return files


def _listed(suffixes: tuple[str, ...]) -> str:
    return ", ".join(suffixes)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _fingerprint(path: Path, content: bytes) -> list[Any]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, _digest(content)]
