"""Any dataset laid out as folders of images and PNG labels, or the same in a zip archive.

classes.json
images/SPLIT/**/NAME.{jpg,png,...}
annotations/SPLIT/**/NAME.png
"""

import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from segmenter_jax.data.builders.base import Listing, RawRecord, SegmentationBuilder
from segmenter_jax.data.builders.classes_file import CLASSES_FILE, read_classes
from segmenter_jax.data.builders.files import SourceFiles
from segmenter_jax.data.builders.label_forms import LabelForms
from segmenter_jax.data.encoded import IMAGE_SUFFIXES
from segmenter_jax.data.listing import Found, describe_left_out
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.traps import JPEG_LABEL, source_traps
from segmenter_jax.runtime.errors import first_few

LABEL_SUFFIX = ".png"
_SUFFIXES = first_few(IMAGE_SUFFIXES, 6)
_SPLIT_NAME = re.compile(r"[A-Za-z]\w*")

# An image and its label, if it has one.
Pair = tuple[str, str | None]


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
        self._pairs, self._problems = find_pairs(self._files)
        self.unlabelled = tuple(
            split for split, pairs in self._pairs.items() if not any(label for _, label in pairs)
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
            split: [functools.partial(self._read, split, *pair) for pair in pairs]
            for split, pairs in self._pairs.items()
        }
        return Listing(readers, self._problems, self._warnings_of_files())

    def _warnings_of_files(self) -> list[str]:
        warnings = [
            f"{split}: no labels; its images can be predicted, but neither trained on nor scored"
            for split in self.unlabelled
        ]
        if left_out := _left_out(self._files, "images/", "annotations/"):
            warnings.append(f"left out: {left_out}")
        return warnings

    def _read(self, split: str, image: str, label: str | None) -> RawRecord:
        pixels = self._files.read(image)
        self._note(image, pixels)
        name = _stem(image, f"images/{split}")
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


def find_pairs(files: SourceFiles) -> tuple[dict[str, list[Pair]], list[str]]:
    """Lists the image and label files of every split, paired by their relative stem.

    A split without any label beside one that has some is for prediction.

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
    pairs = {split: _pair_split(files, split, problems) for split in sorted(splits)}
    if pairs and not problems and not any(label for p in pairs.values() for _, label in p):
        problems.append(f"{files.root / 'annotations'}: no split has labels")
    return pairs, problems


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
    pairs, _ = find_pairs(files)
    current = {path for split in pairs.values() for pair in split for path in pair if path}
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


def _left_out(files: SourceFiles, *folders: str) -> str:
    """What does not count below some folders, and why, as text."""
    found = Found(dict.fromkeys(files.paths), set(), {k: [*v] for k, v in files.left_out.items()})
    found.keep(IMAGE_SUFFIXES)
    found.left_out["in no split"] = [path for path in found.files if path.count("/") == 1]
    return describe_left_out(
        {
            reason: [path for path in paths if path.startswith(folders)]
            for reason, paths in found.left_out.items()
        }
    )


def _pair_split(files: SourceFiles, split: str, problems: list[str]) -> list[Pair]:
    if not _SPLIT_NAME.fullmatch(split) or split == "all":
        problems.append(
            f"images/{split}: a split's name must be letters, digits and underscores, and not 'all'"
        )
        return []
    images = _files_by_stem(files, f"images/{split}", problems)
    labels = _files_by_stem(files, f"annotations/{split}", problems)
    if not images and not labels:
        there = _left_out(files, f"images/{split}/", f"annotations/{split}/")
        problems.append(
            f"images/{split}: the split is empty; expected {_SUFFIXES}"
            + (f"; left out: {there}" if there else "")
        )
    if images and not any(path.startswith(f"annotations/{split}/") for path in files.paths):
        return [(image, None) for _, image in sorted(images.items())]
    for stem in sorted(images.keys() - labels.keys()):
        problems.append(f"{images[stem]}: no label annotations/{split}/{stem}.png")
    for stem in sorted(labels.keys() - images.keys()):
        problems.append(f"{labels[stem]}: no image images/{split}/{stem} with one of {_SUFFIXES}")
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
