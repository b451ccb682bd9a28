"""The pictures of a split that a model does worst on."""

import numpy as np
from PIL import Image

from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.evaluation.metrics import SegmentationReport
from segmenter_jax.inference.windows import Example
from segmenter_jax.pictures import legend, overlay
from segmenter_jax.pictures.overlays import as_rgb
from segmenter_jax.pictures.sheets import SheetEntry, contact_sheet, stack, thumbnail


class WorstImages:
    """Keeps the images of the smallest mean IoU, as image, label and prediction side by side."""

    def __init__(self, spec: DatasetSpec, count: int = 12, side: int = 240):
        self._spec, self._count, self._side = spec, count, side
        self._worst: list[tuple[float, SheetEntry]] = []

    def add(self, example: Example, ids: np.ndarray, matrix: np.ndarray) -> None:
        """Takes a prediction into account; see `scoring.OnResult`."""
        spec, label = self._spec, example["label"]
        mean_iou = SegmentationReport(matrix, spec.class_names, "", 1).mean_iou
        if np.isnan(mean_iou):
            return
        if len(self._worst) == self._count and mean_iou >= self._worst[-1][0]:
            return
        image = example["image"]
        views = as_rgb(image), *(overlay(image, m, spec.colors, 0.7) for m in (label, ids))
        # Kept small: all of them are in memory until the end.
        small = [thumbnail(view, self._side) for view in views]
        entry = SheetEntry(small, f"mean IoU {100 * mean_iou:.1f}   {example['name']}")
        self._worst = sorted([*self._worst, (mean_iou, entry)], key=lambda w: w[0])[: self._count]

    def sheet(self) -> Image.Image | None:
        """The contact sheet, worst first; None if no image had a labelled pixel."""
        if not self._worst:
            return None
        sheet = contact_sheet([entry for _, entry in self._worst], 2, self._side)
        names = legend(
            range(self._spec.num_classes),
            self._spec.class_names,
            self._spec.colors,
            columns=max(1, sheet.width // 180),
        )
        return stack([sheet, names])
