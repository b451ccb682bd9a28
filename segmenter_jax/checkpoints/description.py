"""What a model directory says about its weights: `model.json`."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from segmenter_jax.models import SegmenterConfig

FORMAT_VERSION = 1

_VERSION_FIELD = "format_version"


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """Everything needed to use a set of weights, besides the weights.

    Attributes:
      model: the network.
      classes: one name per class.
      colors: one (red, green, blue) in 0..255 per class.
      mean, std: normalisation of pixel values in 0..1, one per input channel. One value serves all
        channels. Three values given for another number of channels are those of red, green and
        blue: a channel beyond the third, or the only one or two, gets their average.
      ignore_label: label value that counts nowhere.
      base_size: images are resized before windows are cut, so that they fit a box of
        (aspect_bound * base_size, base_size) pixels; None keeps their own size.
      aspect_bound: long side of that box over its short side, at least 1.
      window, stride: side and stride of sliding windows, in pixels; None means the short side of
        the model's `image_size`.
      provenance: JSON values: where the weights come from.
    """

    model: SegmenterConfig
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ignore_label: int = 255
    base_size: int | None = None
    aspect_bound: float = 4.0
    window: int | None = None
    stride: int | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(ModelDescription, vars(self))

        window = min(self.model.image_size) if self.window is None else self.window
        for name, value in {
            "classes": tuple(self.classes),
            "colors": tuple(tuple(color) for color in self.colors),
            "mean": _per_channel("mean", self.mean, self.model.in_channels),
            "std": _per_channel("std", self.std, self.model.in_channels),
            "window": window,
            "stride": window if self.stride is None else self.stride,
        }.items():
            object.__setattr__(self, name, value)
        _check_values(self)

    def to_json(self) -> str:
        """Text of `model.json`."""
        fields = dataclasses.asdict(self)
        return json.dumps({_VERSION_FIELD: FORMAT_VERSION} | fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "model.json") -> "ModelDescription":
        """Reads the text of `model.json`.

        Args:
          text: as `to_json` writes it.
          source: name of the file, for messages.

        Raises:
          ValueError: not JSON, another format version, or a field that is unknown, missing, of the
            wrong type or of a forbidden value; names the file and the field.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}: not valid JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{source}: found {type(fields).__name__}, expected a JSON object")
        version = fields.pop(_VERSION_FIELD, None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{source}: field {_VERSION_FIELD!r}: found {version!r}, expected {FORMAT_VERSION}"
            )
        _check_names(cls, fields, source)
        model = fields.pop("model")
        _check_names(SegmenterConfig, model, f"{source}: model")
        check_types(SegmenterConfig, model, f"{source}: model: ")
        if (found := model.get("head_norm", "none")) != "none":
            raise ValueError(
                f"{source}: model: field 'head_norm': found {found!r}, expected 'none': a kept "
                "model has it in its head"
            )
        try:
            return cls(model=SegmenterConfig(**model), **fields)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None


def _per_channel(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in values)
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    if len(values) == 3:
        average = sum(values) / 3
        return (average,) * channels if channels < 3 else values + (average,) * (channels - 3)
    raise ValueError(f"{name} must have 1, 3 or in_channels={channels} values, got {len(values)}")


def _check_values(d: ModelDescription) -> None:
    num_classes = d.model.num_classes
    for field in ("classes", "colors"):
        if (found := len(getattr(d, field))) != num_classes:
            raise ValueError(f"{field} must have num_classes={num_classes} entries, got {found}")
    for color in d.colors:
        if len(color) != 3 or not all(0 <= value <= 255 for value in color):
            raise ValueError(f"colors must be (red, green, blue) in 0..255, got {color}")
    rules = (
        ("ignore_label", not 0 <= d.ignore_label < num_classes, "must not be one of the classes"),
        ("mean", all(map(math.isfinite, d.mean)), "must be finite"),
        ("std", all(0 < value < math.inf for value in d.std), "must be positive"),
    )
    for field, holds, rule in rules:
        if not holds:
            raise ValueError(f"{field}={getattr(d, field)} {rule}")
    check_windows(d.window, d.stride, d.base_size, d.aspect_bound)
    try:
        json.dumps(d.provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must hold JSON values only: {error}") from None


def check_windows(window: int, stride: int, base_size: int | None, aspect_bound: float) -> None:
    """Checks how images are scaled and cut; see `ModelDescription`.

    Any side will do for a window: the network pads it to whole patches.

    Raises:
      ValueError: a value is outside its range; names it.
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1 pixel")
    if not 1 <= stride <= window:
        raise ValueError(f"stride={stride} must be in 1..window={window}, or pixels are left out")
    if base_size is not None and base_size < 1:
        raise ValueError(f"base_size={base_size} must be None or at least 1")
    if not 1 <= aspect_bound < math.inf:
        raise ValueError(f"aspect_bound={aspect_bound} must be at least 1")


def _check_names(cls: type, fields: Any, where: str) -> None:
    """Checks that decoded JSON has the fields of a dataclass, and no other.

    A field with a default may be missing: files older than the field stay readable.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: found {type(fields).__name__}, expected an object")
    declared = dataclasses.fields(cls)
    expected = [f.name for f in declared]
    if unknown := sorted(set(fields) - set(expected)):
        raise ValueError(f"{where}: unknown fields {unknown}; known are {expected}")
    absent = dataclasses.MISSING
    required = [f.name for f in declared if f.default is absent and f.default_factory is absent]
    if missing := [name for name in required if name not in fields]:
        raise ValueError(f"{where}: missing fields {missing}")


def check_types(cls: type, fields: Mapping[str, Any], where: str = "") -> None:
    """Checks values, of files that anybody may have written, against the types of a dataclass.

    Args:
      cls: the dataclass.
      fields: values of some of its fields; a list is as good as a tuple.
      where: begins the message.

    Raises:
      ValueError: a value is of another type; names the field.
    """
    hints = typing.get_type_hints(cls)
    for name, value in fields.items():
        if not _matches(value, hints[name]):
            raise ValueError(
                f"{where}field {name!r}: found {value!r}, expected {_spell(hints[name])}"
            )


def _matches(value: Any, hint: Any) -> bool:
    """Whether a value fits a type hint; lists stand for tuples, as in JSON."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_matches(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_matches(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_matches, value, args))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
