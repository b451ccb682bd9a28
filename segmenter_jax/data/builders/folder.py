"""Any dataset laid out as folders of images and PNG labels, or the same in a zip archive.

classes.json
images/SPLIT/**/NAME.{jpg,jpeg,png,bmp,webp,tif,tiff}
annotations/SPLIT/**/NAME.png
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from segmenter_jax.data.builders.base import Listing, RawRecord, SegmentationBuilder
from segmenter_jax.data.builders.files import SourceFiles
from segmenter_jax.data.encoded import IMAGE_SUFFIXES
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.traps import JPEG_LABEL, source_traps
from segmenter_jax.runtime.errors import DataError

CLASSES_FILE = "classes.json"
LABEL_SUFFIX = ".png"
_SPLIT_NAME = re.compile(r"[A-Za-z]\w*")


class Folder(SegmentationBuilder, skip_registration=True):
    """A dataset from a folder.

    Args:
      name: name of the dataset.
      source: the folder, or a zip archive of its content.
      data_dir: where built datasets live.
    """

    name = "folder"

    def __init__(self, *, name: str, source: Path, data_dir: Path):
        self.name = name
        self._files = SourceFiles(source)
        self._spec = read_classes(self._files, name)
        self._manifest: dict[str, list[Any]] = {}
        super().__init__(data_dir=str(data_dir))

    @property
    def spec(self) -> DatasetSpec:
        """Classes and label values of the dataset."""
        return self._spec

    def provenance(self) -> dict[str, Any]:
        """The folder and, filled while building, its files."""
        self._note(CLASSES_FILE, self._files.read(CLASSES_FILE))
        return {"source": str(self._files.root), "files": self._manifest}

    def scan(self) -> Listing:
        """One reader per pair of files."""
        pairs, problems = find_pairs(self._files)
        return Listing(
            {
                split: [functools.partial(self._read, split, *pair) for pair in split_pairs]
                for split, split_pairs in pairs.items()
            },
            problems,
        )

    def _read(self, split: str, image: str, label: str) -> RawRecord:
        contents = []
        for path in (image, label):
            contents.append(self._files.read(path))
            self._note(path, contents[-1])
        return RawRecord(_stem(label, f"annotations/{split}"), *contents, image, label)

    def _note(self, path: str, content: bytes) -> None:
        self._manifest[path] = [len(content), self._files.modified(path), _digest(content)]


def read_classes(files: SourceFiles, name: str) -> DatasetSpec:
    """Reads `classes.json` of a folder dataset.

    Args:
      files: the dataset's source.
      name: name of the dataset.

    Returns:
      The spec: trained ids follow the order of `classes`; `ignore_ids` (default [255]) are ignored.

    Raises:
      DataError: the file is missing or does not say what it must.
    """
    path = files.root / CLASSES_FILE
    if CLASSES_FILE not in files:
        traps = source_traps(files.paths)
        hint = f"; {traps[0]}" if traps else ""
        raise DataError(f"{path}: missing; it lists the classes of the dataset{hint}")
    try:
        fields = json.loads(files.read(CLASSES_FILE).decode("utf-8"))
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


def find_pairs(files: SourceFiles) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """Lists the image and label files of every split, paired by their relative stem.

    Args:
      files: the dataset's source.

    Returns:
      For every split, pairs (image, label) sorted by stem; and one message for every folder that is
      missing, split that is empty and file that is unpaired.
    """
    problems: list[str] = []
    splits: set[str] = set()
    for kind in ("images", "annotations"):
        if kind not in files.folders:
            problems.append(f"{files.root / kind}: missing folder; expected {kind}/SPLIT/...")
        splits |= {
            PurePosixPath(path).name
            for path in files.folders
            if str(PurePosixPath(path).parent) == kind
        }
    if problems:
        return {}, problems
    if not splits:
        problems.append(
            f"{files.root / 'images'}: no split; expected subfolders such as train and val"
        )
    problems += source_traps(files.paths)
    return {split: _pair_split(files, split, problems) for split in sorted(splits)}, problems


def changed_files(source: Path, manifest: Mapping[str, list[Any]]) -> list[str]:
    """Compares a folder with what a dataset was built from.

    Args:
      source: the dataset's folder or archive.
      manifest: size, modification time and sha256 by relative path, from the built dataset.

    Returns:
      One line per file that was added, removed or changed. A file is read only if its
      modification time differs.
    """
    files = SourceFiles(source)
    pairs, _ = find_pairs(files)
    current = {path for split in pairs.values() for pair in split for path in pair}
    if CLASSES_FILE in manifest:
        current.add(CLASSES_FILE)
    lines = [f"{name} was added" for name in sorted(current - manifest.keys())]
    lines += [f"{name} was removed" for name in sorted(manifest.keys() - current)]
    for name in sorted(current & manifest.keys()):
        size, modified, digest = manifest[name]
        found = files.size(name) if name in files else -1
        if (found, files.modified(name) if found >= 0 else -1) == (size, modified):
            continue
        if found != size or _digest(files.read(name)) != digest:
            lines.append(f"{name} was changed")
    return lines


def _pair_split(files: SourceFiles, split: str, problems: list[str]) -> list[tuple[str, str]]:
    if not _SPLIT_NAME.fullmatch(split) or split == "all":
        problems.append(
            f"images/{split}: a split's name must be letters, digits and underscores, and not 'all'"
        )
        return []
    suffixes = ", ".join(IMAGE_SUFFIXES)
    images = _files_by_stem(files, f"images/{split}", problems)
    labels = _files_by_stem(files, f"annotations/{split}", problems)
    if not images and not labels:
        problems.append(f"images/{split}: the split is empty; expected {suffixes}")
    for stem in sorted(images.keys() - labels.keys()):
        problems.append(f"{images[stem]}: no label annotations/{split}/{stem}.png")
    for stem in sorted(labels.keys() - images.keys()):
        problems.append(f"{labels[stem]}: no image images/{split}/{stem} with one of {suffixes}")
    for _, label in sorted(labels.items()):
        if not label.lower().endswith(LABEL_SUFFIX):
            problems.append(f"{label}: labels must be PNG files{JPEG_LABEL}")
    return [
        (images[stem], labels[stem])
        for stem in sorted(images.keys() & labels.keys())
        if labels[stem].lower().endswith(LABEL_SUFFIX)
    ]


def _files_by_stem(files: SourceFiles, root: str, problems: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in files.paths:
        if not path.startswith(f"{root}/") or not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        stem = _stem(path, root)
        if stem in found:
            problems.append(f"{path}: {PurePosixPath(found[stem]).name} has the same stem")
        found[stem] = path
    return found


def _stem(path: str, root: str) -> str:
    """Path relative to a folder, without its suffix."""
    return str(PurePosixPath(path).relative_to(root).with_suffix(""))


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
