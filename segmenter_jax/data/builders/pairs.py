"""The image and label files of a folder dataset, paired."""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from segmenter_jax.data.builders.files import SourceFiles
from segmenter_jax.data.builders.layout import STEM, Layout, Pattern
from segmenter_jax.data.encoded import IMAGE_SUFFIXES, LABEL_FORMS, LABEL_SUFFIXES
from segmenter_jax.data.listing import Found, describe_left_out
from segmenter_jax.data.traps import JPEG_LABEL, source_traps
from segmenter_jax.runtime.errors import first_few

_SPLIT_NAME = re.compile(r"[A-Za-z]\w*")
_SUFFIXES = first_few(IMAGE_SUFFIXES, 6)


class Pair(NamedTuple):
    """A record's name, its image and its label, if it has one."""

    name: str
    image: str
    label: str | None


@dataclasses.dataclass(frozen=True)
class FoundPairs:
    """What a source holds.

    Attributes:
      pairs: records by split, sorted by their names.
      problems: one message for every folder that is missing, split that is empty and file that is
        unpaired.
      left_out: what does not count in the folders of the layout, and images anywhere that belong to
        no split, as text.
    """

    pairs: dict[str, list[Pair]]
    problems: list[str]
    left_out: str = ""


def find_pairs(files: SourceFiles, layout: Layout) -> FoundPairs:
    """Lists the image and label files of every split, paired by their stem.

    A split without any label beside one that has some is for prediction.

    Args:
      files: the dataset's source.
      layout: where they lie.
    """
    here = first_few(sorted({p.partition("/")[0] + "/" * ("/" in p) for p in files.paths}), 6)
    problems = [
        f'{files.root / folder}: missing folder; expected {text}; there are: {here}; "images" '
        'and "labels" in classes.json name others'
        for folder, text in layout.bases().items()
        if folder and folder not in files.folders
    ]
    if problems:
        return FoundPairs({}, problems)
    splits = layout.splits(files.folders)
    if not splits:
        folder = files.root / next(iter(layout.bases()))
        problems.append(f"{folder}: no split; expected subfolders such as train and val")
    if layout.labels == Layout.labels:
        problems += source_traps(files.paths)
    found = {
        split: _SplitFiles(split, files, *layout.of_split(split), problems)
        for split in splits
        if _has_legal_name(split, problems)
    }
    paired = {label for split in found.values() for label in split.paired_labels()}
    pairs = {name: split.pairs(paired, problems) for name, split in found.items()}
    _refuse_shared_images(pairs, problems)
    if pairs and not problems and not any(pair.label for p in pairs.values() for pair in p):
        folder = files.root / list(layout.bases())[-1]
        problems.append(f"{folder}: no split has labels")
    if layout.val_share:
        _set_val_aside(pairs, layout.val_share, problems)
    taken = {path for split in found.values() for path in split.paths()}
    return FoundPairs(pairs, problems, _left_out(files, layout.bases(), taken))


