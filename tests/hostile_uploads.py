"""Files that somebody may send to a page, and what is answered."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


def encoded(pixels: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    """A picture as a file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


@functools.cache
def png_of_zeros(width: int, height: int) -> bytes:
    """A black PNG of one bit per pixel: a few kilobytes for any number of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    packer, row = zlib.compressobj(1), bytes(1 + -(-width // 8))
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def refused() -> dict[str, tuple[bytes, str]]:
    """Files by name, each with the beginning of what is said after the name."""
    jpeg, png = encoded(NOISE, "JPEG"), encoded(NOISE, "PNG")
    flipped = bytearray(png)
    flipped[60] ^= 0xFF
    return {
        "text.png": (b"hello, I am a picture\n", "not a readable image (22 bytes)"),
        "empty.png": (b"", "not a readable image (0 bytes)"),
        "drawing.svg": (
            b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
            "not a readable image",
        ),
        "page.jpg": (b"<!DOCTYPE html><script>alert(1)</script>", "not a readable image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated or corrupt JPEG image"),
        "cut.png": (png[: len(png) // 2], "truncated or corrupt PNG image"),
        "flipped.png": (bytes(flipped), "truncated or corrupt PNG image"),
        "floats.tif": (encoded(np.zeros((40, 56), np.float32), "TIFF"), "32-bit images are not"),
        "bomb.png": (png_of_zeros(30_000, 30_000), "the image is over the limit of"),
        "large.png": (png_of_zeros(5_000, 4_001), "the image has 4001 x 5000 = 20005000 pixels"),
    }


def taken() -> dict[str, bytes]:
    """Files of 40 x 56 pixels that are pictures, though not what one expects."""
    alpha = np.dstack([NOISE, NOISE[..., 0]])
    frames = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]
    deep = (NOISE[..., 0].astype(np.uint16) << 8) + 7
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "deep.png": encoded(deep, "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "moving.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "moving.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "cmyk.jpg": encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
        "palette.png": encoded(Image.fromarray(NOISE).convert("P"), "PNG"),
        "grey.bmp": encoded(NOISE[..., 0], "BMP"),
        "turned.jpg": encoded(NOISE.swapaxes(0, 1)[::-1], "JPEG", exif=turned),
        "jpeg_named.png": encoded(NOISE, "JPEG"),
    }
