"""Segmentation metrics from sums of 64-bit integers: confusion matrix, boundaries, calibration."""

import csv
import dataclasses
import io
import json
import math
from typing import Any

import cv2
import numpy as np

from segmenter_jax.runtime.tables import align

# Width of a boundary, as a share of the image's diagonal.
_BOUNDARY_WIDTH = 0.02

CONFIDENCE_BINS = 15
# Confidences are summed in this unit, so that sums are exact.
_CONFIDENCE_UNIT = 1e-6


def confusion_matrix(
    label: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Counts pixels; ignored pixels count nowhere.

    Args:
      label: integers, any shape; 0..K-1 or `ignore_label`.
      prediction: integers of the same shape, 0..K-1 wherever the label is not ignored.
      num_classes: K.
      ignore_label: label value that is left out.

    Returns:
      int64 (K, K); row = label, column = prediction.

    Raises:
      ValueError: shapes differ, or a value is outside 0..K-1.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"label {label.shape} and prediction {prediction.shape} differ in shape")
    counted = label != ignore_label
    label, prediction = label[counted], prediction[counted]
    for name, values in (("label", label), ("prediction", prediction)):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            wrong = values[(values < 0) | (values >= num_classes)][0]
            raise ValueError(
                f"{name} has value {wrong}, which is not a class 0..{num_classes - 1}"
                + (f" nor ignore_label={ignore_label}" if name == "label" else "")
            )
    pairs = label.astype(np.int64) * num_classes + prediction
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def boundary_counts(
    label: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Counts pixels near the boundaries of each class; ignored pixels count nowhere.

    A class's boundary region is the part of it within 2 % of the image's diagonal of its contour;
    the edge of the image belongs to the contour.

    Args:
      label, prediction: integers (H, W), see `confusion_matrix`.
      num_classes: K.
      ignore_label: label value that is left out.

    Returns:
      int64 (2, K): pixels in both regions, pixels in one of them or both.

    Source: Cheng et al., "Boundary IoU", 2021.
    """
    counted = label != ignore_label
    width = max(round(_BOUNDARY_WIDTH * math.hypot(*label.shape)), 1)
    counts = np.zeros((2, num_classes), np.int64)
    for k in np.union1d(label[counted], prediction[counted]):
        regions = [_boundary(ids == k, width) & counted for ids in (label, prediction)]
        counts[:, k] = (regions[0] & regions[1]).sum(), (regions[0] | regions[1]).sum()
    return counts


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The part of a mask within `width` pixels, in the larger of both directions, of its end."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_C, 3)[1:-1, 1:-1]
    return mask & (distance <= width)


def calibration_counts(
    label: np.ndarray, prediction: np.ndarray, confidence: np.ndarray, ignore_label: int
) -> np.ndarray:
    """Sorts pixels into 15 equal bins of confidence; ignored pixels count nowhere.

    Args:
      label, prediction: integers (H, W).
      confidence: float (H, W) in 0..1, probability of the predicted class.
      ignore_label: label value that is left out.

    Returns:
      int64 (3, bins): pixels, pixels predicted right, sum of the confidences in millionths.
    """
    counted = label != ignore_label
    confidence = confidence[counted].astype(np.float64)
    bins = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    right = label[counted] == prediction[counted]
    rows = (None, right, np.rint(confidence / _CONFIDENCE_UNIT))
    counts = [np.bincount(bins, weights, minlength=CONFIDENCE_BINS) for weights in rows]
    return np.rint(counts).astype(np.int64)


# Columns of the printed table, in order.
_HEADINGS = {
    "iou": "IoU",
    "boundary_iou": "boundary IoU",
    "accuracy": "accuracy",
    "pixel_share": "pixels",
}


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationReport:
    """Metrics of a split.

    Attributes:
      matrix: int64 (K, K), see `confusion_matrix`.
      classes: K names.
      protocol: how predictions were made; printed beside the numbers.
      num_images: images counted.
      boundary: int64 (2, K), summed `boundary_counts`; None where they were not counted.
      calibration: int64 (3, bins), summed `calibration_counts`; None where they were not counted.
    """

    matrix: np.ndarray
    classes: tuple[str, ...]
    protocol: str
    num_images: int
    boundary: np.ndarray | None = None
    calibration: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.matrix.shape != (len(self.classes),) * 2:
            raise ValueError(f"matrix {self.matrix.shape} is not for {len(self.classes)} classes")

    @property
    def num_pixels(self) -> int:
        """Pixels counted."""
        return int(self.matrix.sum())

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union per class; NaN where the union is empty."""
        hits = np.diag(self.matrix)
        return _ratio(hits, self.matrix.sum(0) + self.matrix.sum(1) - hits)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of each class's pixels that are found; NaN where there are none."""
        return _ratio(np.diag(self.matrix), self.matrix.sum(1))

    @property
    def pixel_share(self) -> np.ndarray:
        """Share of the counted pixels that each class's labels take."""
        return _ratio(self.matrix.sum(1), np.full(len(self.matrix), self.matrix.sum()))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are right; NaN if there are none."""
        return float(_ratio(np.trace(self.matrix), self.matrix.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean of `accuracy` over the classes that occur in the labels."""
        return _nan_mean(self.accuracy)

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that occur in labels or predictions."""
        return _nan_mean(self.iou)

    @property
    def boundary_iou(self) -> np.ndarray:
        """Boundary IoU per class; NaN where neither labels nor predictions have boundaries."""
        return _ratio(self.boundary[0], self.boundary[1])

    @property
    def mean_boundary_iou(self) -> float:
        """Mean of `boundary_iou` over the classes that occur in labels or predictions."""
        return _nan_mean(self.boundary_iou)

    def reliability(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean confidence, accuracy, NaN in empty bins, and share of the pixels, by bin."""
        pixels, right, confidence = self.calibration
        share = _ratio(pixels, np.full(len(pixels), pixels.sum()))
        return _ratio(confidence * _CONFIDENCE_UNIT, pixels), _ratio(right, pixels), share

    @property
    def calibration_error(self) -> float:
        """Mean over the pixels of how far confidence and accuracy of their bin differ, or NaN."""
        pixels, right, confidence = self.calibration
        gaps = np.abs(confidence * _CONFIDENCE_UNIT - right)
        return float(_ratio(gaps.sum(), pixels.sum()))

    def totals(self) -> dict[str, float]:
        """The numbers of a split by name: three, and what else was counted."""
        names = ["mean_iou", "pixel_accuracy", "mean_accuracy"]
        if self.boundary is not None:
            names.append("mean_boundary_iou")
        if self.calibration is not None:
            names.append("calibration_error")
        return {name: getattr(self, name) for name in names}

    def rows(self) -> list[dict[str, Any]]:
        """One row per class: id, name, IoU, accuracy, share of the pixels, boundary IoU."""
        columns = {"iou": self.iou, "accuracy": self.accuracy, "pixel_share": self.pixel_share}
        if self.boundary is not None:
            columns["boundary_iou"] = self.boundary_iou
        return [
            {"id": i, "class": name} | {key: float(values[i]) for key, values in columns.items()}
            for i, name in enumerate(self.classes)
        ]

    def table(self) -> str:
        """Per-class table and summary as text, in percent."""
        rows = self.rows()
        names = [name for name in _HEADINGS if name in rows[0]]
        cells = [(str(r["id"]), r["class"], *(_percent(r[name]) for name in names)) for r in rows]
        lines = align([("id", "class", *(_HEADINGS[name] for name in names)), *cells])
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """The totals in percent, what was counted, and the protocol, as one line."""
        totals = ", ".join(
            f"{name.replace('_', ' ').replace('iou', 'IoU')} {_percent(value)}"
            for name, value in self.totals().items()
        )
        counted = f"{totals} (%); {self.num_images} images, {self.num_pixels} pixels"
        return f"{counted}; {self.protocol}" if self.protocol else counted

    def to_json(self, **more: Any) -> str:
        """Everything, the confusion matrix included, and more fields; NaN becomes null."""
        fields = {
            "protocol": self.protocol,
            "num_images": self.num_images,
            "num_pixels": self.num_pixels,
            **self.totals(),
            "classes": self.rows(),
            **({} if self.calibration is None else {"reliability": self._reliability_rows()}),
            "confusion_matrix": self.matrix.tolist(),
            **more,
        }
        return json.dumps(_without_nan(fields), indent=2, allow_nan=False) + "\n"

    def _reliability_rows(self) -> list[dict[str, float]]:
        names = ("confidence", "accuracy", "pixel_share")
        return [
            dict(zip(names, map(float, row), strict=True))
            for row in zip(*self.reliability(), strict=True)
        ]

    def to_csv(self) -> str:
        """The per-class table; an empty cell stands for NaN."""
        text = io.StringIO()
        rows = _without_nan(self.rows())
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def _nan_mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
