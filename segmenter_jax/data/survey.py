"""One parallel pass over all records of a dataset: every problem, and what its labels look like."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from segmenter_jax.data.builders.base import (
    Listing,
    RawRecord,
    RecordReader,
    check_record,
    in_threads,
)
from segmenter_jax.data.datasets import Dataset, RecordSource
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.runtime.errors import DataError, first_few
from segmenter_jax.runtime.tables import align

_MAX_NAME = 32

# Called with the split, the record's number in it, its name, its image and its label or None.
OnRecord = Callable[[str, int, str, np.ndarray, np.ndarray | None], None]


@dataclasses.dataclass
class SplitStatistics:
    """What a split's records look like.

    Attributes:
      num_records: good records.
      sizes: (height, width) of each, in pixels.
      class_pixels: int64 (K,), labelled pixels by class.
      class_images: int64 (K,), records that show the class.
      ignored_pixels: labelled pixels that count nowhere.
    """

    num_records: int
    sizes: list[tuple[int, int]]
    class_pixels: np.ndarray
    class_images: np.ndarray
    ignored_pixels: int

    @classmethod
    def empty(cls, num_classes: int) -> "SplitStatistics":
        """Those of no record."""
        zeros = np.zeros(num_classes, np.int64)
        return cls(0, [], zeros, zeros.copy(), 0)

    def add(self, image: np.ndarray, label: np.ndarray | None) -> None:
        """Counts one record."""
        self.num_records += 1
        self.sizes.append(image.shape[:2])
        if label is None:
            return
        counts = np.bincount(label.ravel(), minlength=256)
        num_classes = self.class_pixels.size
        self.class_pixels += counts[:num_classes]
        self.class_images += counts[:num_classes] > 0
        self.ignored_pixels += int(counts[num_classes:].sum())


@dataclasses.dataclass(frozen=True)
class Survey:
    """Result of `survey`.

    Attributes:
      spec: classes of the dataset.
      splits: statistics by split.
      problems: everything that a build would refuse, one message each.
      warnings: what is legal and probably not meant.
    """

    spec: DatasetSpec
    splits: Mapping[str, SplitStatistics]
    problems: Sequence[str]
    warnings: Sequence[str]

    def table(self) -> str:
        """Sizes of every split and the share of every class, as text."""
        lines = []
        for split, statistics in self.splits.items():
            lines.append(f"{split}: {statistics.num_records} records{_describe_sizes(statistics)}")
        labelled = {name: s for name, s in self.splits.items() if s.class_pixels.any()}
        if labelled:
            lines += ["", *_histogram(self.spec, labelled)]
        return "\n".join(lines)


def survey(listing: Listing, spec: DatasetSpec, on_record: OnRecord | None = None) -> Survey:
    """Reads, decodes and checks every record, in threads.

    Args:
      listing: the records and the problems already known.
      spec: classes and channels.
      on_record: called in order with every good record; "name" is that of the record.

    Returns:
      Statistics of the good records and the problems of all others.
    """
    problems, warnings = list(listing.problems), []
    statistics = {split: SplitStatistics.empty(spec.num_classes) for split in listing.readers}
    places = [
        (split, index, reader)
        for split, readers in listing.readers.items()
        for index, reader in enumerate(readers)
    ]
    origins: dict[bytes, tuple[str, str]] = {}
    work = functools.partial(_examine, spec)
    results = in_threads(work, (reader for _, _, reader in places))
    counted = tqdm(zip(places, results, strict=True), total=len(places), unit="image", disable=None)
    for (split, index, _), result in counted:
        if isinstance(result, DataError):
            problems.append(str(result))
            continue
        record, image, label, digest = result
        statistics[split].add(image, label)
        former_split, former = origins.setdefault(digest, (split, record.image_name))
        if former_split != split:
            warnings.append(f"{record.image_name}: the same image as {former}, in another split")
        if on_record is not None:
            on_record(split, index, record.name, image, label)
    if not problems:
        warnings += _absent_classes(spec, statistics)
    return Survey(spec, statistics, problems, warnings)


def records_of(dataset: Dataset) -> Listing:
    """The records of a built dataset, for `survey`."""
    sources = {split: dataset.source(split, needs_labels=False) for split in dataset.splits}
    return Listing(
        {
            split: [functools.partial(_stored_record, split, source, i) for i in range(len(source))]
            for split, source in sources.items()
        }
    )


def _stored_record(split: str, source: RecordSource, index: int) -> RawRecord:
    record = source[index]
    name = f"{split}/{record['name']}"
    return RawRecord(record["name"], record["image"], record.get("label"), name, name)


def _examine(
    spec: DatasetSpec, reader: RecordReader
) -> tuple[RawRecord, np.ndarray, np.ndarray | None, bytes] | DataError:
    """A record, its image and label, and a digest of the image; or what is wrong with it."""
    try:
        record = reader()
        image, label = check_record(record, spec)
    except DataError as error:
        return error
    return record, image, label, hashlib.sha256(record.image).digest()


def _absent_classes(spec: DatasetSpec, statistics: Mapping[str, SplitStatistics]) -> list[str]:
    labelled = [split for split, s in statistics.items() if s.class_images.any()]
    total = sum(statistics[split].class_images for split in labelled)
    absent = [spec.class_names[i] for i in np.flatnonzero(total == 0)] if labelled else []
    if not absent:
        return []
    return [f"classes that no label shows: {first_few(absent, 10, '; ')}"]


def _describe_sizes(statistics: SplitStatistics) -> str:
    if not statistics.sizes:
        return ""
    sizes = np.array(statistics.sizes)
    parts = [
        f"{name} {low}..{high} (median {middle:g})"
        for name, low, high, middle in zip(
            ("height", "width"), sizes.min(0), sizes.max(0), np.median(sizes, axis=0), strict=True
        )
    ]
    return f", {', '.join(parts)}"


def _histogram(spec: DatasetSpec, statistics: Mapping[str, SplitStatistics]) -> list[str]:
    """Per class and split: share of the labelled pixels, and number of images that show it."""
    rows = [["", "", *(cell for split in statistics for cell in (split, ""))]]
    for i, name in enumerate(("ignored", *spec.class_names), start=-1):
        row = [str(i) if i >= 0 else "", name[:_MAX_NAME]]
        for s in statistics.values():
            total = s.class_pixels.sum() + s.ignored_pixels
            pixels = s.class_pixels[i] if i >= 0 else s.ignored_pixels
            row.append(f"{100 * pixels / total:.3f} %")
            row.append(f"{s.class_images[i]} img" if i >= 0 else "")
        rows.append(row)
    return align(rows)
