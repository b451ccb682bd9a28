"""A segmentation as a piece of a web page."""

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

from segmenter_jax.pictures.viewer import message_html, viewer_html

COLORS = ((200, 0, 0), (0, 100, 0), (0, 0, 50))
IMAGE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
IDS = np.array([[0] * 6] * 3 + [[2] * 6])
CONFIDENCE = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)


def pictures(page):
    """Every picture in a page by its class or the name that it is downloaded under."""
    found = re.findall(
        r'(?:class="([\w-]+)"|download="([^"]+)")[^>]*? (?:src|href)="data:[^,]+,([^"]+)"', page
    )
    return {a or b: Image.open(io.BytesIO(base64.b64decode(data))) for a, b, data in found}


def links_first(page):
    """Attributes of links in the order of those of pictures."""
    return re.sub(r'<a (href="[^"]+") (download="[^"]+")', r"<a \2 \1", page)


@pytest.fixture
def page():
    return viewer_html(IMAGE, IDS, CONFIDENCE, ("sky", "sea", "road"), COLORS, "beach")


def test_masks_to_download_hold_ids_and_colours_at_the_size_of_the_picture(page):
    found = pictures(links_first(page))
    np.testing.assert_array_equal(found["beach_ids.png"], IDS)
    np.testing.assert_array_equal(found["beach_colors.png"], IDS)
    painted = np.asarray(found["beach_colors.png"].convert("RGB"))
    np.testing.assert_array_equal(painted, np.array(COLORS)[IDS])


def test_a_pixel_tells_its_class_and_confidence(page):
    values = np.asarray(pictures(page)["seg-values"]).astype(int)
    np.testing.assert_array_equal(values[..., 0] + 256 * values[..., 1], IDS)
    np.testing.assert_allclose(values[..., 2] / 255, CONFIDENCE, atol=0.5 / 255)


def test_the_legend_has_the_shares_of_the_classes_that_are_there(page):
    rows = re.findall(r"<li>.*?rgb(\(.*?\)).*?</i>(.*?)<b>(.*?)</b></li>", page)
    assert rows == [("(200, 0, 0)", "sky", "75.0 %"), ("(0, 0, 50)", "road", "25.0 %")]


def test_more_classes_than_a_byte_holds():
    classes, ids = [f"class {i}" for i in range(300)], IDS + 290
    colors = [(i % 256, i // 256, 7) for i in range(300)]
    found = pictures(links_first(viewer_html(IMAGE, ids, CONFIDENCE, classes, colors, "p")))
    np.testing.assert_array_equal(found["p_ids.png"], ids)
    np.testing.assert_array_equal(found["p_colors.png"], np.array(colors)[ids])
    values = np.asarray(found["seg-values"]).astype(int)
    np.testing.assert_array_equal(values[..., 0] + 256 * values[..., 1], ids)


def test_large_pictures_are_shown_smaller_and_downloaded_whole():
    image, ids = np.zeros((10, 3200, 3), np.uint8), np.zeros((10, 3200), np.int32)
    page = viewer_html(image, ids, np.ones_like(ids), ("sky",), COLORS[:1], "p")
    found = pictures(links_first(page))
    assert found["seg-picture"].size == found["seg-values"].size == (1600, 5)
    assert found["p_ids.png"].size == (3200, 10)


def test_no_text_of_a_model_or_file_becomes_part_of_the_page():
    nasty = "\"><img src=x onerror='alert(1)'>&"
    shown = viewer_html(IMAGE, IDS, CONFIDENCE, (nasty, "sea", "road"), COLORS, nasty)
    for page in (shown, message_html(nasty)):
        assert "onerror" in page and "<img src=x" not in page and "onerror='" not in page
    assert html.escape(nasty) in message_html(nasty)
