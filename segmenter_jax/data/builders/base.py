"""What all dataset builders share: features, metadata, a check of every record on the way in."""

import abc
import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from segmenter_jax.data.images import decode_image
from segmenter_jax.data.labels import check_pair, is_turned_unseen, pack_ids
from segmenter_jax.data.listing import printable
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.statistics import (
    RecordSummary,
    SplitStatistics,
    label_warnings,
    nothing_counts,
)
from segmenter_jax.data.traps import ORIENTATION
from segmenter_jax.runtime.errors import DataError, first_few
from segmenter_jax.runtime.host import usable_cores

_MAX_REPORTED = 20

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class RawRecord:
    """One pair as it is stored, or an image whose label is not published.

    Attributes:
      name: name of the record, unique in its split.
      image: the encoded image.
      label: the encoded label; None in a split without labels.
      image_name: what messages call the image file.
      label_name: what messages call the label file.
      remarks: what is remarkable about it, for `statistics`.
      orientation_is_known: whether it is clear that the label is turned as the image is.
    """

    name: str
    image: bytes
    label: bytes | None
    image_name: str
    label_name: str | None
    remarks: tuple[str, ...] = ()
    orientation_is_known: bool = False


# Reads or renders one record; called in a thread.
RecordReader = Callable[[], RawRecord]


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a source holds, before any image is decoded.

    Attributes:
      readers: for every split, one reader per record.
      problems: one message for everything that is missing, unpaired or not what it must be.
      warnings: what is legal and probably not meant.
      is_built: the records are those of a built dataset, and `warnings` are of when it was built.
    """

    readers: Mapping[str, Sequence[RecordReader]]
    problems: Sequence[str] = ()
    warnings: Sequence[str] = ()
    is_built: bool = False

    def all_problems(self) -> list[str]:
        """Those listed or, if there are none, what is empty."""
        if self.problems:
            return list(self.problems)
        if not self.readers:
            return ["the dataset has no split"]
        return [f"split {split!r} is empty" for split, r in self.readers.items() if not r]


@dataclasses.dataclass(frozen=True)
class Examined:
    """A record that is as it has to be.

    Attributes:
      record: what was read.
      image: uint8 (H, W, C).
      label: trained ids, uint8 (H, W); None without a label.
      summary: for `statistics`.
    """

    record: RawRecord
    image: np.ndarray
    label: np.ndarray | None
    summary: RecordSummary


class _LocalInfo(tfds.core.DatasetInfo):
    """Of a dataset in no bucket of TFDS: each look there would leave an empty folder."""

    def initialize_from_bucket(self) -> None:
        """Looks nowhere."""


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a segmentation dataset as ArrayRecord files that hold the original encoded bytes.

    A subclass says which splits there are and how a record is read. Every record is decoded and
    checked while it is written; a dataset with a bad record is not written at all.

    Attributes:
      unlabelled: splits whose records have no label.
    """

    VERSION = tfds.core.Version("1.0.0")
    unlabelled: tuple[str, ...] = ()

    def __init__(self, *, data_dir: Path):
        self._listed_warnings: Sequence[str] = ()
        self._statistics: dict[str, SplitStatistics] = {}
        # Filled while building, and stored at the end.
        self._warnings: list[str] = []
        super().__init__(data_dir=str(data_dir))

    @property
    @abc.abstractmethod
    def spec(self) -> DatasetSpec:
        """Classes and label values of the dataset."""

    @abc.abstractmethod
    def scan(self) -> Listing:
        """Lists the records of every split, and what is wrong with the source."""

    def provenance(self) -> dict[str, Any]:
        """What to store about the origin of the data, as JSON types."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description=f"Semantic segmentation: {', '.join(self.spec.class_names)}.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, self.spec.channels)),
                    "label": tfds.features.Image(shape=(None, None, 1)),
                    # The label once more, in trained ids and quick to read; bytes like a text's.
                    "label_ids": tfds.features.Text(),
                    "name": tfds.features.Text(),
                }
            ),
            # Records keep their order; training shuffles globally anyway.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                spec=self.spec.to_dict(),
                unlabelled=list(self.unlabelled),
                warnings=self._warnings,
                **self.provenance(),
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        listing = self.scan()
        raise_problems(listing.all_problems())
        self._listed_warnings = listing.warnings
        return {
            split: self._generate_examples(split, readers)
            for split, readers in listing.readers.items()
        }

    def _generate_examples(
        self, split: str, readers: Sequence[RecordReader]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        problems: list[str] = []
        statistics = SplitStatistics.empty(self.spec.num_classes)
        for index, outcome in enumerate(in_threads(functools.partial(_packed, self.spec), readers)):
            if isinstance(outcome, DataError):
                problems.append(str(outcome))
            elif not problems:
                record, summary, ids = outcome
                statistics.add(summary)
                # An empty label stands for none.
                example = {"image": record.image, "label": record.label or b"", "label_ids": ids}
                yield index, example | {"name": record.name}
        raise_problems(problems or nothing_counts(self.spec, {split: statistics}))
        self._statistics[split] = statistics
        warnings = label_warnings(self.spec, self._statistics)
        self._warnings[:] = [*self._listed_warnings, *warnings]


def raise_problems(problems: Sequence[str]) -> None:
    """Raises one `DataError` that lists the problems, if there are any.

    Args:
      problems: one message per problem.

    Raises:
      DataError: `problems` is not empty. A single problem is the whole message.
    """
    if not problems:
        return
    if len(problems) == 1:
        raise DataError(problems[0])
    listed = first_few(problems, _MAX_REPORTED, "\n  ")
    raise DataError(f"{len(problems)} problems:\n  {listed}")


def examine(spec: DatasetSpec, reader: RecordReader) -> Examined | DataError:
    """Reads a record and decodes it strictly; called in a thread.

    Args:
      spec: the dataset's classes and channels.
      reader: reads it.

    Returns:
      The record, or what is wrong with it.
    """
    try:
        record = reader()
        _check_names(record)
        name, counts, label, remarks = record.image_name, None, None, record.remarks
        if record.label is None:
            image = decode_image(record.image, name, channels=spec.channels)
        else:
            image, label = check_pair(record.image, record.label, spec, name, record.label_name)
            counts = np.bincount(label.ravel(), minlength=256)
            if not record.orientation_is_known and is_turned_unseen(record.image, label.shape):
                remarks += (ORIENTATION,)
    except DataError as error:
        return error
    return Examined(record, image, label, RecordSummary(name, image.shape[:2], counts, remarks))


def _check_names(record: RawRecord) -> None:
    for name in filter(None, (record.image_name, record.label_name, record.name)):
        if printable(name) != name:
            raise DataError(f"{printable(name)}: the name is not UTF-8; rename the file")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Maps in threads, one per core; yields results in order, with few of them in memory.

    Args:
      work: called with each item.
      items: read as they are needed.
    """
    threads = usable_cores()
    with futures.ThreadPoolExecutor(threads) as pool:
        window: collections.deque[futures.Future] = collections.deque()
        for item in items:
            window.append(pool.submit(work, item))
            if len(window) > 4 * threads:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


def _packed(
    spec: DatasetSpec, reader: RecordReader
) -> tuple[RawRecord, RecordSummary, bytes] | DataError:
    """Examines a record and packs its label; instead what is wrong with it, if anything."""
    outcome = examine(spec, reader)
    if isinstance(outcome, DataError):
        return outcome
    packed = b"" if outcome.label is None else pack_ids(outcome.label)
    return outcome.record, outcome.summary, packed
