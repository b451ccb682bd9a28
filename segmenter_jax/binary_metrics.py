"""Metrics of binary segmentation per image, as glass and saliency benchmarks average them."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class BinaryScore:
    """Metrics of one image.

    Attributes:
      iou: intersection over union of the foreground; 1 where both are empty, NaN where every pixel
        is ignored.
      mae: mean absolute difference of foreground probability and label, in [0, 1].
      has_foreground: whether the label shows any.
    """

    iou: float
    mae: float
    has_foreground: bool


def binary_score(
    label: np.ndarray, probability: np.ndarray, ignore_label: int = 255, threshold: float = 0.5
) -> BinaryScore:
    """Compares the foreground of one image with its label.

    Args:
      label: integers (H, W): 0, 1 or `ignore_label`.
      probability: float (H, W), of class 1, in [0, 1].
      ignore_label: label value of pixels that count nowhere.
      threshold: pixels of at least this probability are foreground.

    Raises:
      ValueError: shapes differ, or a label is neither 0, 1 nor `ignore_label`.
    """
    if label.shape != probability.shape:
        raise ValueError(f"label {label.shape} and probability {probability.shape} differ in shape")
    counted = label != ignore_label
    label, probability = label[counted], probability[counted].astype(np.float64)
    if label.size and (label.min() < 0 or label.max() > 1):
        wrong = label[(label < 0) | (label > 1)][0]
        raise ValueError(f"label has value {wrong}, which is neither 0, 1 nor {ignore_label}")
    if not label.size:
        return BinaryScore(math.nan, math.nan, False)
    truth, found = label == 1, probability >= threshold
    union = np.count_nonzero(truth | found)
    iou = np.count_nonzero(truth & found) / union if union else 1.0
    return BinaryScore(iou, float(np.abs(probability - truth).mean()), bool(truth.any()))


def mean_binary_scores(scores: Iterable[BinaryScore]) -> dict[str, float]:
    """Averages over images, all and apart by whether there is foreground.

    Args:
      scores: one per image.

    Returns:
      "iou", "mae" and "images", for all images, and with "_with" and "_without" appended for those
      with and without foreground. Means over no image are NaN.
    """
    scores = [score for score in scores if not math.isnan(score.mae)]
    groups = {
        "": scores,
        "_with": [score for score in scores if score.has_foreground],
        "_without": [score for score in scores if not score.has_foreground],
    }
    means: dict[str, float] = {}
    for suffix, group in groups.items():
        means[f"images{suffix}"] = len(group)
        for name in ("iou", "mae"):
            values = [getattr(score, name) for score in group]
            means[f"{name}{suffix}"] = float(np.mean(values)) if values else math.nan
    return means
