"""`classes.json`: what the labels of a folder dataset mean, and where its files lie."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from segmenter_jax.data.builders.files import SourceFiles
from segmenter_jax.data.builders.layout import Layout
from segmenter_jax.data.specs import DatasetSpec, spread_colors
from segmenter_jax.data.traps import layout_hints, source_traps
from segmenter_jax.runtime.errors import DataError

CLASSES_FILE = "classes.json"
_EXAMPLE = (
    '["sky", ...], {"0": "sky", ...} or {"classes": [{"id": 0, "name": "sky", "color": [128, 128, '
    '128]}, ...], "ignore_ids": [255]}'
)
_FIELDS = (
    "classes",
    "ignore_ids",
    "ignore_colors",
    "label_orientation",
    "images",
    "labels",
    "val_share",
)
_CLASS_FIELDS = ("id", "name", "color")
_ORIENTATIONS = ("shown", "stored")
_BYTE = range(256)

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LabelDescription:
    """What the label files of a folder dataset hold, and where they lie.

    Attributes:
      spec: classes and values of labels as they are stored; trained ids follow the order of
        `classes`.
      values: the byte as which each label value is stored: itself, or where it is none, another
        value of its class.
      colors: stored value by colour, of labels that are coded by colour.
      ignored: a stored value that is ignored, if there is one.
      orientation: how labels of images that EXIF turns are: "shown" as viewers show the image, or
        "stored" as its pixels are; None where nobody has said so.
      layout: where images and labels lie.
    """

    spec: DatasetSpec
    values: Mapping[int, int]
    colors: Mapping[Color, int]
    ignored: int | None
    orientation: str | None
    layout: Layout


@dataclasses.dataclass(frozen=True)
class _Class:
    """A class with all label values and colours that stand for it."""

    name: str
    ids: tuple[int, ...]
    colors: tuple[Color, ...]


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
        fields = json.loads(files.read(CLASSES_FILE), object_pairs_hook=_object)
        if isinstance(fields, list) or all(map(_is_number, fields)):
            fields = {"classes": fields}
        classes = [_class(entry) for entry in _entries(fields["classes"])]
        default = [255] if not any(255 in c.ids for c in classes) else []
        ignored = [_integer(value) for value in fields.get("ignore_ids", default)]
        ignored_colors = [_color(color) for color in fields.get("ignore_colors", [])]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected {_EXAMPLE}; could not read it ({error!r})") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    try:
        if unknown := sorted(fields.keys() - {*_FIELDS}):
            raise ValueError(f"unknown fields {unknown}; known ones are {list(_FIELDS)}")
        return _describe(name, classes, ignored, ignored_colors, fields)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _describe(
    name: str,
    classes: Sequence[_Class],
    ignored: Sequence[int],
    ignored_colors: Sequence[Color],
    fields: Mapping[str, Any],
) -> LabelDescription:
    names = tuple(c.name for c in classes)
    if twice := _first_twice(names):
        raise ValueError(f"the class {twice!r} is there twice")
    owned = [(value, c.name) for c in classes for value in c.ids]
    owned += [(value, "ignore_ids") for value in ignored]
    if (value := _first_twice([value for value, _ in owned])) is not None:
        owners = " and ".join(owner for other, owner in owned if other == value)
        raise ValueError(f"the label value {value} is there twice: {owners}")
    values = _stored_values([*(c.ids for c in classes), ignored])
    pairs = [(values[value], i) for i, c in enumerate(classes) for value in c.ids]
    pairs += [(values[value], 255) for value in ignored]
    spec = DatasetSpec(name, names, _shown_colors(classes), label_map=tuple(dict.fromkeys(pairs)))
    colors = _color_table(classes, values, ignored_colors, ignored)
    to_ignore = values[ignored[0]] if ignored else None
    return LabelDescription(
        spec, values, colors, to_ignore, _orientation(fields), Layout.of(fields)
    )


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of whose equal keys all but the last would be lost."""
    if (twice := _first_twice([key for key, _ in pairs])) is not None:
        raise ValueError(f"{twice!r} is there twice")
    return dict(pairs)


