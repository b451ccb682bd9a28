"""Overlays and legends."""

import numpy as np
import pytest

from segmenter_jax.pictures import colorize, legend, overlay, palette_image

COLORS = ((200, 0, 0), (0, 100, 0))


def test_overlay_blends_classes_and_keeps_pixels_of_no_class():
    image = np.full((1, 3, 3), 100, np.uint8)
    result = overlay(image, np.array([[0, 1, 255]], np.uint8), COLORS, alpha=0.25)
    np.testing.assert_array_equal(result, [[[125, 75, 75], [75, 100, 75], [100, 100, 100]]])


def test_overlay_shows_one_channel_as_grey_and_the_first_three_of_more():
    ids = np.full((2, 2), 255)
    grey = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    np.testing.assert_array_equal(overlay(grey, ids, COLORS), np.repeat(grey, 3, axis=2))
    thermal = np.arange(16, dtype=np.uint8).reshape(2, 2, 4)
    np.testing.assert_array_equal(overlay(thermal, ids, COLORS), thermal[..., :3])


def test_overlay_refuses_other_sizes_and_weights():
    image, ids = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"image \(4, 4\) and ids \(2, 4\) differ in size"):
        overlay(image, ids[:2], COLORS)
    with pytest.raises(ValueError, match=r"alpha must be in 0\.\.1, got 1\.5"):
        overlay(image, ids, COLORS, alpha=1.5)


def test_palette_image_holds_ids_and_shows_colors():
    ids = np.array([[0, 1], [1, 0]], np.uint8)
    picture = palette_image(ids, COLORS)
    np.testing.assert_array_equal(np.asarray(picture), ids)
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colorize(ids, COLORS))


def test_legend_has_a_swatch_for_each_class_shown_and_no_other():
    shown = {tuple(c) for c in np.asarray(legend([1], ("a", "b"), COLORS)).reshape(-1, 3)}
    assert COLORS[1] in shown and COLORS[0] not in shown


def test_legend_columns_fill_top_to_bottom():
    narrow = legend([0, 1], ("a", "b"), COLORS)
    wide = legend([0, 1], ("a", "b"), COLORS, columns=2)
    assert wide.width == 2 * narrow.width and wide.height < narrow.height
