"""Forms in which people keep labels, to the one that is stored: a PNG of label values."""

import functools
import io

import cv2
import numpy as np
from PIL import Image

from segmenter_jax.data.builders.classes_file import Color, LabelDescription
from segmenter_jax.data.encoded import load_pixels, open_image, orientation_of, turned
from segmenter_jax.data.labels import read_ids
from segmenter_jax.data.traps import RGB_LABEL
from segmenter_jax.runtime.errors import DataError, first_few

COLOR_CODED = "labels are read by the colours that classes.json gives their classes"
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
    def _values(self) -> np.ndarray:
        """Label value by colour, int16 (256, 256, 256)."""
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
          A PNG of label values, the label itself where it is one; and what was done, for warnings.

        Raises:
          DataError: a label cannot be read or has a colour that stands for no class.
        """
        remarks: tuple[str, ...] = ()
        header = open_image(label, name)
        if header.format == "PNG" and header.mode in ("RGB", "RGBA"):
            pixels = np.asarray(load_pixels(header, label, name))
            label, remarks = _encode(self._from_colors(pixels, name)), (COLOR_CODED,)
        if self._description.orientation == "stored":
            orientation = orientation_of(open_image(image, "the image"), image)
            if orientation != 1:
                ids, palette = read_ids(label, name)
                label, remarks = _encode(turned(ids, orientation), palette), (*remarks, TURNED)
        return label, remarks

    def _from_colors(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """Label values, uint8 (H, W), of uint8 (H, W, 3 or 4)."""
        if pixels.shape[2] == 4 and (pixels[..., 3] != 255).any():
            raise DataError(
                f"{name}: the label has transparent pixels, whose class is not clear; export it "
                "without an alpha channel"
            )
        red, green, blue = np.moveaxis(pixels[..., :3], 2, 0)
        values = self._values[red, green, blue]
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
