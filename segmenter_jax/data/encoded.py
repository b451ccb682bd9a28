"""Encoded images: which formats are read, their headers, and files that are not whole."""

import contextlib
import io
import re
import zlib
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, features

from segmenter_jax.runtime.errors import DataError

# Formats that have a signature, so that no other file passes for one, and their files' suffixes.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
}
# Pillow reads AVIF from release 11.3 on.
FORMATS = tuple(name for name in _SUFFIXES if name != "AVIF" or "avif" in features.get_supported())

# Of the files that are taken for images, in lower case, the usual one of each format first.
IMAGE_SUFFIXES = (
    *(_SUFFIXES[name][0] for name in FORMATS),
    *(suffix for name in FORMATS for suffix in _SUFFIXES[name][1:]),
)

# Formats that keep what they are given, but for TIFF files with JPEG inside; of PPM, PGM is meant.
LABEL_FORMATS = ("PNG", "TIFF", "BMP", "PPM", "GIF")
LABEL_FORMS = "PNG, TIFF, BMP, PGM or GIF"
LABEL_SUFFIXES = tuple(suffix for name in LABEL_FORMATS for suffix in _SUFFIXES[name])

# Pillow refuses more than twice its own warning level, so that is the most a limit can allow.
MAX_PIXELS = 2 * 89_478_485

# What libjpeg says of missing and damaged parts, which it then invents.
_JPEG_DAMAGE = re.compile(r"Corrupt JPEG data: (?!bad ICC)|Premature end|Inconsistent progression")
_READ_AHEAD = 16
_JPEG_FILLING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


def open_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads the header and, of a PNG, verifies the checksums.

    Args:
      data: the encoded file.
      name: the file's name, for errors.
      max_pixels: larger images are refused.

    Raises:
      DataError: the file is no image of `FORMATS`, a damaged PNG, or too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: the image is over the limit of {max_pixels} pixels") from error
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


def load_pixels(image: Image.Image, data: bytes, name: str) -> Image.Image:
    """Decodes with Pillow what `open_image` has opened; raises `DataError` if it cannot."""
    if image.format == "PNG":
        # Verifying has used up the other.
        image = Image.open(io.BytesIO(data))
    with _named_damage(image, name):
        image.load()
    return image


def refuse_damage(image: Image.Image, data: bytes, name: str) -> None:
    """Finds damage that decoders paint over, where the format lets it be told: JPEG and TIFF.

    Raises:
      DataError: the file is damaged.
    """
    damage = None
    if image.format in ("JPEG", "MPO"):
        damage = _jpeg_damage(data)
    elif image.format == "TIFF":
        damage = _tiff_damage(image, data)
    if damage:
        raise DataError(f"{name}: truncated or corrupt {image.format} image ({damage})")


def _jpeg_damage(data: bytes) -> str | None:
    try:
        # At an eighth of the size, as only reading the file matters.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        # Anything else is a kind of file that it does not read, and others may.
        if not _JPEG_DAMAGE.match(str(error)):
            return None
        if filling := _JPEG_FILLING.search(str(error)):
            # Some cameras fill up their files. Who has read zeros for pixels leaves fewer of them
            # than there are, apart from those that are read ahead.
            pixels = data[: data.rfind(b"\xff\xd9")]
            if 0 <= len(pixels) - len(pixels.rstrip(b"\0\xff")) - int(filling[1]) <= _READ_AHEAD:
                return None
        return str(error)
    return None


def _tiff_damage(image: Image.Image, data: bytes) -> str | None:
    """Of the parts, strips or tiles: missing ones, and those that contradict their checksums."""
    tags = image.tag_v2
    offsets, sizes = tags.get(273) or tags.get(324, ()), tags.get(279) or tags.get(325, ())
    compression, tables = tags.get(259), tags.get(347, b"")
    for number, (offset, size) in enumerate(zip(offsets, sizes, strict=False), start=1):
        part, damage = data[offset : offset + size], None
        if not offset:
            damage = "missing"
        elif compression in (8, 32946):
            damage = _zlib_damage(part, 16 * image.width * image.height + 2**24)
        elif compression == 7:
            # The tables are a JPEG file of their own, without pixels.
            damage = _jpeg_damage(tables[:-2] + part[2:] if tables else part)
        if damage:
            return f"part {number} of {len(offsets)}: {damage}"
    return None


def _zlib_damage(data: bytes, limit: int) -> str | None:
    reader = zlib.decompressobj()
    try:
        reader.decompress(data, limit)
    except zlib.error as error:
        return str(error)
    return None if reader.eof else "it ends too early"


def bit_depth(image: Image.Image, data: bytes) -> int:
    """Bits per channel."""
    if image.format == "PNG":
        return data[24]
    if image.mode.startswith("I;16"):
        return 16
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    return 8


def num_frames(image: Image.Image, name: str) -> int:
    """How many pictures a file holds; raises `DataError` if that cannot be told."""
    with _named_damage(image, name):
        return getattr(image, "n_frames", 1)


def orientation_of(image: Image.Image, data: bytes) -> int:
    """How a viewer turns the stored pixels: an EXIF orientation, 1 if not at all."""
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


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as a viewer shows them: uint8 or uint16 (H, W) or uint8 (H, W, 3 or 4)."""
    picture = Image.fromarray(pixels)
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


@contextlib.contextmanager
def _named_damage(image: Image.Image, name: str) -> Iterator[None]:
    """Turns what Pillow raises for a damaged file into a `DataError`."""
    try:
        yield
    # Its decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more.
    except Exception as error:
        raise DataError(f"{name}: truncated or corrupt {image.format} image ({error})") from error
