"""Metrics of binary segmentation per image, as glass and saliency benchmarks average them."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.runtime.tables import align

# Pixels of at least this probability are foreground.
_FOREGROUND = 0.5


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
    label: np.ndarray, probability: np.ndarray, ignore_label: int = 255
) -> BinaryScore:
    """Compares the foreground of one image with its label.

    Args:
      label: integers (H, W): 0, 1 or `ignore_label`.
      probability: float (H, W), of class 1, in [0, 1].
      ignore_label: label value of pixels that count nowhere.

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
    truth, found = label == 1, probability >= _FOREGROUND
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


class BinaryScores:
    """Scores the results of an evaluation as they pass.

    Args:
      spec: of a dataset whose classes are background and foreground.

    Raises:
      ValueError: the dataset has another number of classes.
    """

    def __init__(self, spec: DatasetSpec):
        if spec.num_classes != 2:
            raise ValueError(
                "binary metrics are for a background and a foreground class; dataset "
                f"{spec.name!r} has {spec.num_classes} classes"
            )
        self._spec = spec
        self._scores: list[BinaryScore] = []

    def collect(
        self, results: Iterable[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]
    ) -> Iterator[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]:
        """Passes on examples with "label" and their maps with "probs", float (H, W, 2)."""
        for example, maps in results:
            probability = maps["probs"][..., 1]
            score = binary_score(example["label"], probability, self._spec.ignore_label)
            self._scores.append(score)
            yield example, maps

    def means(self) -> dict[str, float | None]:
        """As `mean_binary_scores`, with None where there is no image."""
        means = mean_binary_scores(self._scores)
        return {name: None if math.isnan(value) else value for name, value in means.items()}

    def table(self) -> str:
        """The means as text."""
        means, name = self.means(), self._spec.class_names[1]
        rows = [("averaged over images", "images", "IoU %", "MAE")]
        for suffix, title in (("", "all"), ("_with", f"with {name}"), ("_without", f"no {name}")):
            if count := means[f"images{suffix}"]:
                iou, mae = means[f"iou{suffix}"], means[f"mae{suffix}"]
                rows.append((title, str(count), f"{100 * iou:.2f}", f"{mae:.4f}"))
        return "\n".join(align(rows))
