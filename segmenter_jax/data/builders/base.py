"""What all dataset builders share: features, metadata, a check of every record on the way in."""

import abc
import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import tensorflow_datasets as tfds

from segmenter_jax.data.images import check_pair
from segmenter_jax.data.specs import DataError, DatasetSpec

_MAX_REPORTED = 20


@dataclasses.dataclass(frozen=True)
class RawRecord:
    """One pair as it is stored.

    Attributes:
      name: name of the record, unique in its split.
      image: the encoded image.
      label: the encoded label.
      image_name: what messages call the image file.
      label_name: what messages call the label file.
    """

    name: str
    image: bytes
    label: bytes
    image_name: str
    label_name: str


# Reads or renders one record; called in a thread.
RecordReader = Callable[[], RawRecord]


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a segmentation dataset as ArrayRecord files that hold the original encoded bytes.

    A subclass says which splits there are and how a record is read. Every record is decoded and
    checked while it is written; a dataset with a bad record is not written at all.
    """

    VERSION = tfds.core.Version("1.0.0")

    @property
    @abc.abstractmethod
    def spec(self) -> DatasetSpec:
        """Classes and label values of the dataset."""

    @abc.abstractmethod
    def record_readers(self) -> dict[str, Sequence[RecordReader]]:
        """For every split, one reader per record."""

    def provenance(self) -> dict[str, Any]:
        """What to store about the origin of the data, as JSON types."""
        return {}

    def on_record(self, record: RawRecord) -> None:
        """Called in order for every record that is written."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Semantic segmentation: {', '.join(self.spec.class_names)}.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, self.spec.channels)),
                    "label": tfds.features.Image(shape=(None, None, 1)),
                    "name": tfds.features.Text(),
                }
            ),
            # Records keep their order; training shuffles globally anyway.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(spec=self.spec.to_dict(), **self.provenance()),
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
        for index, outcome in enumerate(_read_checked(readers, self.spec)):
            if isinstance(outcome, DataError):
                problems.append(str(outcome))
            elif not problems:
                self.on_record(outcome)
                yield (
                    index,
                    {"image": outcome.image, "label": outcome.label, "name": outcome.name},
                )
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
    lines = [f"{len(problems)} problems:", *problems[:_MAX_REPORTED]]
    if len(problems) > _MAX_REPORTED:
        lines.append(f"... and {len(problems) - _MAX_REPORTED} more")
    raise DataError("\n  ".join(lines))


def _read_checked(
    readers: Sequence[RecordReader], spec: DatasetSpec
) -> Iterator[RawRecord | DataError]:
    """Reads and checks records in threads; yields them, or what is wrong with them, in order."""

    def read(reader: RecordReader) -> RawRecord | DataError:
        try:
            record = reader()
            check_pair(record.image, record.label, spec, record.image_name, record.label_name)
        except DataError as error:
            return error
        return record

    threads = os.cpu_count() or 1
    with futures.ThreadPoolExecutor(threads) as pool:
        # A window bounds the number of records in memory.
        window: collections.deque[futures.Future] = collections.deque()
        for reader in readers:
            window.append(pool.submit(read, reader))
            if len(window) > 4 * threads:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
