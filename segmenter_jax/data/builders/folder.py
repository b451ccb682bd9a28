"""Any dataset of images and label files, in folders or the same in a zip archive.

`classes.json` says what the labels mean and where the files lie; unless it says otherwise:

images/SPLIT/**/NAME.{jpg,png,...}
annotations/SPLIT/**/NAME.{png,tif,...}
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmenter_jax.data.builders.base import Listing, RawRecord, SegmentationBuilder
from segmenter_jax.data.builders.classes_file import CLASSES_FILE, read_classes
from segmenter_jax.data.builders.files import SourceFiles
from segmenter_jax.data.builders.label_forms import LabelForms
from segmenter_jax.data.builders.layout import Layout
from segmenter_jax.data.builders.pairs import Pair, find_pairs
from segmenter_jax.data.specs import DatasetSpec


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
        self._files = open_folder(source)
        self._labels = read_classes(self._files, name)
        self._forms = LabelForms(self._labels)
        self._found = find_pairs(self._files, self._labels.layout)
        self.unlabelled = tuple(
            split
            for split, pairs in self._found.pairs.items()
            if not any(pair.label for pair in pairs)
        )
        self._manifest: dict[str, list[Any]] = {}
        super().__init__(data_dir=data_dir)

    @property
    def spec(self) -> DatasetSpec:
        """Classes and label values of the dataset."""
        return self._labels.spec

    def provenance(self) -> dict[str, Any]:
        """The folder and, filled while building, its files."""
        self._note(CLASSES_FILE, self._files.read(CLASSES_FILE))
        return {"source": str(self._files.root), "files": self._manifest}

    def scan(self) -> Listing:
        """One reader per pair of files."""
        readers = {
            split: [functools.partial(self._read, pair) for pair in pairs]
            for split, pairs in self._found.pairs.items()
        }
        return Listing(readers, self._found.problems, self._warnings_of_files())

    def _warnings_of_files(self) -> list[str]:
        warnings = [
            f"{split}: no labels; its images can be predicted, but neither trained on nor scored"
            for split in self.unlabelled
        ]
        if [*self._found.pairs] == ["train"]:
            warnings.append(
                'no split but train, so nothing to validate on; "val_share": 0.1 in classes.json '
                "takes a tenth of it"
            )
        if self._found.left_out:
            warnings.append(f"left out: {self._found.left_out}")
        return warnings

    def _read(self, pair: Pair) -> RawRecord:
        name, image, label = pair
        pixels = self._files.read(image)
        self._note(image, pixels)
        if label is None:
            return RawRecord(name, pixels, None, image, None)
        content = self._files.read(label)
        self._note(label, content)
        content, remarks = self._forms.to_png(content, label, pixels)
        is_known = self._labels.orientation is not None
        return RawRecord(name, pixels, content, image, label, remarks, is_known)

    def _note(self, path: str, content: bytes) -> None:
        self._manifest[path] = [len(content), self._files.modified(path), _digest(content)]


def open_folder(source: Path) -> SourceFiles:
    """The files of a folder dataset, whose `classes.json` may lie below one top folder."""
    files = SourceFiles(source)
    files.enter_folder_of(CLASSES_FILE)
    return files


def changed_files(source: Path, manifest: Mapping[str, list[Any]]) -> list[str]:
    """Compares a folder with what a dataset was built from.

    Args:
      source: the dataset's folder or archive.
      manifest: size, modification time and sha256 by relative path, from the built dataset.

    Returns:
      One line per file that was added, removed or changed. A file is read only if its
      modification time differs.
    """
    files = open_folder(source)
    is_described = CLASSES_FILE in files
    layout = read_classes(files, source.name).layout if is_described else Layout()
    pairs = find_pairs(files, layout).pairs.values()
    current = {path for split in pairs for _, *paths in split for path in paths if path}
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
