"""Figures and contact sheets are drawn, with what was asked for on them."""

import json

import numpy as np
import pytest

from segmenter_jax.pictures.figures import (
    attention_figure,
    calibration_figure,
    confusion_figure,
    curves_figure,
    read_metrics,
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


def test_metrics_are_read_past_a_line_cut_short(tmp_path):
    lines = [{"step": 1, "time": 0.0, "train/loss": 2.0}, {"step": 2, "train/loss": None}]
    text = "\n".join(map(json.dumps, [*lines, {"step": 3, "train/loss": 1.0}]))
    (tmp_path / "metrics.jsonl").write_text(text + '\n{"step": 4, "tra')
    assert read_metrics(tmp_path) == {"train/loss": ([1, 3], [2.0, 1.0])}


def test_folders_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not the workdir of a run"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no numbers yet"):
        read_metrics(tmp_path)


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
