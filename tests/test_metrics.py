"""Confusion matrices and reports against hand-computed values."""

import csv
import io
import json
import math

import numpy as np
import pytest

from segmenter_jax.metrics import SegmentationReport, confusion_matrix

LABEL = np.array([[0, 0, 1], [1, 255, 3]], np.uint8)
PREDICTION = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
CLASSES = ("sky", "road", "car", "pole")


@pytest.fixture
def report():
    matrix = confusion_matrix(LABEL, PREDICTION, 4, 255)
    return SegmentationReport(matrix, CLASSES, "window 64, stride 32", 1)


def test_confusion_matrix_has_labels_as_rows_and_leaves_ignored_pixels_out():
    expected = np.zeros((4, 4), np.int64)
    expected[0, 0], expected[0, 1], expected[1, 1], expected[3, 0] = 1, 1, 2, 1
    matrix = confusion_matrix(LABEL, PREDICTION, 4, 255)
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.dtype == np.int64


def test_prediction_under_ignored_pixels_may_be_anything():
    matrix = confusion_matrix(np.array([0, 255]), np.array([1, 77]), 2, 255)
    np.testing.assert_array_equal(matrix, [[0, 1], [0, 0]])


def test_confusion_matrix_of_nothing_is_zero():
    assert confusion_matrix(np.full(4, 255), np.zeros(4, int), 3, 255).sum() == 0


@pytest.mark.parametrize(
    ("label", "prediction", "message"),
    [
        ([0, 3], [0, 0], r"label has value 3, which is not a class 0\.\.2 nor ignore_label=255"),
        ([0, 1], [0, 9], r"prediction has value 9, which is not a class 0\.\.2$"),
        ([0, -1], [0, 0], r"label has value -1"),
        ([0, 1], [0], r"label \(2,\) and prediction \(1,\) differ in shape"),
    ],
)
def test_wrong_values_are_refused(label, prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(label), np.array(prediction), 3, 255)


def test_report_numbers_are_those_computed_by_hand(report):
    np.testing.assert_allclose(report.iou, [1 / 3, 2 / 3, np.nan, 0])
    np.testing.assert_allclose(report.accuracy, [1 / 2, 1, np.nan, 0])
    np.testing.assert_allclose(report.pixel_share, [0.4, 0.4, 0, 0.2])
    assert report.mean_iou == pytest.approx(1 / 3)
    assert report.mean_accuracy == pytest.approx(1 / 2)
    assert report.pixel_accuracy == pytest.approx(3 / 5)
    assert report.num_pixels == 5


def test_class_that_is_only_predicted_counts_in_mean_iou_but_not_in_mean_accuracy():
    report = SegmentationReport(np.array([[3, 1], [0, 0]]), ("a", "b"), "", 1)
    assert report.mean_iou == pytest.approx((3 / 4 + 0) / 2)
    assert report.mean_accuracy == pytest.approx(3 / 4)


def test_counts_beyond_32_bits_stay_exact():
    big = 2**53 - 1
    report = SegmentationReport(np.array([[big, 1], [0, 0]]), ("a", "b"), "", 1)
    assert report.num_pixels == 2**53


def test_report_of_an_empty_split_is_nan_everywhere():
    report = SegmentationReport(np.zeros((2, 2), np.int64), ("a", "b"), "", 1)
    assert all(math.isnan(value) for value in report.totals().values())
    assert json.loads(report.to_json())["mean_iou"] is None


def test_table_names_classes_totals_and_protocol(report):
    lines = report.table().splitlines()
    assert lines[0].split() == ["id", "class", "IoU", "accuracy", "pixels"]
    assert lines[2].split() == ["0", "sky", "33.33", "50.00", "40.00"]
    assert lines[4].split() == ["2", "car", "-", "-", "0.00"]
    assert lines[-1] == report.summary()
    assert report.summary() == (
        "mean IoU 33.33, pixel accuracy 60.00, mean accuracy 50.00 (%); 1 images, 5 pixels; "
        "window 64, stride 32"
    )


def test_json_and_csv_hold_the_same_rows(report):
    fields = json.loads(report.to_json())
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert fields["confusion_matrix"] == report.matrix.tolist()
    assert fields["protocol"] == "window 64, stride 32"
    assert [row["class"] for row in rows] == list(CLASSES)
    assert rows[2]["iou"] == "" and fields["classes"][2]["iou"] is None
    assert float(rows[1]["iou"]) == fields["classes"][1]["iou"]


def test_matrix_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"matrix \(2, 2\) is not for 4 classes"):
        SegmentationReport(np.zeros((2, 2)), CLASSES, "", 1)
