"""Encoded labels to class ids, with every way they can be wrong turned into an error."""

import struct
import zlib

import cv2
import numpy as np
from PIL import Image

from segmenter_jax.data.encoded import (
    LABEL_FORMATS,
    LABEL_FORMS,
    bit_depth,
    load_pixels,
    num_frames,
    open_image,
    orientation_of,
    refuse_damage,
)
from segmenter_jax.data.images import decode_image
from segmenter_jax.data.specs import ILLEGAL_LABEL, DatasetSpec
from segmenter_jax.data.traps import JPEG_LABEL, RGB_LABEL, explain_values, palette_conflict
from segmenter_jax.runtime.errors import DataError, first_few

_TURNED = (
    " after its EXIF orientation is applied; if labels fit the stored pixels, "
    '"label_orientation": "stored" in classes.json turns them as well'
)
_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "F")
# Tags of TIFF files.
_COMPRESSION, _PHOTOMETRIC = 259, 262
# Height and width in front of a packed label.
_SIZE = "<II"


def decode_label(data: bytes, spec: DatasetSpec, name: str) -> np.ndarray:
    """Decodes a label and maps its values to trained ids.

    Args:
      data: a label of class ids as `read_ids` reads it.
      spec: the dataset's classes.
      name: the file's name, for errors.

    Returns:
      uint8 (H, W): classes 0..K-1 and `spec.ignore_label`.

    Raises:
      DataError: the file is not such a label, is truncated, holds a value that `spec` lacks, or has
        a palette that contradicts `spec`.
    """
    raw, palette = read_ids(data, name)
    if raw.dtype != np.uint8 and not (fits := np.isin(raw, np.arange(256))).all():
        raise illegal_value(raw, ~fits, spec, name, False)
    label = cv2.LUT(raw.astype(np.uint8, copy=False), spec.label_lookup())
    illegal = label == ILLEGAL_LABEL
    if illegal.any():
        raise illegal_value(raw, illegal, spec, name, palette is not None)
    if palette is not None and (conflict := palette_conflict(raw, palette, spec)):
        raise DataError(f"{name}: {conflict}")
    return label


def pack_ids(label: np.ndarray) -> bytes:
    """Trained ids, uint8 (H, W), in a form that is read several times faster than a PNG file."""
    return struct.pack(_SIZE, *label.shape) + zlib.compress(np.ascontiguousarray(label).data)


def unpack_ids(data: bytes, name: str) -> np.ndarray:
    """Reads what `pack_ids` has written.

    Args:
      data: the packed label.
      name: the record's name, for errors.

    Returns:
      uint8 (H, W), read-only.

    Raises:
      DataError: the data is damaged.
    """
    try:
        height, width = struct.unpack_from(_SIZE, data)
        pixels = zlib.decompress(memoryview(data)[struct.calcsize(_SIZE) :])
        return np.frombuffer(pixels, np.uint8).reshape(height, width)
    except (struct.error, zlib.error, ValueError) as error:
        raise DataError(f"{name}: the packed label is damaged ({error})") from error


