"""Encoded images to pixels as a viewer would show them.

OpenCV decodes what it decodes right (8-bit grey and RGB, JPEG and PNG), which is nearly everything;
Pillow reads headers and decodes the rest.
"""

import cv2
import numpy as np
from PIL import Image

from segmenter_jax.data.encoded import (
    MAX_PIXELS,
    bit_depth,
    load_pixels,
    open_image,
    orientation_of,
    refuse_damage,
    turned,
)
from segmenter_jax.runtime.errors import DataError

_JPEG_END = b"\xff\xd9"


def decode_image(
    data: bytes,
    name: str,
    *,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    strict: bool = True,
) -> np.ndarray:
    """Decodes an image as a viewer would show it.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB, an alpha channel is dropped, and the
    EXIF orientation is applied.

    Args:
      data: the encoded file, in one of `encoded.FORMATS`.
      name: the file's name, for errors.
      channels: 3 for RGB, 1 for grey; any other number must be what the file holds.
      max_pixels: larger images are refused before they are decoded.
      strict: find damage that decoders paint over; of files that were checked before, the time can
        be saved.

    Returns:
      uint8 (H, W, channels) in [0, 255].

    Raises:
      DataError: the file is no image, is truncated or corrupt, is too large, or has another number
        of channels.
    """
    image = open_image(data, name, max_pixels)
    if strict:
        refuse_damage(image, data, name)
    if image.mode in ("F", "I"):
        raise DataError(f"{name}: 32-bit images are not supported (8 or 16 bits per channel are)")
    pixels = _pixels(image, data, name, channels)
    # Pillow turns a TIFF when it decodes it, and says so here.
    orientation = orientation_of(image, data)
    if orientation != 1:
        pixels = turned(pixels, orientation)
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


def _pixels(image: Image.Image, data: bytes, name: str, channels: int) -> np.ndarray:
    if bit_depth(image, data) == 16:
        return _decode_16bit(image, data, name, channels)
    if channels == 3 and image.mode in ("RGB", "L") and _is_complete(image, data):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is not None:
            return pixels
    image = load_pixels(image, data, name)
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
        load_pixels(image, data, name)
        raise DataError(f"{name}: 16-bit {image.format} image of this kind is not supported")
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    pixels = to_8_bits(pixels)
    if channels == 3:
        return np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels[..., :3]
    if channels == 1 and pixels.ndim == 3:
        return cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2GRAY)
    return pixels


def _is_complete(image: Image.Image, data: bytes) -> bool:
    """Whether OpenCV may decode: it fills the missing part of a truncated JPEG with grey."""
    # A PNG was verified when it was opened.
    return image.format == "PNG" or (image.format in ("JPEG", "MPO") and data.endswith(_JPEG_END))