def _first_twice(values: Sequence[Any]) -> Any:
    return next((value for value, count in Counter(values).items() if count > 1), None)


def _entries(value: Any) -> list[Mapping[str, Any]]:
    """Classes given as names, names by id, or objects, as objects with an id."""
    if isinstance(value, Mapping):
        if not all(map(_is_number, value)):
            raise TypeError("names by id are expected, but keys are no numbers")
        return [{"id": int(key), "name": name} for key, name in value.items()]
    entries = [{"name": entry} if isinstance(entry, str) else {**entry} for entry in value]
    if any("id" in entry for entry in entries):
        return entries
    return [{"id": i, **entry} for i, entry in enumerate(entries)]


def _class(entry: Mapping[str, Any]) -> _Class:
    name, ids, colors = entry["name"], entry["id"], entry.get("color", [])
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"{name!r} is no class name")
    if unknown := sorted(entry.keys() - {*_CLASS_FIELDS}):
        raise ValueError(f"class {name!r}: unknown fields {unknown}; known: {[*_CLASS_FIELDS]}")
    ids = tuple(map(_integer, ids if isinstance(ids, list) else [ids]))
    if not ids:
        raise ValueError(f"class {name!r} has no id")
    is_one = len(colors) and not isinstance(colors[0], list)
    return _Class(name, ids, tuple(map(_color, [colors] if is_one else colors)))


def _stored_values(groups: Sequence[Sequence[int]]) -> dict[int, int]:
    """The byte as which each label value is stored, given the values of each class."""
    taken = {value for group in groups for value in group}
    free = (value for value in _BYTE if value not in taken)
    stored: dict[int, int] = {}
    for group in groups:
        in_bytes = [value for value in group if value in _BYTE]
        stored |= {value: value for value in in_bytes}
        if others := [value for value in group if value not in _BYTE]:
            stand_in = in_bytes[0] if in_bytes else next(free, None)
            if stand_in is None:
                raise ValueError("more than 256 label values of one byte and others")
            stored |= dict.fromkeys(others, stand_in)
    return stored


def _shown_colors(classes: Sequence[_Class]) -> tuple[Color, ...]:
    """A colour for every class; those of others where none is given."""
    given = {color for c in classes for color in c.colors}
    free = (color for color in spread_colors(len(classes) + len(given)) if color not in given)
    return tuple(c.colors[0] if c.colors else next(free) for c in classes)


def _color_table(
    classes: Sequence[_Class],
    values: Mapping[int, int],
    ignored: Sequence[Color],
    ignored_ids: Sequence[int],
) -> dict[Color, int]:
    """Stored values by colour, without colours that stand for several classes."""
    if ignored and not ignored_ids:
        raise ValueError("ignore_colors needs one of ignore_ids, which these colours become")
    counts = Counter(color for c in classes for color in {*c.colors})
    if both := sorted({*counts} & {*ignored}):
        raise ValueError(f"colour {list(both[0])} is that of a class and in ignore_colors")
    table = {color: values[c.ids[0]] for c in classes for color in c.colors if counts[color] == 1}
    return table | {color: values[ignored_ids[0]] for color in ignored}


def _orientation(fields: Mapping[str, Any]) -> str | None:
    orientation = fields.get("label_orientation")
    if orientation not in (None, *_ORIENTATIONS):
        raise ValueError(
            f"label_orientation is {orientation!r}, but one of {_ORIENTATIONS} is legal"
        )
    return orientation


def _color(value: Sequence[Any]) -> Color:
    color = tuple(map(_integer, value))
    if len(color) != 3 or not all(channel in _BYTE for channel in color):
        raise ValueError(f"colour {list(color)} is not three values in 0..255")
    return color


def _is_number(key: str) -> bool:
    return key.removeprefix("-").isdecimal()


def _integer(value: Any) -> int:
    """A whole number; large ones are often written as 1e20."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise TypeError(f"{value!r} is not a whole number")
    return int(value)
