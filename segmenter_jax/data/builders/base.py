"""What all dataset builders share: features, metadata, a check of every record on the way in."""

import abc
import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from segmenter_jax.data.images import decode_image
from segmenter_jax.data.labels import check_pair, pack_ids
from segmenter_jax.data.specs import DatasetSpec
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
    """

    name: str
    image: bytes
    label: bytes | None
    image_name: str
    label_name: str | None


# Reads or renders one record; called in a thread.
RecordReader = Callable[[], RawRecord]


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a source holds, before any image is decoded.

    Attributes:
      readers: for every split, one reader per record.
      problems: one message for everything that is missing, unpaired or not what it must be.
    """

    readers: Mapping[str, Sequence[RecordReader]]
    problems: Sequence[str] = ()


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a segmentation dataset as ArrayRecord files that hold the original encoded bytes.

    A subclass says which splits there are and how a record is read. Every record is decoded and
    checked while it is written; a dataset with a bad record is not written at all.

    Attributes:
      unlabelled: splits whose records have no label.
    """

    VERSION = tfds.core.Version("1.0.0")
    unlabelled: tuple[str, ...] = ()

    @property
    @abc.abstractmethod
    def spec(self) -> DatasetSpec:
        """Classes and label values of the dataset."""

    @abc.abstractmethod
    def scan(self) -> Listing:
        """Lists the records of every split, and what is wrong with the source."""

    def record_readers(self) -> Mapping[str, Sequence[RecordReader]]:
        """For every split, one reader per record.

        Raises:
          DataError: `scan` finds problems; all are listed.
        """
        listing = self.scan()
        raise_problems(listing.problems)
        return listing.readers

    def provenance(self) -> dict[str, Any]:
        """What to store about the origin of the data, as JSON types."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
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
                spec=self.spec.to_dict(), unlabelled=list(self.unlabelled), **self.provenance()
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        readers = self.record_readers()
        if not readers:
            raise DataError(f"dataset {self.name!r} has no split")
        for split, split_readers in readers.items():
            if not split_readers:
                raise DataError(f"dataset {self.name!r}: split {split!r} is empty")
        return {split: self._generate_examples(readers[split]) for split in readers}

    def _generate_examples(
        self, readers: Sequence[RecordReader]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        problems = []
        for index, outcome in enumerate(
            in_threads(functools.partial(_checked, self.spec), readers)
        ):
            if isinstance(outcome, DataError):
                problems.append(str(outcome))
            elif not problems:
                record, ids = outcome
                # An empty label stands for none.
                example = {"image": record.image, "label": record.label or b"", "label_ids": ids}
                yield index, example | {"name": record.name}
        raise_problems(problems)


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


def check_record(record: RawRecord, spec: DatasetSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes a record strictly.

    Args:
      record: what was read.
      spec: the dataset's classes and channels.

    Returns:
      The image, uint8 (H, W, C), and the label in trained ids, uint8 (H, W), or None.

    Raises:
      DataError: see `check_pair`.
    """
    if record.label is None:
        return decode_image(record.image, record.image_name, channels=spec.channels), None
    return check_pair(record.image, record.label, spec, record.image_name, record.label_name)


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


def _checked(spec: DatasetSpec, reader: RecordReader) -> tuple[RawRecord, bytes] | DataError:
    """Reads and checks a record and packs its label; instead what is wrong with it, if anything."""
    try:
        record = reader()
        _, label = check_record(record, spec)
    except DataError as error:
        return error
    return record, b"" if label is None else pack_ids(label)
