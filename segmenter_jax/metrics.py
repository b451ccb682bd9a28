"""Segmentation metrics, all from one confusion matrix counted in 64-bit integers."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


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


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationReport:
    """Metrics of a split.

    Attributes:
      matrix: int64 (K, K), see `confusion_matrix`.
      classes: K names.
      protocol: how predictions were made; printed beside the numbers.
      num_images: images counted.
    """

    matrix: np.ndarray
    classes: tuple[str, ...]
    protocol: str
    num_images: int

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

    def totals(self) -> dict[str, float]:
        """The three numbers of a split by name."""
        names = ("mean_iou", "pixel_accuracy", "mean_accuracy")
        return {name: getattr(self, name) for name in names}

    def rows(self) -> list[dict[str, Any]]:
        """One row per class: id, name, IoU, accuracy, share of the pixels."""
        columns = zip(self.classes, self.iou, self.accuracy, self.pixel_share, strict=True)
        return [
            {"id": i, "class": n, "iou": float(u), "accuracy": float(a), "pixel_share": float(s)}
            for i, (n, u, a, s) in enumerate(columns)
        ]

    def table(self) -> str:
        """Per-class table and summary as text, in percent."""
        cells = [
            (
                str(r["id"]),
                r["class"],
                *(_percent(r[k]) for k in ("iou", "accuracy", "pixel_share")),
            )
            for r in self.rows()
        ]
        lines = _align([("id", "class", "IoU", "accuracy", "pixels"), *cells])
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """The totals in percent, what was counted, and the protocol, as one line."""
        totals = ", ".join(
            f"{name} {_percent(value)}"
            for name, value in (
                ("mean IoU", self.mean_iou),
                ("pixel accuracy", self.pixel_accuracy),
                ("mean accuracy", self.mean_accuracy),
            )
        )
        counted = f"{totals} (%); {self.num_images} images, {self.num_pixels} pixels"
        return f"{counted}; {self.protocol}" if self.protocol else counted

    def to_json(self) -> str:
        """Everything, the confusion matrix included; NaN becomes null."""
        fields = {
            "protocol": self.protocol,
            "num_images": self.num_images,
            "num_pixels": self.num_pixels,
            **self.totals(),
            "classes": self.rows(),
            "confusion_matrix": self.matrix.tolist(),
        }
        return json.dumps(_without_nan(fields), indent=2, allow_nan=False) + "\n"

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


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of equal width; all but the class name flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i == 1 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
