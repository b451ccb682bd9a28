"""Evaluates a model on a split: predictions -> confusion matrix -> report.

python -m segmenter_jax.evaluate MODEL --dataset NAME --data_dir DIR
"""

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from segmenter_jax.checkpoints.model_dir import ModelDescription
from segmenter_jax.command import (
    add_protocol_flags,
    protocol_overrides,
    run_command,
    use_compilation_cache,
)
from segmenter_jax.data.datasets import Dataset, build_dataset
from segmenter_jax.data.pipeline import eval_examples
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.inference import SlidingWindow
from segmenter_jax.metrics import SegmentationReport, confusion_matrix
from segmenter_jax.models import Segmenter
from segmenter_jax.predict import model_settings, read_model

Example = Mapping[str, Any]


def evaluate_split(
    engine: SlidingWindow,
    params: Any,
    examples: Iterable[Example],
    spec: DatasetSpec,
    on_result: Callable[[Example, np.ndarray], None] | None = None,
) -> SegmentationReport:
    """Predicts every example at its own size and counts.

    With several processes, each gives its own examples and all get the report of all of them.

    Args:
      engine: does the predictions.
      params: the tree under "params", see `SlidingWindow.predict`.
      examples: mappings with "image" uint8 (H, W, C) and "label" uint8 (H, W).
      spec: classes and ignored label.
      on_result: called with each example and its class ids (H, W).

    Returns:
      The report of the whole split.
    """
    # One row more: the number of images travels with the counts.
    counts = np.zeros((spec.num_classes + 1, spec.num_classes), np.int64)
    for example, maps in engine.predict(params, examples):
        ids = maps["ids"]
        counts[:-1] += confusion_matrix(example["label"], ids, spec.num_classes, spec.ignore_label)
        counts[-1, 0] += 1
        if on_result is not None:
            on_result(example, ids)
    counts = sum_over_processes(counts)
    return SegmentationReport(
        counts[:-1], spec.class_names, engine.settings.protocol(), int(counts[-1, 0])
    )


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


def raw_ids(ids: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Class ids (H, W) -> the values that the dataset's own label files have, uint8 (H, W)."""
    table = np.arange(256, dtype=np.uint8)
    # The first raw value of a class stands for it.
    for raw, trained in reversed(spec.label_map or ()):
        if trained != spec.ignore_label:
            table[trained] = raw
    return cv2.LUT(ids.astype(np.uint8), table)


@dataclasses.dataclass(frozen=True)
class _PredictionWriter:
    """Saves class ids as PNG files named after their images."""

    folder: pathlib.Path
    spec: DatasetSpec

    def __call__(self, example: Example, ids: np.ndarray) -> None:
        path = self.folder / pathlib.PurePosixPath(example["name"]).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), raw_ids(ids, self.spec)):
            raise OSError(f"{path}: cannot be written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.evaluate",
        description="Evaluates a model on a split of a dataset, at the labels' own sizes. Classes "
        "that occur in neither labels nor predictions are left out of the means.",
    )
    parser.add_argument("model", help="model directory, workdir of a run, or checkpoint")
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument(
        "--data_dir", default="~/tensorflow_datasets", help="folder of built datasets"
    )
    parser.add_argument("--source", help="folder to build the dataset from, if it is not built")
    parser.add_argument("--split", default="validation", help="default: %(default)s")
    add_protocol_flags(parser)
    parser.add_argument("--save_predictions", metavar="DIR", help="write class ids as PNG files")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write the per-class table as CSV")
    return parser


def _check_dataset(dataset: Dataset, description: ModelDescription, split: str) -> None:
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
            f"warning: class names of model and dataset differ: {'; '.join(different[:3])}"
            + ("; ..." if len(different) > 3 else ""),
            file=sys.stderr,
        )
    if split not in dataset.splits:
        raise ValueError(
            f"dataset {dataset.name!r} has no split {split!r}; choose from {sorted(dataset.splits)}"
        )


def _command(arguments: argparse.Namespace) -> None:
    use_compilation_cache()
    description, params = read_model(arguments.model)
    settings = model_settings(description, **protocol_overrides(arguments))
    dataset = build_dataset(arguments.dataset, arguments.data_dir, arguments.source)
    _check_dataset(dataset, description, arguments.split)
    engine = SlidingWindow(
        Segmenter(description.model), settings, mean=description.mean, std=description.std
    )
    save = None
    if arguments.save_predictions:
        save = _PredictionWriter(
            pathlib.Path(arguments.save_predictions).expanduser(), dataset.spec
        )
    source = dataset.source(arguments.split)
    transform = EvalTransform(dataset.spec)
    with contextlib.closing(eval_examples(source, transform)) as examples:
        counted = tqdm(examples, total=len(source), unit="image", disable=None)
        report = evaluate_split(engine, params, counted, dataset.spec, save)
    print(report.table())
    for path, text in ((arguments.json, report.to_json), (arguments.csv, report.to_csv)):
        if path:
            pathlib.Path(path).expanduser().write_text(text(), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
