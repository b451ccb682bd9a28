"""Encoded image and label bytes to arrays, with every way they can be wrong turned into an error.

OpenCV decodes what it decodes right (8-bit grey and RGB, JPEG and PNG), which is nearly everything;
Pillow reads headers and decodes the rest.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from segmenter_jax.data.specs import ILLEGAL_LABEL, DatasetSpec
from segmenter_jax.data.traps import JPEG_LABEL, RGB_LABEL, explain_values, palette_conflict
from segmenter_jax.runtime.errors import DataError, first_few

# Of the files that are taken for images, in lower case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# Pillow refuses more than twice its own warning level, so that is the most a limit can allow.
MAX_PIXELS = 2 * 89_478_485

# Height and width in front of a packed label.
_SIZE = "<II"

_JPEG_END = b"\xff\xd9"


def decode_image(
    data: bytes, name: str, *, channels: int = 3, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes an image as a viewer would show it.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB, an alpha channel is dropped, and the
    EXIF orientation is applied.

    Args:
      data: the encoded file (JPEG, PNG, BMP, WebP, TIFF).
      name: the file's name, for errors.
      channels: 3 for RGB, 1 for grey; any other number must be what the file holds.
      max_pixels: larger images are refused before they are decoded.

    Returns:
      uint8 (H, W, channels) in [0, 255].

    Raises:
      DataError: the file is no image, is truncated or corrupt, is too large, or has another number
        of channels.
    """
    image = _open(data, name, max_pixels)
    if image.mode in ("F", "I"):
        raise DataError(f"{name}: 32-bit images are not supported (8 or 16 bits per channel are)")
    pixels = _pixels(image, data, name, channels)
    # Pillow turns a TIFF when it decodes it, and says so here.
    orientation = _orientation(image, data)
    if orientation != 1:
        pixels = _turned(pixels, orientation)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] != channels:
        raise DataError(
            f"{name}: the image has {pixels.shape[2]} channels ({image.mode}), "
            f"but {channels} are expected"
        )
    return np.ascontiguousarray(pixels)


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Scales uint16 values to uint8, rounded: 65535 becomes 255."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def decode_label(data: bytes, spec: DatasetSpec, name: str) -> np.ndarray:
    """Decodes a label and maps its values to trained ids.

    Args:
      data: a single-channel PNG of class ids: grey with 1 to 16 bits, or a palette, whose indices
        are the ids.
      spec: the dataset's classes.
      name: the file's name, for errors.

    Returns:
      uint8 (H, W): classes 0..K-1 and `spec.ignore_label`.

    Raises:
      DataError: the file is not such a PNG, is truncated, holds a value that `spec` lacks, or has
        a palette that contradicts `spec`.
    """
    raw, palette = _raw_label(data, name)
    if raw.dtype != np.uint8 and raw.max(initial=0) > 255:
        raise _illegal_value(raw, raw > 255, spec, name, False)
    label = cv2.LUT(raw.astype(np.uint8, copy=False), spec.label_lookup())
    illegal = label == ILLEGAL_LABEL
    if illegal.any():
        raise _illegal_value(raw, illegal, spec, name, palette is not None)
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
        turned = _orientation(_open(image, name, MAX_PIXELS), image) != 1
        raise DataError(
            f"{label_name}: the label is {ids.shape[0]} x {ids.shape[1]} pixels (height x width), "
            f"but its image {name} is {pixels.shape[0]} x {pixels.shape[1]}"
            + (" after its EXIF orientation is applied" if turned else "")
        )
    return pixels, ids


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Reads the header and, of a PNG, verifies the checksums."""
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: the image is over the limit of {MAX_PIXELS} pixels") from error
    # Pillow's plugins raise whatever their parsers meet in damaged headers.
    except Exception as error:
        raise DataError(f"{name}: not a readable image ({len(data)} bytes)") from error
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{name}: the image has {height} x {width} = {height * width} pixels, "
            f"over the limit of {max_pixels}"
        )
    if image.format == "PNG":
        # OpenCV ignores checksums, and a damaged label could decode to legal ids.
        with _named_damage(image, name):
            image.verify()
    return image


def _pixels(image: Image.Image, data: bytes, name: str, channels: int) -> np.ndarray:
    if _bit_depth(image, data) == 16:
        return _decode_16bit(image, data, name, channels)
    if channels == 3 and image.mode in ("RGB", "L") and _is_complete(image, data):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is not None:
            return pixels
    image = _load(image, data, name)
    if channels == 1:
        return np.asarray(image.convert("L"))
    if channels == 3:
        # Straight to RGB, Pillow would blend palette transparency.
        transparent = image.mode in ("LA", "PA") or "transparency" in image.info
        return np.asarray((image.convert("RGBA") if transparent else image).convert("RGB"))
    return np.asarray(image)


def _decode_16bit(image: Image.Image, data: bytes, name: str, channels: int) -> np.ndarray:
    # Pillow truncates 16-bit colour to its high byte and clips 16-bit grey.
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or pixels.dtype != np.uint16:
        _load(image, data, name)
        raise DataError(f"{name}: 16-bit {image.format} image of this kind is not supported")
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    pixels = to_8_bits(pixels)
    if channels == 3:
        return np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels[..., :3]
    if channels == 1 and pixels.ndim == 3:
        return cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2GRAY)
    return pixels


def _load(image: Image.Image, data: bytes, name: str) -> Image.Image:
    if image.format == "PNG":
        # Verifying has used up the other.
        image = Image.open(io.BytesIO(data))
    with _named_damage(image, name):
        image.load()
    return image


@contextlib.contextmanager
def _named_damage(image: Image.Image, name: str) -> Iterator[None]:
    """Turns what Pillow raises for a damaged file into a `DataError`."""
    try:
        yield
    # Its decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more.
    except Exception as error:
        raise DataError(f"{name}: truncated or corrupt {image.format} image ({error})") from error


def _is_complete(image: Image.Image, data: bytes) -> bool:
    """Whether OpenCV may decode: it fills the missing part of a truncated JPEG with grey."""
    # A PNG was verified when it was opened.
    return image.format == "PNG" or (image.format in ("JPEG", "MPO") and data.endswith(_JPEG_END))


def _bit_depth(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return data[24]
    if image.mode.startswith("I;16"):
        return 16
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    return 8


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        # Pillow decodes a whole PNG in search of the block.
        if b"eXIf" not in data:
            return 1
        image = Image.open(io.BytesIO(data))
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    # A damaged EXIF block says nothing about the pixels.
    except Exception:
        return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    picture = Image.fromarray(pixels)
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


def _raw_label(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The stored ids, (H, W), uint8 or wider; and the palette, uint8 (256, 3), if there is one."""
    image = _open(data, name, MAX_PIXELS)
    if image.format != "PNG":
        raise DataError(
            f"{name}: the label is a {image.format} file, but a PNG image of class ids is expected"
            + (JPEG_LABEL if image.format == "JPEG" else "")
        )
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise DataError(
            f"{name}: the label is an {image.mode} image, but a single channel of class ids "
            "is expected" + (RGB_LABEL if image.mode in ("RGB", "RGBA") else "")
        )
    if _orientation(image, data) != 1:
        raise DataError(f"{name}: the label has an EXIF orientation; labels must have none")
    depth = _bit_depth(image, data)
    if image.mode == "L" and depth == 8:
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if raw is not None:
            return raw, None
    image = _load(image, data, name)
    raw = np.asarray(image)
    if image.mode == "1":
        return raw.astype(np.uint8), None
    if image.mode == "L" and depth < 8:
        # Pillow stretches grey of few bits to 0..255.
        return raw // np.uint8(255 // (2**depth - 1)), None
    return raw, _palette(image) if image.mode == "P" else None


def _palette(image: Image.Image) -> np.ndarray:
    stored = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(stored)] = stored
    return palette


def _illegal_value(
    raw: np.ndarray, illegal: np.ndarray, spec: DatasetSpec, name: str, has_palette: bool
) -> DataError:
    values = np.unique(raw[illegal])
    return DataError(
        f"{name}: label value {first_few(values, 5)} ({int(illegal.sum())} pixels) is not legal in "
        f"dataset {spec.name!r}; legal values: {spec.legal_ids()}"
        f"{explain_values(raw, spec, has_palette)}"
    )
