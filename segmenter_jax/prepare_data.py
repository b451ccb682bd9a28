"""Builds, checks and describes datasets.

python -m segmenter_jax.prepare_data ade20k --source=ADEChallengeData2016.zip
"""

import argparse
import hashlib
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence

import cv2
import numpy as np
from tqdm import tqdm

from segmenter_jax.conversion.download import cache_dir, download
from segmenter_jax.data.builders.base import in_threads
from segmenter_jax.data.datasets import (
    GENERATED,
    Dataset,
    build_dataset,
    built_datasets,
    make_builder,
    open_dataset,
)
from segmenter_jax.data.decoded import decoded_folder, write_decoded
from segmenter_jax.data.specs import BENCHMARKS, DatasetSpec
from segmenter_jax.data.survey import Survey, records_of, survey
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.pictures import overlay
from segmenter_jax.pictures.sheets import SheetEntry, contact_sheet
from segmenter_jax.runtime.command import FAILED, run_command
from segmenter_jax.runtime.errors import DataError

_ADE20K_URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
_ADE20K_SHA1 = "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"
_DATA_DIR = "~/tensorflow_datasets"

# Where the files come from, for those who do not have them yet.
_ORIGINS = {
    "ade20k": f"--download fetches {_ADE20K_URL} (0.9 GB). Test images: release_test.zip of the "
    "same place, beside it in one folder, given as --source",
    "cityscapes": "log in at https://www.cityscapes-dataset.com, fetch "
    "leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB), and give the "
    "folder that holds both as --source",
    "pascal_context": "fetch VOCtrainval_03-May-2010.tar from the PASCAL VOC 2010 site and unpack "
    "it; add SegmentationClassContext/*.png and ImageSets/SegmentationContext/{train,val}.txt to "
    "VOCdevkit/VOC2010, and give that folder as --source",
    "rgbt_glass": "ask the dataset's authors; give the folder with train/ and test/ as --source",
    "camvid": "give the folder or zip with images/{train,val} and annotations/{train,val} as "
    "--source",
    "folder": "your own images: images/SPLIT, annotations/SPLIT (PNG) and classes.json",
}
_PICTURES_PER_SPLIT = 12
_SIDE = 240
_COLUMNS = 4


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.prepare_data", description="Builds and checks datasets."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="what can be built, from which files")
    listing.add_argument("--data_dir", default=_DATA_DIR, help="default: %(default)s")
    for name, origin in _ORIGINS.items():
        build = commands.add_parser(
            name, help=f"build {name}", description=origin.replace("%", "%%")
        )
        build.add_argument("--source", help="folder or zip archive of the original files")
        build.add_argument("--data_dir", default=_DATA_DIR, help="default: %(default)s")
        build.add_argument("--overwrite", action="store_true", help="build again what is there")
        if name == "folder":
            build.add_argument("--name", default="folder", help="name of the dataset")
        else:
            build.add_argument(
                "--allow_partial",
                action="store_true",
                help="accept other numbers of records than the published ones",
            )
        if name == "ade20k":
            build.add_argument("--download", action="store_true", help="fetch the original files")
        if name == "pascal_context":
            build.add_argument(
                "--without_background", action="store_true", help="the variant of 59 classes"
            )
    check = commands.add_parser(
        "check",
        help="find every problem of a source or a built dataset",
        description="Reads everything once, in parallel, and lists every problem. Exits with 1 if "
        "there is one.",
    )
    check.add_argument("--source", help="folder or zip archive; without it, the built dataset")
    check.add_argument("--name", default="folder", help="a benchmark, or any other for a folder")
    check.add_argument("--data_dir", default=_DATA_DIR, help="default: %(default)s")
    check.add_argument("--contact_sheet", metavar="FILE", help="write overlays to look at (PNG)")
    check.add_argument("--allow_partial", action="store_true", help="do not compare the counts")
    decode = commands.add_parser(
        "decode",
        help="keep a decoded copy of built splits, for a faster loader",
        description="Writes the pixels of images and labels beside the records (4 bytes a pixel "
        "for RGB). Training and evaluation read them instead, with equal results and less work; "
        "that pays where they fit into memory.",
    )
    decode.add_argument("--name", required=True, help="of the built dataset")
    decode.add_argument("--data_dir", default=_DATA_DIR, help="default: %(default)s")
    decode.add_argument("--split", help="only this one; default: all that have labels")
    decode.add_argument("--remove", action="store_true", help="delete the copies instead")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    if arguments.command == "list":
        return _list(arguments)
    if arguments.command == "check":
        return _check(arguments)
    if arguments.command == "decode":
        return _decode(arguments)
    return _build(arguments)


def _list(arguments: argparse.Namespace) -> int:
    built = set(built_datasets(arguments.data_dir))
    print(f"built in {arguments.data_dir}: {', '.join(sorted(built)) or 'nothing'}\n")
    for name, origin in _ORIGINS.items():
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
        source = source or str(_download_ade20k())
    if source is None:
        raise ValueError(f"--source is missing: {_ORIGINS[arguments.command]}")
    dataset = build_dataset(
        name,
        arguments.data_dir,
        source,
        overwrite=arguments.overwrite,
        allow_partial=getattr(arguments, "allow_partial", False),
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
    _print(result)
    if arguments.contact_sheet:
        sheet.write(pathlib.Path(arguments.contact_sheet).expanduser())
    if result.problems:
        print(f"\n{len(result.problems)} problems:", file=sys.stderr)
        for problem in result.problems:
            print(f"  {problem}", file=sys.stderr)
        return FAILED
    print("no problems")
    return 0


def _decode(arguments: argparse.Namespace) -> int:
    dataset = open_dataset(arguments.name, arguments.data_dir)
    labelled = [split for split in dataset.splits if split not in dataset.unlabelled]
    for split in [arguments.split] if arguments.split else labelled:
        source = dataset.source(split, encoded=True)
        folder = decoded_folder(dataset.directory, split)
        if arguments.remove:
            # With what killed calls have left.
            for path in [folder, *folder.parent.glob(".build_*")]:
                shutil.rmtree(path, ignore_errors=True)
            continue
        if folder.is_dir():
            print(f"{split}: is there already, {folder}")
            continue
        records = (source[i] for i in range(len(source)))
        examples = in_threads(EvalTransform(dataset.spec), records)
        write_decoded(folder, tqdm(examples, total=len(source), unit="image", disable=None))
        print(f"{split}: {len(source)} records, {folder}")
    return 0


def _print(result: Survey) -> None:
    print(result.table())
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
        scale = _SIDE / max(image.shape[:2])
        size = tuple(max(round(side * scale), 1) for side in ids.shape[::-1])
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        self._entries[split].append(SheetEntry((small,), f"{split} {name}"))

    def write(self, path: pathlib.Path) -> None:
        """Writes the picture; does nothing if no record was drawn."""
        entries = [entry for split in self._entries.values() for entry in split]
        if entries:
            path.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(entries, _COLUMNS, _SIDE).save(path)


def _download_ade20k() -> pathlib.Path:
    path = cache_dir().parent / "datasets" / _ADE20K_URL.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        download(_ADE20K_URL, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha1").hexdigest()
    if digest != _ADE20K_SHA1:
        raise DataError(
            f"{path}: its sha1 is {digest}, but that of the published archive is {_ADE20K_SHA1}; "
            "delete it and try again"
        )
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
