"""Scores predictions, wherever they come from: counts over a split, and files of class ids."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from segmenter_jax.data.images import decode_label
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.evaluation.metrics import (
    CONFIDENCE_BINS,
    SegmentationReport,
    boundary_counts,
    calibration_counts,
    confusion_matrix,
)
from segmenter_jax.evaluation.submission import submission_name
from segmenter_jax.inference.sliding_window import SlidingWindow

Example = Mapping[str, Any]


def score(
    results: Iterable[tuple[Example, Mapping[str, np.ndarray]]],
    spec: DatasetSpec,
    protocol: str,
    on_result: Callable[[Example, np.ndarray], None] | None = None,
    boundary: bool = False,
    calibration: bool = False,
) -> SegmentationReport:
    """Counts predictions, wherever they come from.

    Args:
      results: examples with "label", each with its maps: "ids", and "confidence" for calibration.
      spec: classes and ignored label.
      protocol: how predictions were made.
      on_result: called with each example and its class ids (H, W).
      boundary: also count boundaries, which takes longer.
      calibration: also compare confidence and accuracy.

    Returns:
      The report, over all processes.
    """
    matrix, edges, bins, images = 0, 0, 0, 0
    for example, maps in results:
        label, ids = example["label"], maps["ids"]
        matrix += confusion_matrix(label, ids, spec.num_classes, spec.ignore_label)
        if boundary:
            edges += boundary_counts(label, ids, spec.num_classes, spec.ignore_label)
        if calibration:
            bins += calibration_counts(label, ids, maps["confidence"], spec.ignore_label)
        images += 1
        if on_result is not None:
            on_result(example, ids)
    k = spec.num_classes
    # Every process sums arrays of the same shapes, also one that had no examples.
    counts = {"images": np.full(1, images), "matrix": np.zeros((k, k), np.int64) + matrix}
    if boundary:
        counts["edges"] = np.zeros((2, k), np.int64) + edges
    if calibration:
        counts["bins"] = np.zeros((3, CONFIDENCE_BINS), np.int64) + bins
    counts = {name: sum_over_processes(array) for name, array in counts.items()}
    return SegmentationReport(
        counts["matrix"],
        spec.class_names,
        protocol,
        int(counts["images"][0]),
        counts.get("edges"),
        counts.get("bins"),
    )


def read_predictions(
    folder: pathlib.Path, examples: Iterable[Example], spec: DatasetSpec, trained_ids: bool
) -> Iterator[tuple[Example, dict[str, np.ndarray]]]:
    """Class ids from PNG files named after their images, as `submission_name` says.

    Args:
      folder: holds a file, folders included, for every example.
      examples: with "name" and "label".
      spec: of the dataset.
      trained_ids: files hold 0..K-1, not the values of the dataset's own label files.

    Yields:
      The example and its maps, see `score`.

    Raises:
      ValueError: a file is missing, has another size, or holds a value that is no class.
    """
    names = spec
    if trained_ids:
        spec = dataclasses.replace(spec, label_map=None)
    for example in examples:
        path = folder / submission_name(names, example["name"])
        if not path.is_file():
            raise ValueError(f"{path}: no such file (prediction for {example['name']})")
        ids = decode_label(path.read_bytes(), spec, str(path))
        if ids.shape != example["label"].shape:
            raise ValueError(
                f"{path}: prediction {ids.shape} and label {example['label'].shape} differ in size"
            )
        if missing := int(
            ((ids >= spec.num_classes) & (example["label"] != spec.ignore_label)).sum()
        ):
            raise ValueError(f"{path}: {missing} labelled pixels have no class")
        yield example, {"ids": ids}


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """Sums an int64 array over all processes, exactly; every process gets the sum."""
    if jax.process_count() == 1:
        return counts
    # JAX would cut 64-bit integers to 32 bits on the way; halves survive.
    return join_halves(multihost_utils.process_allgather(split_halves(counts))).sum(axis=0)


def split_halves(counts: np.ndarray) -> np.ndarray:
    """Non-negative int64 (...) -> uint32 (2, ...): low and high half."""
    return np.stack([counts & 0xFFFFFFFF, counts >> 32]).astype(np.uint32)


def join_halves(halves: np.ndarray) -> np.ndarray:
    """Inverse of `split_halves` with a leading axis: uint32 (P, 2, ...) -> int64 (P, ...)."""
    halves = np.asarray(halves).astype(np.int64)
    return halves[:, 0] | (halves[:, 1] << 32)


def evaluate_split(
    engine: SlidingWindow,
    params: Any,
    examples: Iterable[Example],
    spec: DatasetSpec,
    on_result: Callable[[Example, np.ndarray], None] | None = None,
    *,
    boundary: bool = False,
    calibration: bool = False,
) -> SegmentationReport:
    """Predicts every example at its own size and counts.

    With several processes, each gives its own examples and all get the report of all of them.

    Args:
      engine: does the predictions.
      params: the tree under "params", see `SlidingWindow.predict`.
      examples: mappings with "image" uint8 (H, W, C) and "label" uint8 (H, W).
      spec: classes and ignored label.
      on_result: called with each example and its class ids (H, W).
      boundary: also count boundaries, which takes longer.
      calibration: also compare confidence and accuracy.

    Returns:
      The report of the whole split.
    """
    outputs = ("ids", "confidence") if calibration else ("ids",)
    results = engine.predict(params, examples, outputs)
    return score(results, spec, engine.settings.protocol(), on_result, boundary, calibration)
