"""Datasets built, checked and described."""

import argparse
import hashlib
import pathlib
import sys
import tempfile

import numpy as np

from segmenter_jax.conversion.download import cache_dir, download
from segmenter_jax.data.datasets import (
    GENERATED,
    Dataset,
    build_dataset,
    built_datasets,
    make_builder,
    open_dataset,
)
from segmenter_jax.data.origins import ADE20K_URL, ORIGINS
from segmenter_jax.data.specs import BENCHMARKS, DatasetSpec
from segmenter_jax.data.survey import Survey, records_of, survey
from segmenter_jax.pictures import overlay
from segmenter_jax.pictures.sheets import SheetEntry, contact_sheet, thumbnail
from segmenter_jax.runtime.command import FAILED
from segmenter_jax.runtime.errors import DataError
from segmenter_jax.runtime.files import write_whole

_ADE20K_SHA1 = "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"
_PICTURES_PER_SPLIT = 12

_SIDE = 240

_COLUMNS = 4


def run(arguments: argparse.Namespace) -> int:
    """Does what the subcommand says; returns the exit code."""
    if arguments.command == "list":
        return _list(arguments)
    if arguments.command == "check":
        return _check(arguments)
    return _build(arguments)


def _list(arguments: argparse.Namespace) -> int:
    built = set(built_datasets(arguments.data_dir))
    print(f"built in {arguments.data_dir}: {', '.join(sorted(built)) or 'nothing'}\n")
    for name, origin in ORIGINS.items():
        spec = BENCHMARKS.get(name)
        classes = f" ({spec.num_classes} classes, {spec.channels} channels)" if spec else ""
        print(f"{name}{classes}\n  {origin}")
    print(f"generated, need no source: {', '.join(GENERATED)}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    name = arguments.name if arguments.command == "folder" else arguments.command
    if getattr(arguments, "without_background", False):
        name += "_59"
    source = arguments.source
    if getattr(arguments, "download", False):
        source = source or str(fetch_ade20k())
    if source is None:
        raise ValueError(f"--source is missing: {ORIGINS[arguments.command]}")
    dataset = build_dataset(
        name,
        arguments.data_dir,
        source,
        overwrite=arguments.overwrite,
        allow_partial=getattr(arguments, "allow_partial", False),
        wait=False,
    )
    print(f"{dataset.name}: {dataset.directory}")
    sheet = ContactSheet(dataset.spec, dict(dataset.splits))
    result = survey(records_of(dataset), dataset.spec, sheet.add)
    path = dataset.directory / "contact_sheet.png"
    sheet.write(path)
    _print(result)
    print(f"\noverlays to look at: {path}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    if arguments.source is None:
        dataset: Dataset = open_dataset(arguments.name, arguments.data_dir)
        listing, spec = records_of(dataset), dataset.spec
    else:
        with tempfile.TemporaryDirectory() as nowhere:
            builder = make_builder(
                arguments.name,
                pathlib.Path(nowhere),
                arguments.source,
                allow_partial=arguments.allow_partial,
            )
        listing, spec = builder.scan(), builder.spec
    sheet = ContactSheet(spec, {split: len(r) for split, r in listing.readers.items()})
    result = survey(listing, spec, sheet.add)
    if arguments.contact_sheet:
        sheet.write(pathlib.Path(arguments.contact_sheet).expanduser())
    _print(result)
    if result.problems:
        print(f"\n{len(result.problems)} problems:", file=sys.stderr)
        for problem in result.problems:
            print(f"  {problem}", file=sys.stderr)
        return FAILED
    print("no problems")
    return 0


def _print(result: Survey) -> None:
    print(result.table(), flush=True)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)


class ContactSheet:
    """Small overlays of records spread evenly over every split, on one picture.

    Args:
      spec: classes and colours.
      counts: number of records by split.
    """

    def __init__(self, spec: DatasetSpec, counts: dict[str, int]):
        self._spec = spec
        self._chosen = {
            split: set(np.linspace(0, max(count - 1, 0), _PICTURES_PER_SPLIT).astype(int).tolist())
            for split, count in counts.items()
        }
        self._entries: dict[str, list[SheetEntry]] = {split: [] for split in counts}

    def add(
        self, split: str, index: int, name: str, image: np.ndarray, label: np.ndarray | None
    ) -> None:
        """Draws a record if it is one of those chosen; see `survey.OnRecord`."""
        if index not in self._chosen[split]:
            return
        ids = np.full(image.shape[:2], 255) if label is None else label
        picture = overlay(image, ids, self._spec.colors)
        # Shrunk here, as all are in memory until the end.
        small = thumbnail(picture, _SIDE)
        self._entries[split].append(SheetEntry((small,), f"{split} {name}"))

    def write(self, path: pathlib.Path) -> None:
        """Writes the picture; does nothing if no record was drawn."""
        entries = [entry for split in self._entries.values() for entry in split]
        if entries:
            sheet = contact_sheet(entries, _COLUMNS, _SIDE)
            with write_whole(path) as part:
                sheet.save(part)


def fetch_ade20k(sha1: str = _ADE20K_SHA1) -> pathlib.Path:
    """The archive of ADE20K in the cache, downloaded if it is not there yet.

    Args:
      sha1: what its content has to have.

    Raises:
      DataError: it has another one.
      SourceError: it cannot be downloaded.
    """
    path = cache_dir().parent / "datasets" / ADE20K_URL.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        download(ADE20K_URL, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha1").hexdigest()
    if digest != sha1:
        raise DataError(
            f"{path}: its sha1 is {digest}, but that of the published archive is {sha1}; "
            "delete it and try again"
        )
    return path
