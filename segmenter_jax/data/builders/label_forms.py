"""Forms in which people keep labels, to the one that is stored: a PNG of label values."""

import functools
import io
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image

from segmenter_jax.data.builders.classes_file import Color, LabelDescription
from segmenter_jax.data.encoded import load_pixels, open_image, orientation_of, turned
from segmenter_jax.data.labels import illegal_value, open_label, read_ids
from segmenter_jax.data.traps import RGB_LABEL
from segmenter_jax.runtime.errors import DataError, first_few

COLOR_CODED = "labels are read by the colours that classes.json gives their classes"
WITHOUT_VALUE = "pixels of labels that have no value (NaN) are ignored"
TURNED = "labels are turned with their images"

_NO_VALUE = -1


class LabelForms:
    """Brings the label files of a folder dataset into the form that is stored.

    Args:
      description: what they hold.
    """

    def __init__(self, description: LabelDescription):
        self._description = description

    @functools.cached_property
    def _by_color(self) -> np.ndarray:
        """Stored value by colour, int16 (256, 256, 256)."""
        values = np.full((256,) * 3, _NO_VALUE, np.int16)
        for color, value in self._description.colors.items():
            values[color] = value
        return values

    def to_png(self, label: bytes, name: str, image: bytes) -> tuple[bytes, tuple[str, ...]]:
        """Converts a label.

        Args:
          label: the encoded label.
          name: its file's name, for errors.
          image: the encoded image that it belongs to.

        Returns:
          A PNG of stored values, the label itself where it is one; and what was done, for warnings.

        Raises:
          DataError: a label cannot be read, or has a colour or value that stands for no class.
        """
        header = open_label(label, name)
        orientation = self._orientation(image)
        is_coded = header.mode in ("RGB", "RGBA")
        is_plain = header.format == "PNG" and not is_coded and not self._has_wide_values
        if is_plain and orientation == 1:
            return label, ()
        remarks: list[str] = []
        if is_coded:
            ids = self._from_colors(np.asarray(load_pixels(header, label, name)), name)
            palette = None
            remarks.append(COLOR_CODED)
        else:
            ids, palette = read_ids(label, name)
            if not is_plain and (ids.dtype != np.uint8 or self._has_wide_values):
                ids = self._from_values(ids, name, remarks)
        if orientation != 1:
            ids = turned(ids, orientation)
            remarks.append(TURNED)
        return _encode(ids, palette), tuple(remarks)

    def _orientation(self, image: bytes) -> int:
        """How a label is turned with its image."""
        if self._description.orientation != "stored":
            return 1
        return orientation_of(open_image(image, "the image"), image)

    @functools.cached_property
    def _has_wide_values(self) -> bool:
        """Whether classes.json has values that are not stored as themselves."""
        return any(value != stored for value, stored in self._description.values.items())

    def _from_values(self, raw: np.ndarray, name: str, remarks: list[str]) -> np.ndarray:
        """Values as they are stored, uint8 (H, W), of numbers (H, W) of any type."""
        description = self._description
        values, places = np.unique(raw, return_inverse=True)
        table: Mapping[int, int] = description.values
        if not self._has_wide_values:
            # Of others it is told later what they look like.
            table = {value: value for value in range(256)}
        if raw.dtype.kind == "f":
            # What classes.json says in decimal digits, rounded as the label's numbers are.
            table = {float(raw.dtype.type(value)): stored for value, stored in table.items()}
        without = np.isnan(values)
        stored = np.array([table.get(value, _NO_VALUE) for value in values.tolist()], np.int16)
        if without.any() and description.ignored is not None:
            stored[without] = description.ignored
            remarks.append(WITHOUT_VALUE)
        ids = stored[places.reshape(raw.shape)]
        if (illegal := ids == _NO_VALUE).any():
            if not self._has_wide_values:
                raise illegal_value(raw, illegal, description.spec, name, False)
            raise DataError(
                f"{name}: label value {first_few(values[stored == _NO_VALUE], 5)} "
                f"({int(illegal.sum())} pixels) is none of those in classes.json: "
                f"{first_few(sorted(description.values), 20)}"
            )
        return ids.astype(np.uint8)

    def _from_colors(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """Label values, uint8 (H, W), of uint8 (H, W, 3 or 4)."""
        if pixels.shape[2] == 4 and (pixels[..., 3] != 255).any():
            raise DataError(
                f"{name}: the label has transparent pixels, whose class is not clear; export it "
                "without an alpha channel"
            )
        red, green, blue = np.moveaxis(pixels[..., :3], 2, 0)
        values = self._by_color[red, green, blue]
        unknown = values == _NO_VALUE
        if unknown.any():
            raise _unknown_colors(pixels[unknown][:, :3], name)
        return values.astype(np.uint8)


def _unknown_colors(pixels: np.ndarray, name: str) -> DataError:
    """Of the pixels (N, 3) whose colours stand for no class."""
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    order = np.argsort(-counts)
    shown: list[Color] = [tuple(color) for color in colors[order].tolist()]
    return DataError(
        f"{name}: the label is an RGB image, and {len(shown)} of its colours "
        f"({len(pixels)} pixels) stand for no single class: {first_few(shown, 3)}. Add them to "
        f"classes.json, as colours of classes or to ignore_colors{RGB_LABEL}"
    )


def _encode(ids: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """Label values, uint8 or uint16 (H, W), as a PNG that `read_ids` reads back."""
    if palette is None:
        return cv2.imencode(".png", np.ascontiguousarray(ids))[1].tobytes()
    picture = Image.fromarray(ids)
    picture.putpalette(palette.tobytes())
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    return stored.getvalue()
