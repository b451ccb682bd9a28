"""Pascal Context, as PNG files of the 60 ids or as the MATLAB files that were published.

The published files hold 459 ids, `labels.txt` their names, and `59_labels.txt` the names of those
that are classes; all else is background.
"""

import functools
import io
import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

import cv2
import numpy as np

from segmenter_jax.data import specs
from segmenter_jax.data.builders.base import RawRecord
from segmenter_jax.data.builders.benchmark import Benchmark, Paths
from segmenter_jax.runtime.errors import DataError, first_few

_NAMES, _CLASSES, _MAP = "labels.txt", "59_labels.txt", "LabelMap"

# Names of three classes in `59_labels.txt`, and of the same in `labels.txt`.
# Source: Long, Shelhamer, Darrell, fcn.berkeleyvision.org, `pascalcontext_layers.py`.
_OTHER_NAMES = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}

_VOC_COUNTS = {"train": 4998, "validation": 5105}

# Stands in a lookup table for ids that `labels.txt` does not name.
_UNKNOWN = 255


class PascalContext(Benchmark, skip_registration=True):
    """Pascal Context, 59 classes and background."""

    dataset_spec = specs.PASCAL_CONTEXT
    counts: ClassVar = {"train": 4996, "validation": 5104}
    layout = (
        "VOCdevkit/VOC2010 with JPEGImages/*.jpg, SegmentationClassContext/*.png and "
        "ImageSets/SegmentationContext/{train,val}.txt; or, for the two latter, the published "
        f"trainval/*.mat, {_NAMES} and {_CLASSES}, and ImageSets/Main/{{train,val}}.txt"
    )

    def published_counts(self) -> Mapping[str, int]:
        """Those of the lists that are read: those of VOC name three records more."""
        return _VOC_COUNTS if self._lists == "Main" else self.counts

    def find_files(self, problems: list[str]) -> tuple[Paths, Paths]:
        """The images and labels that the lists of the two splits name."""
        images: Paths = {}
        labels: Paths = {}
        if self._matlab and (wrong := self._wrong_names()):
            # Without them no label can be read.
            problems += wrong
            return images, labels
        for split, listed in (("train", "train"), ("validation", "val")):
            suffix = f"ImageSets/{self._lists}/{listed}.txt"
            lists = self._ending_with(suffix)
            if len(lists) != 1:
                problems.append(
                    f"{self._files.root}: {len(lists)} files {suffix}, but one is expected; "
                    f"the layout is {self.layout}"
                )
                continue
            root = lists[0].removesuffix(suffix)
            for name in self._files.read(lists[0]).decode("utf-8-sig").split():
                image = f"{root}JPEGImages/{name}.jpg"
                label = self._matlab.get(name, f"{root}SegmentationClassContext/{name}.png")
                for path, paths in ((image, images), (label, labels)):
                    if path in self._files:
                        paths.setdefault(split, {})[name] = path
                if image not in self._files and label not in self._files:
                    problems.append(f"{image}: missing, but named in {lists[0]}")
        return images, labels

    def companions(self, images: Paths) -> dict[str, Paths]:
        """The lists that say what the ids of MATLAB files mean."""
        del images
        lists = {name: path for name in (_NAMES, _CLASSES) for path in self._ending_with(name)}
        return {"names": {"all": lists}} if self._matlab else {}

    def read(self, name: str, image: str, label: str | None) -> RawRecord:
        """Reads one record; a MATLAB file becomes a PNG of the 60 ids."""
        record = super().read(name, image, label)
        if not label or not label.endswith(".mat"):
            return record
        ids = class_ids(read_label_map(record.label, label), self._lookup, label)
        return RawRecord(name, record.image, cv2.imencode(".png", ids)[1].tobytes(), image, label)

    @functools.cached_property
    def _matlab(self) -> dict[str, str]:
        """Published labels by the name of their record, where there are no PNG files."""
        paths = self._files.paths
        if any("/SegmentationClassContext/" in f"/{path}" for path in paths):
            return {}
        return {m[1]: p for p in paths if (m := re.search(r"(?:^|/)([^/]+)\.mat$", p))}

    @functools.cached_property
    def _lists(self) -> str:
        """Folder of the lists of splits: the dataset's own, or VOC's beside published labels."""
        own = any("/ImageSets/SegmentationContext/" in f"/{path}" for path in self._files.paths)
        return "SegmentationContext" if own or not self._matlab else "Main"

    @functools.cached_property
    def _lookup(self) -> np.ndarray:
        names, classes = (
            (path, read_names(self._files.read(path), path))
            for path in (self._ending_with(_NAMES)[0], self._ending_with(_CLASSES)[0])
        )
        return id_table(names[1], classes[1].values(), names[0], classes[0])

    def _wrong_names(self) -> list[str]:
        """What is wrong with the lists of names."""
        missing = [
            f"{self._files.root}: {len(found)} files {name}, but one is expected: it comes with "
            "the published trainval/*.mat"
            for name in (_NAMES, _CLASSES)
            if len(found := self._ending_with(name)) != 1
        ]
        if not missing:
            try:
                _ = self._lookup
            except DataError as error:
                return [str(error)]
        return missing

    def _ending_with(self, suffix: str) -> list[str]:
        return [path for path in self._files.paths if f"/{path}".endswith(f"/{suffix}")]


