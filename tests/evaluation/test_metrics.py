"""Confusion matrices and reports against hand-computed values."""

import csv
import io
import json
import math

import numpy as np
import pytest

from segmenter_jax.evaluation.metrics import (
    SegmentationReport,
    boundary_counts,
    calibration_counts,
    confusion_matrix,
)

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


def test_boundary_regions_are_the_outer_ring_of_a_class():
    # A diagonal of 28 pixels: boundaries are 1 pixel wide.
    label = np.zeros((20, 20), np.uint8)
    label[5:15, 5:15] = 1
    found = boundary_counts(label, label, 3, 255)
    ring = 10 * 10 - 8 * 8
    outer, inner = 20 * 20 - 18 * 18, 12 * 12 - 10 * 10
    np.testing.assert_array_equal(found, [[outer + inner, ring, 0]] * 2)


def test_boundaries_are_two_percent_of_the_diagonal_wide_in_the_larger_direction():
    # A diagonal of 180 pixels: 4 of them; the longer side alone would make it 3.
    label = np.zeros((100, 150), np.uint8)
    label[30:70, 50:90] = 1
    found = boundary_counts(label, label, 2, 255)
    outer = 100 * 150 - 92 * 142
    np.testing.assert_array_equal(found, [[outer + 48**2 - 40**2, 40**2 - 32**2]] * 2)


def test_boundary_iou_sees_a_shift_that_the_iou_hardly_does():
    label, shifted = np.zeros((2, 20, 20), np.uint8)
    label[:, :10], shifted[:, :11] = 1, 1
    counts = boundary_counts(label, shifted, 2, 255)
    matrix = confusion_matrix(label, shifted, 2, 255)
    report = SegmentationReport(matrix, ("a", "b"), "", 1, boundary=counts)
    assert report.iou[1] == pytest.approx(10 / 11)
    # Class b, label: ring of 20 x 10; shifted: ring of 20 x 11. Common: three sides of the former.
    common = 10 + 10 + 18 + 0
    assert counts[0, 1] == common
    assert counts[1, 1] == (20 * 10 - 18 * 8) + (20 * 11 - 18 * 9) - common
    assert report.totals()["mean_boundary_iou"] == pytest.approx(report.boundary_iou.mean())
    assert "boundary IoU" in report.table().splitlines()[0]
    assert "mean boundary IoU" in report.summary()


def test_ignored_pixels_have_no_boundaries():
    label, prediction = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    label[:, 0], prediction[:, 0] = 255, 1
    counts = boundary_counts(label, prediction, 2, 255)
    assert counts[:, 1].tolist() == [0, 0]


def test_bins_of_confidence_are_equal_and_certainty_is_in_the_last():
    confidence = np.array([[0, 0.066, 0.067, 0.5, 0.93, 0.934, 1]], np.float32)
    ids = np.zeros(confidence.shape, int)
    pixels = calibration_counts(ids, ids, confidence, 255)[0]
    assert np.repeat(np.arange(15), pixels).tolist() == [0, 0, 1, 7, 13, 14, 14]


def test_calibration_error_is_the_mean_gap_between_confidence_and_accuracy():
    label = np.array([[0, 0, 1, 1, 255]])
    ids = np.array([[0, 1, 1, 1, 0]])
    confidence = np.array([[0.9, 0.9, 0.5, 0.5, 1.0]], np.float32)
    counts = calibration_counts(label, ids, confidence, 255)
    assert counts.dtype == np.int64 and counts[0].sum() == 4
    matrix = confusion_matrix(label, ids, 2, 255)
    report = SegmentationReport(matrix, ("a", "b"), "", 1, calibration=counts)
    # Half right at 0.9, all right at 0.5.
    assert report.calibration_error == pytest.approx((0.4 + 0.5) / 2, abs=1e-6)
    confidences, accuracies, share = report.reliability()
    assert confidences[13] == pytest.approx(0.9) and accuracies[13] == 0.5 and share[13] == 0.5
    assert np.isnan(confidences[0])
    assert json.loads(report.to_json())["reliability"][7]["accuracy"] == 1.0
