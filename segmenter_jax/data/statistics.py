"""What the labels of a dataset look like, and what of it is legal and probably not meant."""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np

from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.runtime.errors import first_few

_MAX_NAMED = 5


@dataclasses.dataclass(frozen=True)
class RecordSummary:
    """What a record looks like.

    Attributes:
      name: what warnings call it.
      size: its height and width in pixels.
      counts: int (256,), pixels by trained id; None without a label.
      remarks: what is remarkable about it.
    """

    name: str
    size: tuple[int, int]
    counts: np.ndarray | None
    remarks: tuple[str, ...]


@dataclasses.dataclass
class SplitStatistics:
    """What a split's records look like.

    Attributes:
      num_records: good records.
      sizes: (height, width) of each, in pixels.
      class_pixels: int64 (K,), labelled pixels by class.
      class_images: int64 (K,), records that show the class.
      ignored_pixels: labelled pixels that count nowhere.
      remarks: names of records by what is remarkable about them.
    """

    num_records: int
    sizes: list[tuple[int, int]]
    class_pixels: np.ndarray
    class_images: np.ndarray
    ignored_pixels: int
    remarks: dict[str, list[str]]

    @classmethod
    def empty(cls, num_classes: int) -> "SplitStatistics":
        """Those of no record."""
        zeros = np.zeros(num_classes, np.int64)
        return cls(0, [], zeros, zeros.copy(), 0, collections.defaultdict(list))

    def add(self, record: RecordSummary) -> None:
        """Counts one record."""
        self.num_records += 1
        self.sizes.append(record.size)
        for remark in record.remarks:
            self.remarks[remark].append(record.name)
        if record.counts is None:
            return
        classes = record.counts[: self.class_pixels.size]
        self.class_pixels += classes
        self.class_images += classes > 0
        self.ignored_pixels += int(record.counts.sum() - classes.sum())
        if not classes.any():
            self.remarks["labels have no pixel that counts"].append(record.name)


def nothing_counts(spec: DatasetSpec, statistics: Mapping[str, SplitStatistics]) -> list[str]:
    """One message for each split that has labels, all of whose pixels are ignored."""
    return [
        f"{split}: no pixel of its labels counts, all {s.ignored_pixels} are ignored; values in "
        f"label files mean: {spec.legal_ids()}"
        for split, s in statistics.items()
        if s.ignored_pixels and not s.class_pixels.any()
    ]


def label_warnings(spec: DatasetSpec, statistics: Mapping[str, SplitStatistics]) -> list[str]:
    """What is legal and probably not meant, one message each."""
    remarks = [
        f"{split}: {remark} ({len(names)}): {first_few(names, _MAX_NAMED)}"
        for split, s in statistics.items()
        for remark, names in s.remarks.items()
    ]
    labelled = {split: s for split, s in statistics.items() if s.class_images.any()}
    if not labelled:
        return remarks
    total = sum(s.class_images for s in labelled.values())
    return [*remarks, *_absent(spec, labelled, total), *_masks_of_255(spec, labelled, total)]


def _absent(
    spec: DatasetSpec, labelled: Mapping[str, SplitStatistics], total: np.ndarray
) -> list[str]:
    warnings = []
    if absent := _names(spec, total == 0):
        warnings.append(f"classes that no label shows: {absent}")
    if "train" in labelled:
        unseen = (total > 0) & (labelled["train"].class_images == 0)
        others = [split for split, s in labelled.items() if s.class_images[unseen].any()]
        if names := _names(spec, unseen):
            warnings.append(f"classes that train never shows, but {', '.join(others)}: {names}")
    return warnings


def _masks_of_255(
    spec: DatasetSpec, labelled: Mapping[str, SplitStatistics], total: np.ndarray
) -> list[str]:
    """Recognises masks of 0 and 255 whose 255 was to be a class."""
    ignored = any(s.ignored_pixels for s in labelled.values())
    if not ignored or (total > 0).sum() != 1 or spec.label_lookup()[255] != spec.ignore_label:
        return []
    name = spec.class_names[int(total.argmax())]
    return [
        f"the labels show one class, {name!r}, and ignored pixels: if 255 in them stands for "
        "another class, as in masks of 0 and 255, give that class the id 255 and take 255 out of "
        "the ignored ids"
    ]


def _names(spec: DatasetSpec, chosen: np.ndarray) -> str:
    return first_few([spec.class_names[i] for i in np.flatnonzero(chosen)], 10, "; ")
