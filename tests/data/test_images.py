import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from segmenter_jax.data.images import decode_image
from segmenter_jax.data.labels import check_pair, decode_label, pack_ids, unpack_ids
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.runtime.errors import DataError
from tests.data.conftest import encode, noise


def gray_png(values: np.ndarray, bits: int) -> bytes:
    """A greyscale PNG of 1, 2, 4 or 16 bits, written by hand."""
    height, width = values.shape
    shifts = np.arange(bits - 1, -1, -1)
    rows = np.packbits(((values[..., None] >> shifts) & 1).reshape(height, -1), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_rgb_is_exact(image_format):
    pixels = noise(9, 13)
    np.testing.assert_array_equal(decode_image(encode(pixels, image_format), "x"), pixels)


def test_lossless_webp_is_exact():
    pixels = noise(9, 13)
    np.testing.assert_array_equal(decode_image(encode(pixels, "WEBP", lossless=True), "x"), pixels)


def test_jpeg_agrees_with_pillow():
    smooth = cv2.resize(noise(6, 8), (64, 48), interpolation=cv2.INTER_CUBIC)
    data = encode(smooth, "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    difference = decode_image(data, "x").astype(int) - expected
    assert np.abs(difference).max() <= 2


def test_gray_repeats_over_channels():
    gray = noise(9, 13)[..., 0]
    np.testing.assert_array_equal(
        decode_image(encode(gray), "x"), np.repeat(gray[..., None], 3, axis=2)
    )
    np.testing.assert_array_equal(decode_image(encode(gray), "x", channels=1)[..., 0], gray)


def test_rgba_drops_alpha_and_keeps_colour_under_it():
    rgba = np.concatenate([noise(9, 13), noise(9, 13, 1)[..., :1]], axis=2)
    np.testing.assert_array_equal(decode_image(encode(rgba), "x"), rgba[..., :3])


def test_gray_with_alpha():
    pixels = noise(9, 13)[..., :2].copy()
    image = Image.fromarray(np.repeat(pixels[..., :1], 3, axis=2)).convert("LA")
    image.putalpha(Image.fromarray(pixels[..., 1].copy()))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    decoded = decode_image(buffer.getvalue(), "x")
    np.testing.assert_array_equal(decoded, np.repeat(pixels[..., :1], 3, axis=2))


@pytest.mark.parametrize("options", [{}, {"transparency": 3}])
def test_palette_gives_its_colours(options):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 6
    colors = noise(1, 256)[0]
    image = Image.fromarray(indices)
    image.putpalette(colors.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "x"), colors[indices])


def test_cmyk_jpeg():
    flat = np.zeros((16, 16, 4), np.uint8)
    flat[..., 0] = 255
    buffer = io.BytesIO()
    Image.fromarray(flat, mode="CMYK").save(buffer, "JPEG", quality=98)
    decoded = decode_image(buffer.getvalue(), "x")
    assert np.abs(decoded.astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_16_bit_colour_is_scaled(extension):
    deep = np.random.default_rng(0).integers(0, 2**16, (7, 5, 3), np.uint16)
    data = cv2.imencode(extension, deep[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(data, "x"), np.rint(deep / 257.0))


def test_16_bit_gray_is_scaled():
    deep = np.random.default_rng(0).integers(0, 2**16, (7, 5), np.uint16)
    decoded = decode_image(encode(deep), "x")
    np.testing.assert_array_equal(decoded, np.rint(deep / 257.0)[..., None].repeat(3, axis=2))


def test_one_bit_image_is_black_and_white():
    bits = np.random.default_rng(0).integers(0, 2, (7, 13))
    np.testing.assert_array_equal(decode_image(gray_png(bits, 1), "x")[..., 0], bits * 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(noise(9, 13), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data, "x"), expected)
    tiff = encode(noise(9, 13), "TIFF", exif=exif)
    np.testing.assert_array_equal(decode_image(tiff, "x"), expected)
    jpeg = encode(noise(9, 13), "JPEG", exif=exif)
    assert decode_image(jpeg, "x").shape == expected.shape


def test_exif_orientation_behind_the_pixels_of_a_16_bit_png():
    deep = np.random.default_rng(0).integers(0, 2**16, (7, 5), np.uint16)
    exif = Image.Exif()
    exif[274] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = encode(deep)
    decoded = decode_image(data[:-12] + chunk + data[-12:], "x", channels=1)
    np.testing.assert_array_equal(decoded[..., 0], np.rot90(np.rint(deep / 257.0), -1))


def test_four_channels_are_read_when_asked_for():
    rgba = np.concatenate([noise(9, 13), noise(9, 13, 1)[..., :1]], axis=2)
    np.testing.assert_array_equal(decode_image(encode(rgba), "x", channels=4), rgba)
    with pytest.raises(DataError, match=r"x\.png: the image has 3 channels \(RGB\), but 4 are"):
        decode_image(encode(noise(4, 4)), "x.png", channels=4)


def test_pixel_limit_is_checked_before_decoding():
    data = encode(noise(30, 40))[:200]
    with pytest.raises(DataError, match="x: the image has 30 x 40 = 1200 pixels, over the limit"):
        decode_image(data, "x", max_pixels=1199)


def test_decompression_bomb_is_refused():
    data = bytearray(encode(noise(4, 4)))
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    with pytest.raises(DataError, match="x: the image is over the limit of 178956970 pixels"):
        decode_image(bytes(data), "x")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_truncated_image(image_format, kept):
    data = encode(noise(40, 50), image_format)
    with pytest.raises(DataError, match=r"^photo: (truncated or corrupt|not a readable image)"):
        decode_image(data[: int(kept * len(data))], "photo")


def test_png_with_damaged_pixels():
    data = bytearray(encode(noise(40, 50)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"^photo: truncated or corrupt PNG image"):
        decode_image(bytes(data), "photo")


@pytest.mark.parametrize("position", range(60, 300, 24))
def test_label_with_damaged_pixels_never_decodes_to_something_else(position, three_classes):
    ids = np.random.default_rng(0).integers(0, 3, (40, 50)).astype(np.uint8)
    data = bytearray(encode(ids))
    data[position] ^= 0x10
    with pytest.raises(DataError, match=r"^mask: truncated or corrupt PNG image \(.*checksum"):
        decode_label(bytes(data), three_classes, "mask")


def torn(data: bytes, how: str) -> bytes:
    middle = len(data) // 2
    return {
        "closed": data[:middle] + b"\xff\xd9",
        "part lost": data[:middle] + data[middle + 400 :],
        "zeros": data[:middle] + bytes(400) + data[middle + 400 :],
        "zeros to the end": data[:middle] + bytes(len(data) - middle - 2) + b"\xff\xd9",
    }[how]


@pytest.mark.parametrize("how", ["closed", "part lost", "zeros", "zeros to the end"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "L"}])
def test_jpeg_that_decoders_fill_up(how, options):
    data = torn(encode(noise(60, 80), "JPEG", **options), how)
    with pytest.raises(DataError, match=r"^photo: truncated or corrupt JPEG image \("):
        decode_image(data, "photo")


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("part", ["pixels", "place"])
def test_tiff_that_decoders_fill_up(compression, part):
    data = bytearray(encode(noise(60, 80), "TIFF", compression=compression))
    (offset,) = Image.open(io.BytesIO(data)).tag_v2[273]
    if part == "pixels":
        data[offset + 2000 : offset + 2400] = bytes(400)
    else:
        entry = data.index(struct.pack("<HHI", 273, 4, 1))
        data[entry + 8 : entry + 12] = bytes(4)
    with pytest.raises(DataError, match=r"^photo: truncated or corrupt TIFF image \(part 1 of 1"):
        decode_image(bytes(data), "photo")


def test_padding_before_the_end_of_a_jpeg_is_harmless():
    data = encode(noise(16, 16), "JPEG")
    assert decode_image(data[:-2] + bytes(9) + data[-2:], "x").shape == (16, 16, 3)


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff\xd9"])
def test_no_image_at_all(data):
    with pytest.raises(DataError, match=r"^photo: not a readable image \(\d+ bytes\)"):
        decode_image(data, "photo")


def test_trailing_bytes_after_a_jpeg_are_harmless():
    data = encode(noise(16, 16), "JPEG")
    assert decode_image(data + b"\0" * 7, "x").shape == (16, 16, 3)


def test_label_is_mapped(three_classes):
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    np.testing.assert_array_equal(decode_label(encode(ids), three_classes, "x"), ids)
    mapped = DatasetSpec("t", ("a", "b"), ((0, 0, 0),) * 2, label_map=((0, 255), (1, 0), (2, 1)))
    decoded = decode_label(encode(np.array([[0, 1, 2]], np.uint8)), mapped, "x")
    assert decoded.tolist() == [[255, 0, 1]] and decoded.dtype == np.uint8


def test_palette_label_gives_its_indices(three_classes):
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    image = Image.fromarray(ids)
    image.putpalette(noise(1, 256)[0].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert Image.open(buffer).mode == "P"
    np.testing.assert_array_equal(decode_label(buffer.getvalue(), three_classes, "x"), ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_label_bit_depths(bits, three_classes):
    ids = np.random.default_rng(0).integers(0, min(2**bits, 3), (5, 11))
    decoded = decode_label(gray_png(ids, bits), three_classes, "x")
    np.testing.assert_array_equal(decoded, ids)


def test_illegal_label_value_names_file_value_and_choices(three_classes):
    ids = np.array([[0, 7], [7, 255]], np.uint8)
    with pytest.raises(
        DataError,
        match=r"^a/b\.png: label value 7 \(2 pixels\) is not legal in dataset 'toy'; "
        r"legal values: 0\.\.2 \(classes\), 255 \(ignored\)$",
    ):
        decode_label(encode(ids), three_classes, "a/b.png")


def test_illegal_16_bit_label_value(three_classes):
    with pytest.raises(DataError, match=r"label value 256, 26001 \(2 pixels\) is not legal"):
        decode_label(gray_png(np.array([[0, 256, 26001]]), 16), three_classes, "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(noise(4, 4)), "x: the label is an RGB image, but a single channel of class ids"),
        (encode(noise(4, 4), mode="LA"), "x: the label is an LA image"),
        (encode(noise(4, 4)[..., 0], "JPEG"), "x: the label is a JPEG file, but a PNG, TIFF"),
        (encode(noise(40, 40)[..., 0])[:300], "x: truncated or corrupt PNG image"),
        (b"", r"x: not a readable image \(0 bytes\)"),
    ],
)
def test_label_of_the_wrong_kind(data, message, three_classes):
    with pytest.raises(DataError, match=message):
        decode_label(data, three_classes, "x")


def test_pair_of_different_size(three_classes):
    label = encode(np.zeros((5, 4), np.uint8))
    with pytest.raises(
        DataError,
        match=r"^l\.png: the label is 5 x 4 pixels \(height x width\), "
        r"but its image i\.png is 4 x 5$",
    ):
        check_pair(encode(noise(4, 5)), label, three_classes, "i.png", "l.png")


def test_pair_that_disagrees_about_orientation(three_classes):
    exif = Image.Exif()
    exif[274] = 6
    image = encode(noise(4, 5), exif=exif)
    with pytest.raises(DataError, match="is 5 x 4 after its EXIF orientation is applied"):
        check_pair(image, encode(np.zeros((4, 5), np.uint8)), three_classes, "i", "l")
    pixels, ids = check_pair(image, encode(np.zeros((5, 4), np.uint8)), three_classes, "i", "l")
    assert pixels.shape == (5, 4, 3) and ids.shape == (5, 4)


def test_packed_labels_are_read_back_and_damage_is_named():
    label = noise(6, 9)[..., 0]
    packed = pack_ids(label)
    np.testing.assert_array_equal(unpack_ids(packed, "x"), label)
    for damaged in (packed[:4], packed[:-3], packed[:9] + b"?" + packed[10:], packed[4:8] * 2):
        with pytest.raises(DataError, match="x: the packed label is damaged"):
            unpack_ids(damaged, "x")
