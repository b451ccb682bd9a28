"""What the published datasets share: official files, found by name, and official counts."""

import abc
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from segmenter_jax.data.builders.base import Listing, RawRecord, SegmentationBuilder
from segmenter_jax.data.builders.files import SourceFiles
from segmenter_jax.data.listing import describe_left_out
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.traps import source_traps

# Paths by split and record name.
Paths = dict[str, dict[str, str]]


class Benchmark(SegmentationBuilder, skip_registration=True):
    """A published dataset, from a folder or zip archive of its official files.

    Subclasses find the files; the folder they lie in may have any name and depth.

    Args:
      source: the folder or archive.
      data_dir: where built datasets live.
      allow_partial: accept other numbers of records than the published ones.

    Attributes:
      counts: published number of records by split; splits of `unlabelled` may be missing.
      archives: archives that are read in place if they lie in the source folder.
      layout: the files that are expected, for messages.
    """

    counts: ClassVar[Mapping[str, int]] = {}
    archives: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[str]
    dataset_spec: ClassVar[DatasetSpec]

    def __init__(self, *, source: Path, data_dir: Path, allow_partial: bool = False):
        self.name = self.dataset_spec.name
        self._files = SourceFiles(source, self.archives)
        self._allow_partial = allow_partial
        super().__init__(data_dir=data_dir)

    @property
    def spec(self) -> DatasetSpec:
        """Classes and label values of the dataset."""
        return self.dataset_spec

    @abc.abstractmethod
    def find_files(self, problems: list[str]) -> tuple[Paths, Paths]:
        """Finds images and labels by split and name; adds what is wrong to `problems`."""

    def companions(self, images: Paths) -> dict[str, Paths]:
        """Further files that records are made of, by what they are."""
        del images
        return {}

    def published_counts(self) -> Mapping[str, int]:
        """Number of records by split; see `counts`."""
        return self.counts

    def provenance(self) -> dict[str, Any]:
        """The source, and a digest that tells whether it has changed."""
        return {"source": str(self._files.root), "digest": self.digest()}

    def digest(self) -> str:
        """SHA-256 over names and sizes; equal for an archive and the same files unpacked."""
        images, labels = self.find_files([])
        kinds = {"image": images, "label": labels, **self.companions(images)}
        lines = [
            f"{kind} {split} {name} {self._files.size(path)}\n"
            for kind, paths in kinds.items()
            for split in sorted(paths)
            for name, path in sorted(paths[split].items())
        ]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def scan(self) -> Listing:
        """One reader per image, in the order of their names."""
        problems = source_traps(self._files.paths)
        images, labels = self.find_files(problems)
        if not any(images.values()) and not problems:
            problems.append(f"{self._files.root}: no images found; expected {self.layout}")
        readers = {}
        for split in sorted(images.keys() | labels.keys()):
            names = images.get(split, {})
            if split in self.unlabelled:
                pairs = {name: (path, None) for name, path in names.items()}
            else:
                pairs = _pair(names, labels.get(split, {}), problems)
            readers[split] = [
                functools.partial(self.read, name, *pairs[name]) for name in sorted(pairs)
            ]
        if not self._allow_partial and any(images.values()):
            self._check_counts({split: len(found) for split, found in readers.items()}, problems)
        left_out = describe_left_out(self._files.left_out)
        return Listing(readers, problems, [f"left out: {left_out}"] if left_out else [])

    def read(self, name: str, image: str, label: str | None) -> RawRecord:
        """Reads one record; called in a thread."""
        content = None if label is None else self._files.read(label)
        return RawRecord(name, self._files.read(image), content, image, label)

    def match(self, pattern: str, problems: list[str]) -> Paths:
        """Finds files.

        Args:
          pattern: regular expression with groups "split" and "name", searched for in paths.
          problems: receives files that have the same name.
        """
        expression = re.compile(rf"(?:^|/){pattern}$")
        found: Paths = {}
        for path in self._files.paths:
            if match := expression.search(path):
                split, name = match["split"], match["name"]
                split = {"training": "train", "val": "validation"}.get(split, split)
                former = found.setdefault(split, {}).setdefault(name, path)
                if former != path:
                    problems.append(f"{path}: {former} is the same record")
        return found

    def _check_counts(self, found: Mapping[str, int], problems: list[str]) -> None:
        for split, count in self.published_counts().items():
            missing = split not in found and split in self.unlabelled
            if not missing and found.get(split, 0) != count:
                problems.append(
                    f"split {split!r} has {found.get(split, 0)} records, the published "
                    f"{self.name} has {count}; allow_partial builds it as it is"
                )


def _pair(
    images: Mapping[str, str], labels: Mapping[str, str], problems: list[str]
) -> dict[str, tuple[str, str]]:
    for name in sorted(images.keys() - labels.keys()):
        problems.append(f"{images[name]}: no label")
    for name in sorted(labels.keys() - images.keys()):
        problems.append(f"{labels[name]}: no image")
    return {name: (images[name], labels[name]) for name in images.keys() & labels.keys()}
