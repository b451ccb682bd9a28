"""What a dataset's labels mean: class names, colours and the map from stored to trained ids."""

import colorsys
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from segmenter_jax.data import class_tables as tables

# Stands in a lookup table for raw label values that the dataset does not define.
ILLEGAL_LABEL = 254


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Classes, colours and label values of one dataset.

    Attributes:
      name: short name, as in `runs/NAME`.
      class_names: one name per class, in the order of the trained ids 0..K-1.
      colors: one RGB triple in [0, 255] per class.
      ignore_label: the trained id of pixels that count nowhere.
      label_map: pairs (value in the label file, trained id), complete: any other value is an error.
        None means that files hold the trained ids 0..K-1 and `ignore_label`.
      channels: number of image channels.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_label: int = 255
    label_map: tuple[tuple[int, int], ...] | None = None
    channels: int = 3

    def __post_init__(self):
        count = len(self.class_names)
        if not 2 <= count < ILLEGAL_LABEL:
            raise ValueError(
                f"dataset {self.name!r} has {count} classes; "
                f"between 2 and {ILLEGAL_LABEL - 1} are supported"
            )
        if len(self.colors) != count:
            raise ValueError(
                f"dataset {self.name!r} has {count} classes but {len(self.colors)} colours"
            )
        for color in self.colors:
            if len(color) != 3 or not all(0 <= value <= 255 for value in color):
                raise ValueError(
                    f"dataset {self.name!r}: colour {color} is not three values in 0..255"
                )
        if not count <= self.ignore_label <= 255 or self.ignore_label == ILLEGAL_LABEL:
            raise ValueError(
                f"dataset {self.name!r}: ignore_label={self.ignore_label} must lie in "
                f"{count}..255 and not be {ILLEGAL_LABEL}"
            )
        self._check_label_map()

    def _check_label_map(self) -> None:
        legal = {*range(self.num_classes), self.ignore_label}
        seen: set[int] = set()
        for raw, trained in self.label_map or ():
            if not 0 <= raw <= 255 or raw in seen:
                raise ValueError(
                    f"dataset {self.name!r}: label value {raw} in label_map is not in 0..255 "
                    "or is there twice"
                )
            if trained not in legal:
                raise ValueError(
                    f"dataset {self.name!r}: label_map sends {raw} to {trained}, which is "
                    f"neither a class in 0..{self.num_classes - 1} nor {self.ignore_label}"
                )
            seen.add(raw)

    @property
    def num_classes(self) -> int:
        """Number of classes K; trained ids are 0..K-1."""
        return len(self.class_names)

    @functools.cached_property
    def _lookup(self) -> np.ndarray:
        pairs = self.label_map
        if pairs is None:
            pairs = [(i, i) for i in (*range(self.num_classes), self.ignore_label)]
        table = np.full(256, ILLEGAL_LABEL, np.uint8)
        for raw, trained in pairs:
            table[raw] = trained
        table.flags.writeable = False
        return table

    def label_lookup(self) -> np.ndarray:
        """Table from values in a label file to trained ids.

        Returns:
          uint8 (256,), read-only: a class in 0..K-1, `ignore_label`, or `ILLEGAL_LABEL` for values
          that the dataset does not define.
        """
        return self._lookup

    def legal_ids(self) -> str:
        """The label values that files may hold, for messages: "0..10 (classes), 11, 255 (...)"."""
        lookup = self.label_lookup()
        classes = np.flatnonzero((lookup != self.ignore_label) & (lookup != ILLEGAL_LABEL))
        ignored = np.flatnonzero(lookup == self.ignore_label)
        text = f"{_ranges(classes)} (classes)"
        return f"{text}, {_ranges(ignored)} (ignored)" if ignored.size else text

    def raw_ids(self, ids: np.ndarray) -> np.ndarray:
        """Trained ids -> the values that the dataset's own label files hold.

        Args:
          ids: integers (H, W): classes 0..K-1; others stay as they are.

        Returns:
          uint8 (H, W). Where several values stand for a class, the first of `label_map` is taken.
        """
        table = np.arange(256, dtype=np.uint8)
        for raw, trained in reversed(self.label_map or ()):
            if trained != self.ignore_label:
                table[trained] = raw
        return table[ids.astype(np.uint8)]

    def palette(self) -> np.ndarray:
        """Colours by trained id.

        Returns:
          uint8 (256, 3); black where there is no class.
        """
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = self.colors
        return palette

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON types; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "DatasetSpec":
        """Reads what `to_dict` wrote, also after a passage through JSON.

        Args:
          fields: the dictionary.

        Returns:
          An equal `DatasetSpec`.
        """
        label_map = fields["label_map"]
        return cls(
            name=fields["name"],
            class_names=tuple(fields["class_names"]),
            colors=tuple(tuple(color) for color in fields["colors"]),
            ignore_label=fields["ignore_label"],
            label_map=None if label_map is None else tuple(tuple(pair) for pair in label_map),
            channels=fields["channels"],
        )