def check_pair(
    image: bytes, label: bytes, spec: DatasetSpec, name: str, label_name: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes an image and its label strictly and checks that they belong together.

    Args:
      image: the encoded image.
      label: the encoded label.
      spec: the dataset's classes and channels.
      name: name of the image file, for errors.
      label_name: name of the label file; `name` if None.

    Returns:
      The image, uint8 (H, W, C), and the label in trained ids, uint8 (H, W).

    Raises:
      DataError: one of the two cannot be decoded, a label value is not legal, or sizes differ. The
        message names the file, what was found and what was expected.
    """
    label_name = label_name or name
    pixels = decode_image(image, name, channels=spec.channels)
    ids = decode_label(label, spec, label_name)
    if pixels.shape[:2] != ids.shape:
        turned = orientation_of(open_image(image, name), image) != 1
        raise DataError(
            f"{label_name}: the label is {ids.shape[0]} x {ids.shape[1]} pixels (height x width), "
            f"but its image {name} is {pixels.shape[0]} x {pixels.shape[1]}"
            + (_TURNED if turned else "")
        )
    return pixels, ids


def is_turned_unseen(image: bytes, shape: tuple[int, int]) -> bool:
    """Whether EXIF turns or mirrors an image so that a label's size does not tell if it is as well.

    Args:
      image: the encoded image.
      shape: its height and width in pixels.
    """
    orientation = orientation_of(open_image(image, "the image"), image)
    return orientation in (2, 3, 4) or (orientation > 4 and shape[0] == shape[1])


def open_label(data: bytes, name: str) -> Image.Image:
    """Reads the header of a label.

    Args:
      data: the encoded label.
      name: the file's name, for errors.

    Raises:
      DataError: its values cannot be told for sure: it is lossy, turned by EXIF, inverted, or one
        of several pictures.
    """
    image = open_image(data, name)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    is_jpeg = image.format == "JPEG" or tags.get(_COMPRESSION) in (6, 7)
    if is_jpeg or image.format not in LABEL_FORMATS:
        inside = " with JPEG compression" if tags else ""
        raise DataError(
            f"{name}: the label is a {image.format} file{inside}, but a {LABEL_FORMS} image "
            f"of class ids is expected{JPEG_LABEL if is_jpeg else ''}"
        )
    if tags.get(_PHOTOMETRIC) == 0:
        raise DataError(
            f"{name}: the label is a TIFF file that says that 0 is white, and programs disagree "
            "on its values; save it as one in which 0 is black"
        )
    if (count := num_frames(image, name)) > 1:
        raise DataError(f"{name}: the label holds {count} pictures, but one is expected")
    if orientation_of(image, data) != 1:
        raise DataError(f"{name}: the label has an EXIF orientation; labels must have none")
    return image


def read_ids(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads the values that a label holds.

    Args:
      data: an encoded label of one channel: PNG, TIFF, BMP, PGM or GIF; grey, whole or floating
        point numbers, or with a palette, whose indices are the values.
      name: the file's name, for errors.

    Returns:
      The values as they are stored, (H, W) of some type of numbers; and the palette, uint8
      (256, 3), if there is one.

    Raises:
      DataError: the file is none of these or damaged.
    """
    image = open_label(data, name)
    if image.mode not in (("L", "I") if image.format == "PPM" else _ID_MODES):
        raise DataError(
            f"{name}: the label is an {image.mode} image, but a single channel of class ids "
            "is expected" + (RGB_LABEL if image.mode in ("RGB", "RGBA") else "")
        )
    depth, encoded = bit_depth(image, data), np.frombuffer(data, np.uint8)
    if image.format == "PNG" and image.mode == "L" and depth == 8:
        raw = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
        if raw is not None:
            return raw, None
    refuse_damage(image, data, name)
    image = load_pixels(image, data, name)
    raw = np.asarray(image)
    if image.mode == "1":
        return raw.astype(np.uint8), None
    if image.mode == "P":
        return raw, _palette(image)
    if image.mode == "L" and depth < 8:
        # Pillow stretches grey of few bits to 0..255.
        return raw // np.uint8(255 // (2**depth - 1)), None
    if image.format in ("PPM", "TIFF"):
        # As it does a PGM's, which OpenCV does where they are written out as text; and takes
        # negative bytes for large ones.
        raw = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        is_text = data.startswith(b"P2")
        if raw is None or is_text or raw.shape != (image.height, image.width):
            raise DataError(f"{name}: {image.format} labels of this kind are not supported")
    return raw, None


def _palette(image: Image.Image) -> np.ndarray:
    stored = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(stored)] = stored
    return palette


def illegal_value(
    raw: np.ndarray, illegal: np.ndarray, spec: DatasetSpec, name: str, has_palette: bool
) -> DataError:
    """Of the values (H, W) of a label, some of which its dataset does not define."""
    values = np.unique(raw[illegal])
    return DataError(
        f"{name}: label value {first_few(values, 5)} ({int(illegal.sum())} pixels) is not legal in "
        f"dataset {spec.name!r}; legal values: {spec.legal_ids()}"
        f"{explain_values(raw, spec, has_palette)}"
    )
