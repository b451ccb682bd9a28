"""Where the images and labels of a folder dataset lie: patterns that `classes.json` may give."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from segmenter_jax.data.encoded import IMAGE_SUFFIXES

STEM = "{stem}"
_SPLIT = "{split}"
_ANY_SUFFIX = "|".join(map(re.escape, IMAGE_SUFFIXES))

# One pattern for all splits, or one for each.
Patterns = str | Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where images and labels lie, as `classes.json` says.

    Attributes:
      images, labels: paths below the source, as text or by split; "{split}" stands for the name of
        a split and "{stem}" for what an image and its label have in common.
      val_share: the share of `train` that becomes `val`; 0 for none.
    """

    images: Patterns = "images/{split}/{stem}"
    labels: Patterns = "annotations/{split}/{stem}"
    val_share: float = 0.0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Layout":
        """Reads the fields `images`, `labels` and `val_share`, each of which may be missing.

        Raises:
          ValueError: one of them is not what it must be.
        """
        given = {
            key: _read_patterns(key, fields[key]) for key in {"images", "labels"} & fields.keys()
        }
        if "val_share" in fields:
            share = fields["val_share"]
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
                raise ValueError(f"val_share is {share!r}, but a share between 0 and 1 is expected")
            given["val_share"] = share
        layout = cls(**given)
        images, labels = layout.images, layout.labels
        if _is_by_split(labels) and not _is_by_split(images):
            raise ValueError(f"labels are by split ({labels}), but images are not ({images})")
        if images == labels:
            raise ValueError(f"images and labels are the same: {images}")
        if isinstance(labels, Mapping) and isinstance(images, Mapping) and labels.keys() - images:
            raise ValueError(f"labels has splits {[*labels]}, but images has only {[*images]}")
        return layout

    def splits(self, folders: Collection[str]) -> list[str]:
        """Names of the splits, given all folders of the source."""
        if not _is_by_split(self.images):
            return ["train"]
        found: set[str] = set()
        for patterns in (self.images, self.labels):
            if isinstance(patterns, Mapping):
                found |= patterns.keys()
            elif _SPLIT in patterns and not isinstance(self.images, Mapping):
                escaped = re.escape(patterns.partition(f"/{STEM}")[0])
                name = escaped.replace(re.escape(_SPLIT), "(?P<split>[^/.][^/]*)", 1)
                folder = re.compile(name.replace(re.escape(_SPLIT), "(?P=split)"))
                found |= {match["split"] for path in folders if (match := folder.fullmatch(path))}
        return sorted(found)

    def of_split(self, split: str) -> tuple["Pattern", "Pattern | None"]:
        """Where the images and, if there are any, the labels of a split lie."""
        texts = [
            p.get(split) if isinstance(p, Mapping) else p.replace(_SPLIT, split)
            for p in (self.images, self.labels)
        ]
        return Pattern(texts[0] or ""), Pattern(texts[1]) if texts[1] else None

    def bases(self) -> dict[str, str]:
        """The folders that must be there, and the pattern of each."""
        return {
            text.partition("{")[0].rpartition("/")[0]: text
            for patterns in (self.images, self.labels)
            for text in ([patterns] if isinstance(patterns, str) else patterns.values())
        }


class Pattern:
    """Paths of the images or the labels of one split."""

    def __init__(self, text: str):
        self.text = text
        self.folder = text.partition(STEM)[0].rpartition("/")[0]
        self._suffix = next((s for s in IMAGE_SUFFIXES if text.lower().endswith(s)), "")
        body = re.escape(text[: len(text) - len(self._suffix)])
        body = body.replace(re.escape(STEM), "(?P<stem>.+)", 1)
        body = body.replace(re.escape(STEM), "(?P=stem)")
        suffix = re.escape(self._suffix) or _ANY_SUFFIX
        self._expression = re.compile(f"{body}(?i:{suffix})", re.DOTALL)

    def stem(self, path: str) -> str | None:
        """The stem of a path that is one of these."""
        match = self._expression.fullmatch(path)
        return match["stem"] if match else None

    def path(self, stem: str, suffix: str) -> str:
        """The path with a stem, for messages; `suffix` where any will do."""
        return self.text.replace(STEM, stem) + ("" if self._suffix else suffix)


def _is_by_split(patterns: Patterns) -> bool:
    return isinstance(patterns, Mapping) or _SPLIT in patterns


def _read_patterns(key: str, value: Any) -> Patterns:
    if isinstance(value, Mapping) and value:
        return {split: _read_pattern(key, text) for split, text in value.items()}
    return _read_pattern(key, value)


def _read_pattern(key: str, value: Any) -> str:
    """A pattern with "{stem}", which a folder lacks."""
    example = f"{key} is {value!r}, but a path below the folder of classes.json is expected, with "
    example += f'"{STEM}" for the part of a name that image and label share, such as '
    example += '"masks/{split}/{stem}_mask.png"'
    if not isinstance(value, str) or not value or "*" in value:
        raise ValueError(example)
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(example)
    text = str(path if STEM in value else path / STEM)
    if "{" in text.replace(_SPLIT, "").replace(STEM, ""):
        raise ValueError(f"{example}; placeholders are {_SPLIT} and {STEM}")
    if _SPLIT in text.partition(STEM)[0].rpartition("/")[2] + text.partition(STEM)[2]:
        raise ValueError(f'{example}; "{_SPLIT}" must be in the name of a folder before "{STEM}"')
    return text
