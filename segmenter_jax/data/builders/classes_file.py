"""`classes.json`: what the labels of a folder dataset mean, and in which form they are."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from segmenter_jax.data.builders.files import SourceFiles
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.traps import layout_hints, source_traps
from segmenter_jax.runtime.errors import DataError

CLASSES_FILE = "classes.json"
_EXAMPLE = (
    '{"classes": [{"id": 0, "name": "sky", "color": [128, 128, 128]}, ...], "ignore_ids": [255]}'
)
_FIELDS = ("classes", "ignore_ids", "ignore_colors", "label_orientation")
_ORIENTATIONS = ("shown", "stored")

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LabelDescription:
    """What the label files of a folder dataset hold.

    Attributes:
      spec: classes and label values; trained ids follow the order of `classes`.
      colors: label value by colour, of labels that are coded by colour.
      orientation: how labels of images that EXIF turns are: "shown" as viewers show the image, or
        "stored" as its pixels are; None where nobody has said so.
    """

    spec: DatasetSpec
    colors: Mapping[Color, int]
    orientation: str | None


def read_classes(files: SourceFiles, name: str) -> LabelDescription:
    """Reads `classes.json` of a folder dataset.

    Args:
      files: the dataset's source.
      name: name of the dataset.

    Raises:
      DataError: the file is missing or does not say what it must.
    """
    path = files.root / CLASSES_FILE
    if CLASSES_FILE not in files:
        hints = [*source_traps(files.paths), *layout_hints(files.paths)]
        hint = f"; {hints[0]}" if hints else ""
        raise DataError(f"{path}: missing; it lists the classes of the dataset{hint}")
    try:
        # Of the bytes, as this tells UTF-8, UTF-16 and a byte order mark apart.
        fields = json.loads(files.read(CLASSES_FILE))
        unknown = sorted(fields.keys() - {*_FIELDS})
        classes = fields["classes"]
        ids = [_integer(entry["id"]) for entry in classes]
        names = tuple(_class_name(entry["name"]) for entry in classes)
        colors = tuple(_color(entry["color"]) for entry in classes)
        ignored = [_integer(value) for value in fields.get("ignore_ids", [255])]
        ignored_colors = [_color(color) for color in fields.get("ignore_colors", [])]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected {_EXAMPLE}; could not read it ({error!r})") from error
    try:
        if unknown:
            raise ValueError(f"unknown fields {unknown}; known ones are {list(_FIELDS)}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the class {twice[0]!r} is there twice")
        pairs = [*zip(ids, range(len(ids)), strict=True), *((value, 255) for value in ignored)]
        spec = DatasetSpec(name, names, colors, label_map=tuple(pairs))
        table = _color_table(colors, ids, ignored_colors, ignored)
        return LabelDescription(spec, table, _orientation(fields))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _color_table(
    colors: Sequence[Color],
    ids: Sequence[int],
    ignored: Sequence[Color],
    ignored_ids: Sequence[int],
) -> dict[Color, int]:
    """Label values by colour, without colours that stand for several classes."""
    for color in ignored:
        if len(color) != 3 or not all(0 <= value <= 255 for value in color):
            raise ValueError(f"ignore_colors: {list(color)} is not three values in 0..255")
    if ignored and not ignored_ids:
        raise ValueError("ignore_colors needs one of ignore_ids, which these colours become")
    table = {color: i for color, i in zip(colors, ids, strict=True) if colors.count(color) == 1}
    if both := sorted({*colors} & {*ignored}):
        raise ValueError(f"colour {list(both[0])} is that of a class and in ignore_colors")
    return table | {color: ignored_ids[0] for color in ignored}


def _orientation(fields: Mapping[str, Any]) -> str | None:
    orientation = fields.get("label_orientation")
    if orientation not in (None, *_ORIENTATIONS):
        raise ValueError(
            f"label_orientation is {orientation!r}, but one of {_ORIENTATIONS} is legal"
        )
    return orientation


def _class_name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{value!r} is no class name")
    return value


def _color(value: Sequence[Any]) -> Color:
    return tuple(_integer(channel) for channel in value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value
