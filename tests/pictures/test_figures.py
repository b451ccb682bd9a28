"""Figures and contact sheets are drawn, with what was asked for on them."""

import numpy as np

from segmenter_jax.pictures.figures import (
    attention_figure,
    calibration_figure,
    confusion_figure,
    curves_figure,
)
from segmenter_jax.pictures.sheets import SheetEntry, contact_sheet, stack


def colors_of(picture):
    return {tuple(c) for c in np.asarray(picture).reshape(-1, 3).tolist()}


def test_attention_figure_grows_by_a_panel_for_each_map():
    image = np.full((64, 96, 3), 128, np.uint8)
    values = np.eye(4, 6)
    one = attention_figure(image, {"head 0": values}, 16, "title", (0, 5))
    four = attention_figure(image, {f"head {i}": values for i in range(4)}, 16, "title")
    assert four.width > one.width and four.height > one.height


def test_runs_have_colors_of_their_own():
    runs = {
        name: {"train/loss": ([1, 2, 3], [2.0, 1.0, level]), "eval/mean_iou": ([3], [0.5])}
        for name, level in (("a", 0.5), ("b", 0.1))
    }
    # Blue and vermilion of the palette.
    assert {(0, 114, 178), (213, 94, 0)} <= colors_of(curves_figure(runs))


def test_confusion_figure_takes_empty_classes_and_many():
    small = confusion_figure(np.array([[8, 2], [0, 0]]), ("sky", "road"), "title")
    large = confusion_figure(np.eye(60, dtype=int), [f"class {i}" for i in range(60)], "title")
    assert large.width > small.width


def test_calibration_figure_takes_empty_bins():
    values = np.array([np.nan, 0.4, 0.9])
    assert calibration_figure(values, values, np.array([0, 0.5, 0.5]), "title").mode == "RGB"


def test_contact_sheets_hold_every_picture():
    reds = [np.full((20, 30 + 10 * i, 3), (200 + i, 0, 0), np.uint8) for i in range(3)]
    names = ("short", "a name that is much too long for the place that it has", "")
    entries = [SheetEntry((red, red), name) for red, name in zip(reds, names, strict=True)]
    sheet = contact_sheet(entries, columns=2, width=60)
    assert {(200, 0, 0), (201, 0, 0), (202, 0, 0)} <= colors_of(sheet)
    assert contact_sheet(entries, columns=3, width=60).height < sheet.height
    assert stack([sheet, sheet]).height == 2 * sheet.height