class PascalContext59(PascalContext, skip_registration=True):
    """Pascal Context without the background class."""

    dataset_spec = specs.PASCAL_CONTEXT_59


def read_names(data: bytes, name: str) -> dict[int, str]:
    """Names by id, from lines such as "397: table".

    Args:
      data: the file's content.
      name: the file's name, for errors.

    Raises:
      DataError: a line is none of these, or an id is there twice.
    """
    names: dict[int, str] = {}
    lines = data.decode("utf-8-sig", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"\s*(\d{1,5})\s*:\s*(\S.*?)\s*", line)
        if line.strip() and (match is None or int(match[1]) in names):
            raise DataError(
                f"{name}: line {number} is {line[:60]!r}, but an id of its own and a name are "
                "expected, such as '397: table'"
            )
        if match:
            names[int(match[1])] = match[2]
    return names


def id_table(
    names: Mapping[int, str], classes: Iterable[str], names_file: str, classes_file: str
) -> np.ndarray:
    """The id of each published id among the 60 of `specs.PASCAL_CONTEXT`; 0 is background.

    Args:
      names: names of the published ids, from 1.
      classes: names of the 59 classes, in any order.
      names_file, classes_file: the files that these come from, for errors.

    Returns:
      uint8 (largest id + 1,); 255 where there is no name. Id 0, which has none, is background.

    Raises:
      DataError: the classes are not the 59, or one of them is not among the names once.
    """
    expected = specs.PASCAL_CONTEXT.class_names[1:]
    found = [_OTHER_NAMES.get(name, name) for name in classes if name != "background"]
    if sorted(found) != sorted(expected):
        wrong = [f"no {name!r}" for name in expected if name not in found]
        wrong += [f"{name!r}" for name in found if name not in expected]
        raise DataError(
            f"{classes_file}: not the 59 classes of the dataset: {len(found)} names; "
            f"{first_few(wrong or ['some are there twice'], 5)}"
        )
    listed = list(names.values())
    if wrong := [name for name in expected if listed.count(name) != 1]:
        raise DataError(f"{names_file}: not there once: {first_few(wrong, 5)}")
    table = np.full(max(names) + 1, _UNKNOWN, np.uint8)
    table[0] = 0
    for number, name in names.items():
        table[number] = expected.index(name) + 1 if name in expected else 0
    return table


def read_label_map(data: bytes, name: str) -> np.ndarray:
    """The array `LabelMap` of a MATLAB file.

    Args:
      data: the file's content.
      name: the file's name, for errors.

    Returns:
      Whole numbers (H, W).

    Raises:
      DataError: the file is damaged or holds no such array.
    """
    from scipy.io import loadmat

    try:
        ids = loadmat(io.BytesIO(data), variable_names=(_MAP,)).get(_MAP)
    # Damaged files raise whatever their parts run into.
    except Exception as error:
        raise DataError(f"{name}: not a readable MATLAB file ({error})") from error
    kind = f"{ids.dtype} {ids.shape}" if isinstance(ids, np.ndarray) else "none"
    if kind == "none" or ids.dtype.kind not in "iu" or ids.ndim != 2 or not ids.size:
        raise DataError(
            f"{name}: the array {_MAP} is {kind}, but whole numbers (height, width) are expected"
        )
    return ids


def class_ids(ids: np.ndarray, table: np.ndarray, name: str) -> np.ndarray:
    """Published ids (H, W) by a table of `id_table`, uint8 (H, W).

    Raises:
      DataError: an id has no name.
    """
    legal = (ids >= 0) & (ids < len(table))
    found = np.where(legal, table[np.where(legal, ids, 0)], _UNKNOWN)
    if (unknown := found == _UNKNOWN).any():
        raise DataError(
            f"{name}: {_MAP} holds {first_few(np.unique(ids[unknown]), 5)} "
            f"({int(unknown.sum())} pixels), which {_NAMES} does not name"
        )
    return found.astype(np.uint8)
