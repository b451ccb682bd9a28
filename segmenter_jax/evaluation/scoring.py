"""Scores predictions, wherever they come from: counts over a split, and files of class ids."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.data.datasets import Dataset
from segmenter_jax.data.labels import decode_label
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.evaluation.metrics import (
    CONFIDENCE_BINS,
    SegmentationReport,
    boundary_counts,
    calibration_counts,
    confusion_matrix,
)
from segmenter_jax.evaluation.submission import submission_name
from segmenter_jax.inference.merging import Maps
from segmenter_jax.inference.windows import Example
from segmenter_jax.runtime.errors import first_few

# Called with an example, its class ids (H, W) and its own confusion matrix.
OnResult = Callable[[Example, np.ndarray, np.ndarray], None]


def check_dataset(dataset: Dataset, description: ModelDescription) -> None:
    """Refuses a dataset that a model cannot be scored on; warns where classes have other names.

    Raises:
      ValueError: the numbers of classes or of image channels differ.
    """
    spec, model = dataset.spec, description.model
    if (spec.num_classes, spec.channels) != (model.num_classes, model.in_channels):
        raise ValueError(
            f"dataset {dataset.name!r} has {spec.num_classes} classes and {spec.channels} image "
            f"channels, the model {model.num_classes} and {model.in_channels}"
        )
    if spec.class_names != description.classes:
        different = [
            f"{i}: {ours!r} and {theirs!r}"
            for i, (ours, theirs) in enumerate(
                zip(description.classes, spec.class_names, strict=True)
            )
            if ours != theirs
        ]
        print(
            f"warning: class names of model and dataset differ: {first_few(different, 3, '; ')}",
            file=sys.stderr,
        )


def score(
    results: Iterable[tuple[Example, Maps]],
    spec: DatasetSpec,
    protocol: str,
    on_results: Sequence[OnResult] = (),
    boundary: bool = False,
    calibration: bool = False,
) -> SegmentationReport:
    """Counts predictions, wherever they come from, as they come.

    With several processes, each gives its own examples and all get the report of all of them.

    Args:
      results: examples with "label" uint8 (H, W), each with its maps as `SlidingWindow.predict`
        gives them: "ids", and "confidence" for calibration.
      spec: classes and ignored label.
      protocol: how predictions were made.
      on_results: called for each example.
      boundary: also count boundaries, which takes longer.
      calibration: also compare confidence and accuracy.

    Returns:
      The report, over all processes.
    """
    matrix, edges, bins, images = 0, 0, 0, 0
    for example, maps in results:
        label, ids = example["label"], maps["ids"]
        own = confusion_matrix(label, ids, spec.num_classes, spec.ignore_label)
        matrix += own
        if boundary:
            edges += boundary_counts(label, ids, spec.num_classes, spec.ignore_label)
        if calibration:
            bins += calibration_counts(label, ids, maps["confidence"], spec.ignore_label)
        images += 1
        for on_result in on_results:
            on_result(example, ids, own)
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
) -> Iterator[tuple[Example, Maps]]:
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
    # JAX would else cut 64-bit integers to 32 bits on the way.
    with jax.enable_x64(True):
        return multihost_utils.process_allgather(counts[None], tiled=True).sum(axis=0)