def spread_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours for classes that have none; hues advance by the golden ratio."""
    colors = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75 - 0.25 * (i // 8 % 2), 0.9 - 0.2 * (i % 3))
        colors.append(tuple(round(255 * value) for value in rgb))
    return tuple(colors)


def _ranges(values: np.ndarray) -> str:
    """Sorted whole numbers as text: [0, 1, 2, 5] -> "0..2, 5"."""
    if not values.size:
        return "none"
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


SHAPES = DatasetSpec(
    name="shapes",
    class_names=("background", "disk", "box", "triangle", "ring", "stick", "star"),
    colors=(
        (110, 110, 110),
        (205, 70, 60),
        (70, 105, 200),
        (80, 165, 80),
        (215, 175, 60),
        (150, 75, 170),
        (70, 180, 185),
    ),
)

# Label files: 0 is "other", 1..150 are the classes.
ADE20K = DatasetSpec(
    name="ade20k",
    class_names=tables.ADE20K_NAMES,
    colors=tables.ADE20K_COLORS,
    label_map=((0, 255), *((i + 1, i) for i in range(150))),
)

# Of the 34 values of a labelIds file, those of the 19 classes in their order.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# For labelIds files; those of labelTrainIds hold the trained ids themselves.
CITYSCAPES = DatasetSpec(
    name="cityscapes",
    class_names=tables.CITYSCAPES_NAMES,
    colors=tables.CITYSCAPES_COLORS,
    label_map=tuple(
        (i, _CITYSCAPES_IDS.index(i) if i in _CITYSCAPES_IDS else 255) for i in range(34)
    ),
)

PASCAL_CONTEXT = DatasetSpec(
    name="pascal_context",
    class_names=tables.PASCAL_CONTEXT_NAMES,
    colors=tables.PASCAL_CONTEXT_COLORS,
    label_map=tuple((i, i) for i in range(60)),
)

# The background counts nowhere.
PASCAL_CONTEXT_59 = DatasetSpec(
    name="pascal_context_59",
    class_names=tables.PASCAL_CONTEXT_NAMES[1:],
    colors=tables.PASCAL_CONTEXT_COLORS[1:],
    label_map=((0, 255), *((i + 1, i) for i in range(59))),
)

CAMVID = DatasetSpec(
    name="camvid",
    class_names=tables.CAMVID_NAMES,
    colors=tables.CAMVID_COLORS,
    label_map=(*((i, i) for i in range(11)), (11, 255), (255, 255)),
)

# Masks hold 0 and 1, or 0 and 255. The fourth channel is the thermal image.
RGBT_GLASS = DatasetSpec(
    name="rgbt_glass",
    class_names=("background", "glass"),
    colors=((60, 60, 60), (60, 200, 230)),
    label_map=((0, 0), (1, 1), (255, 1)),
    channels=4,
)

BENCHMARKS = {
    spec.name: spec
    for spec in (ADE20K, CITYSCAPES, PASCAL_CONTEXT, PASCAL_CONTEXT_59, CAMVID, RGBT_GLASS)
}