class _SplitFiles:
    """The files of one split by their stems, before they are paired."""

    def __init__(
        self,
        split: str,
        files: SourceFiles,
        image: Pattern,
        label: Pattern | None,
        problems: list[str],
    ):
        self._split, self._files, self._image, self._label = split, files, image, label
        self._images: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        # A file that both match is of the kind that says more about it.
        kinds = [(image, self._images), *([(label, self._labels)] if label else [])]
        kinds.sort(key=lambda kind: -len(kind[0].text))
        for path in files.paths:
            for pattern, found in kinds:
                if (stem := pattern.stem(path)) is not None:
                    if stem in found:
                        former = PurePosixPath(found[stem]).name
                        problems.append(f"{path}: {former} has the same stem")
                    found[stem] = path
                    break

    def paths(self) -> list[str]:
        """All of them."""
        return [*self._images.values(), *self._labels.values()]

    def paired_labels(self) -> list[str]:
        """Labels that have an image."""
        return [self._labels[stem] for stem in self._labels.keys() & self._images.keys()]

    def pairs(self, paired: Collection[str], problems: list[str]) -> list[Pair]:
        """Pairs images and labels; `paired` are the labels that have an image in some split."""
        images, labels = self._images, self._labels
        unpaired = {stem for stem in labels.keys() - images.keys() if labels[stem] not in paired}
        if not images and not unpaired:
            problems.append(self._empty())
        others = {*self._files.paths} - {*paired} - {*images.values()}
        if not labels.keys() & images.keys() and not any(map(self._is_about_labels, others)):
            return [Pair(stem, path, None) for stem, path in sorted(images.items())]
        for stem in sorted(images.keys() - labels.keys()):
            problems.append(f"{images[stem]}: no label {self._label.path(stem, '.png')}")
        for stem in sorted(unpaired):
            expected = self._image.path(stem, f" with one of {_SUFFIXES}")
            problems.append(f"{labels[stem]}: no image {expected}")
        lossy = [path for _, path in sorted(labels.items()) if not _is_lossless(path)]
        problems += [f"{path}: labels must be {LABEL_FORMS} files{JPEG_LABEL}" for path in lossy]
        return [
            Pair(stem, images[stem], labels[stem])
            for stem in sorted(images.keys() & labels.keys())
            if _is_lossless(labels[stem])
        ]

    def _is_about_labels(self, path: str) -> bool:
        """Whether a file that is no image lies where the labels of this split do."""
        label = self._label
        return label is not None and (
            path.startswith(f"{label.folder}/") or label.stem(path) is not None
        )

    def _empty(self) -> str:
        folders = [pattern.folder for pattern in (self._image, self._label) if pattern]
        prefixes = tuple(f"{folder}/" for folder in folders)
        others = [path for path in self._files.paths if not path.startswith(prefixes)]
        there = _left_out(self._files, folders, others)
        expected = self._image.path(STEM, f" with one of {_SUFFIXES}")
        return f"{folders[0] or self._split}: the split is empty; expected {expected}" + (
            f"; left out: {there}" if there else ""
        )


def _is_lossless(path: str) -> bool:
    return path.lower().endswith(LABEL_SUFFIXES)


def _has_legal_name(split: str, problems: list[str]) -> bool:
    is_legal = _SPLIT_NAME.fullmatch(split) is not None and split != "all"
    if not is_legal:
        problems.append(
            f"split {split!r}: a split's name must be letters, digits and underscores, and not "
            "'all'"
        )
    return is_legal


def _refuse_shared_images(pairs: Mapping[str, Sequence[Pair]], problems: list[str]) -> None:
    owners: dict[str, str] = {}
    for split, listed in pairs.items():
        for pair in listed:
            if (owner := owners.setdefault(pair.image, split)) != split:
                problems.append(f"{pair.image}: in the splits {owner} and {split}")


def _set_val_aside(pairs: dict[str, list[Pair]], share: float, problems: list[str]) -> None:
    """Moves a share of `train` to `val`: always the same, whatever the order of the files."""
    train = pairs.get("train", [])
    if "val" in pairs or len(train) < 2:
        found = ", ".join(f"{split} ({len(p)} images)" for split, p in pairs.items()) or "no split"
        problems.append(f"val_share takes val out of train, but there is {found}")
        return
    digests = {
        pair: hashlib.sha256(pair.name.encode("utf-8", "replace")).digest() for pair in train
    }
    count = min(max(round(share * len(train)), 1), len(train) - 1)
    pairs["val"] = sorted(sorted(train, key=digests.__getitem__)[:count])
    pairs["train"] = sorted({*train} - {*pairs["val"]})


def _left_out(files: SourceFiles, folders: Collection[str], taken: Collection[str]) -> str:
    """What does not count of what lies in some folders, and why, as text."""
    found = Found(dict.fromkeys(files.paths), set(), {k: [*v] for k, v in files.left_out.items()})
    found.keep(IMAGE_SUFFIXES)
    prefixes = tuple(f"{folder}/" if folder else "" for folder in folders)
    left_out = {
        reason: [path for path in paths if path.startswith(prefixes) and path != "classes.json"]
        for reason, paths in found.left_out.items()
    }
    return describe_left_out(left_out | {"in no split": [p for p in found.files if p not in taken]})
