"""One parallel pass over all records of a dataset: every problem, and what its labels look like."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from segmenter_jax.data.builders.base import (
    Examined,
    Listing,
    RawRecord,
    RecordReader,
    examine,
    in_threads,
)
from segmenter_jax.data.datasets import Dataset, RecordSource
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.statistics import SplitStatistics, label_warnings, nothing_counts
from segmenter_jax.runtime.errors import DataError
from segmenter_jax.runtime.progress import counted
from segmenter_jax.runtime.tables import align

_MAX_NAME = 32

# Called with the split, the record's number in it, its name, its image and its label or None.
OnRecord = Callable[[str, int, str, np.ndarray, np.ndarray | None], None]


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
        labelled = {
            name: s for name, s in self.splits.items() if s.class_pixels.any() or s.ignored_pixels
        }
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
    problems, warnings = listing.all_problems(), list(listing.warnings)
    statistics = {split: SplitStatistics.empty(spec.num_classes) for split in listing.readers}
    places = [
        (split, index, reader)
        for split, readers in listing.readers.items()
        for index, reader in enumerate(readers)
    ]
    origins: dict[bytes, tuple[str, str]] = {}
    work = functools.partial(_examine, spec)
    results = in_threads(work, (reader for _, _, reader in places))
    examined_places = zip(places, results, strict=True)
    for (split, index, _), result in counted(examined_places, len(places), "image"):
        if isinstance(result, DataError):
            problems.append(str(result))
            continue
        examined, digest = result
        name = examined.record.image_name
        statistics[split].add(examined.summary)
        former_split, former = origins.setdefault(digest, (split, name))
        if former_split != split:
            warnings.append(f"{name}: the same image as {former}, in another split")
        if on_record is not None:
            on_record(split, index, examined.record.name, examined.image, examined.label)
    problems = problems or nothing_counts(spec, statistics)
    if not problems and not listing.is_built:
        warnings += label_warnings(spec, statistics)
    return Survey(spec, statistics, problems, warnings)


def records_of(dataset: Dataset) -> Listing:
    """The records of a built dataset, for `survey`."""
    sources = {split: dataset.source(split, needs_labels=False) for split in dataset.splits}
    return Listing(
        {
            split: [functools.partial(_stored_record, split, source, i) for i in range(len(source))]
            for split, source in sources.items()
        },
        warnings=dataset.warnings,
        is_built=True,
    )


def _stored_record(split: str, source: RecordSource, index: int) -> RawRecord:
    record = source[index]
    name = f"{split}/{record['name']}"
    return RawRecord(record["name"], record["image"], record.get("label"), name, name)


def _examine(spec: DatasetSpec, reader: RecordReader) -> tuple[Examined, bytes] | DataError:
    """A record and a digest of its image; or what is wrong with it."""
    outcome = examine(spec, reader)
    if isinstance(outcome, DataError):
        return outcome
    return outcome, hashlib.sha256(outcome.record.image).digest()


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
