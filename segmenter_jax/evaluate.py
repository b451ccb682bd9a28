"""Evaluates a model, or the predictions of any tool, on a split.

python -m segmenter_jax.evaluate MODEL --dataset NAME --data_dir DIR
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.data.datasets import DATA_DIR, Dataset, build_dataset
from segmenter_jax.data.pipeline import eval_examples
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.transforms import EvalTransform, ImageTransform
from segmenter_jax.evaluation.binary_metrics import BinaryScores
from segmenter_jax.evaluation.metrics import SegmentationReport, confusion_matrix
from segmenter_jax.evaluation.scoring import Example, read_predictions, score
from segmenter_jax.evaluation.submission import encode_submission, submission_name
from segmenter_jax.inference.predictor import model_settings, read_model
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.models import Segmenter
from segmenter_jax.pictures import legend, overlay
from segmenter_jax.pictures.figures import calibration_figure, confusion_figure
from segmenter_jax.pictures.overlays import as_rgb
from segmenter_jax.pictures.sheets import Entry, contact_sheet, stack
from segmenter_jax.runtime.command import (
    add_protocol_flags,
    protocol_overrides,
    run_command,
    use_compilation_cache,
)
from segmenter_jax.runtime.host import keep_freed_memory

_Result = tuple[Example, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _PredictionWriter:
    """Saves class ids as PNG files, named and numbered as the dataset's own scorer expects."""

    folder: pathlib.Path
    spec: DatasetSpec

    def __call__(self, example: Example, ids: np.ndarray) -> None:
        path = self.folder / submission_name(self.spec, example["name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_submission(ids, self.spec))


class _WorstImages:
    """Keeps the images of the smallest mean IoU, as image, label and prediction side by side."""

    def __init__(self, spec: DatasetSpec, count: int = 12, side: int = 240):
        self._spec, self._count, self._side = spec, count, side
        self._worst: list[tuple[float, Entry]] = []

    def __call__(self, example: Example, ids: np.ndarray) -> None:
        spec, label = self._spec, example["label"]
        matrix = confusion_matrix(label, ids, spec.num_classes, spec.ignore_label)
        mean_iou = SegmentationReport(matrix, spec.class_names, "", 1).mean_iou
        if np.isnan(mean_iou):
            return
        if len(self._worst) == self._count and mean_iou >= self._worst[-1][0]:
            return
        # Kept small: all of them are in memory until the end.
        scale = min(self._side / max(label.shape), 1)
        size = tuple(max(round(s * scale), 1) for s in label.shape[::-1])
        image = as_rgb(cv2.resize(example["image"], size).reshape(*size[::-1], -1))
        small = (cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) for m in (label, ids))
        pictures = (image, *(overlay(image, m, spec.colors, 0.7) for m in small))
        entry = Entry(pictures, f"mean IoU {100 * mean_iou:.1f}   {example['name']}")
        self._worst = sorted([*self._worst, (mean_iou, entry)], key=lambda w: w[0])[: self._count]

    def save(self, path: str) -> None:
        """Writes the contact sheet, worst first."""
        if not self._worst:
            raise ValueError("no image has a labelled pixel, so none is the worst")
        sheet = contact_sheet([entry for _, entry in self._worst], 2, self._side)
        names = legend(
            range(self._spec.num_classes),
            self._spec.class_names,
            self._spec.colors,
            columns=max(1, sheet.width // 180),
        )
        stack([sheet, names]).save(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.evaluate",
        description="Evaluates a model, or PNG files of class ids that any tool made, on a split "
        "of a dataset, at the labels' own sizes. Classes that occur in neither labels nor "
        "predictions are left out of the means. A split without labels is predicted only, for "
        "--save_predictions.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", help="model directory, workdir of a run, or checkpoint")
    what.add_argument(
        "--predictions", metavar="DIR", help="folder of PNG files named after their images"
    )
    parser.add_argument(
        "--prediction_ids",
        choices=("original", "trained"),
        default="original",
        help="values in the PNG files: those of the dataset's own label files, or 0..K-1",
    )
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument("--data_dir", default=DATA_DIR, help="folder of built datasets")
    parser.add_argument("--source", help="folder to build the dataset from, if it is not built")
    parser.add_argument("--split", default="validation", help="default: %(default)s")
    add_protocol_flags(parser)
    parser.add_argument("--save_predictions", metavar="DIR", help="write class ids as PNG files")
    parser.add_argument("--boundary_iou", action="store_true", help="also measure boundaries")
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="also measure the calibration error; draw confidence against accuracy (.png)",
    )
    parser.add_argument(
        "--binary",
        action="store_true",
        help="also average over images, for a background and a foreground class: IoU at 0.5 and "
        "mean absolute error of the foreground's probability, with and without foreground apart",
    )
    parser.add_argument("--confusion", metavar="FILE", help="draw the confusion matrix (.png)")
    parser.add_argument("--worst", metavar="FILE", help="contact sheet of the worst images (.png)")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write the per-class table as CSV")
    return parser


def _check_dataset(dataset: Dataset, description: ModelDescription) -> None:
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


def _results_of_model(
    arguments: argparse.Namespace,
    model: tuple[ModelDescription, Any],
    dataset: Dataset,
    examples: Iterable[Example],
) -> tuple[str, Iterator[_Result]]:
    """The protocol, and each example with the maps that the arguments need."""
    description, params = model
    settings = model_settings(description, **protocol_overrides(arguments))
    _check_dataset(dataset, description)
    engine = SlidingWindow(
        Segmenter(description.model), settings, mean=description.mean, std=description.std
    )
    wanted = {"ids": True, "confidence": arguments.calibration, "probs": arguments.binary}
    outputs = tuple(name for name, needed in wanted.items() if needed)
    return settings.protocol(), engine.predict(params, examples, outputs)


def _results_of_files(
    arguments: argparse.Namespace, dataset: Dataset, examples: Iterable[Example]
) -> tuple[str, Iterator[_Result]]:
    folder = pathlib.Path(arguments.predictions).expanduser()
    trained = arguments.prediction_ids == "trained"
    results = read_predictions(folder, examples, dataset.spec, trained)
    return f"predictions of {arguments.predictions}", results


def _check_usage(arguments: argparse.Namespace) -> None:
    """Refuses what would be ignored."""
    if arguments.model:
        return
    for flag, missing in (("calibration", "confidence"), ("binary", "probabilities")):
        if getattr(arguments, flag):
            raise ValueError(f"files of class ids have no {missing}: no --{flag} for them")
    if protocol_overrides(arguments) != {"scales": (1.0,), "flip": False}:
        raise ValueError(
            "files of class ids are scored as they are: --window, --stride, --scales, --flip, "
            "--native and --batch_size are for models"
        )


def _check_unlabelled(arguments: argparse.Namespace, dataset: Dataset) -> None:
    """Refuses what needs labels."""
    scores = ("boundary_iou", "calibration", "binary", "confusion", "worst", "json", "csv")
    asked = [f"--{flag}" for flag in scores if getattr(arguments, flag)]
    if asked or not (arguments.model and arguments.save_predictions):
        wrong = f", without {', '.join(asked)}" if asked else ""
        raise ValueError(
            f"split {arguments.split!r} of dataset {dataset.name!r} has no labels: it can only be "
            f"predicted, by a model and with --save_predictions{wrong}"
        )


def _command(arguments: argparse.Namespace) -> None:
    _check_usage(arguments)
    keep_freed_memory()
    use_compilation_cache()
    # First what fails fast: building a dataset may take long.
    model = read_model(arguments.model) if arguments.model else None
    dataset = build_dataset(arguments.dataset, arguments.data_dir, arguments.source)
    spec = dataset.spec
    source = dataset.source(arguments.split, needs_labels=False)
    labelled = arguments.split not in dataset.unlabelled
    if not labelled:
        _check_unlabelled(arguments, dataset)
    transform = EvalTransform(spec) if labelled else ImageTransform(spec)
    with contextlib.closing(eval_examples(source, transform)) as examples:
        counted = tqdm(examples, total=len(source), unit="image", disable=None)
        if model is None:
            protocol, results = _results_of_files(arguments, dataset, counted)
        else:
            protocol, results = _results_of_model(arguments, model, dataset, counted)
        if labelled:
            _score(arguments, spec, protocol, results)
        else:
            _save_only(arguments, spec, results)


def _save_only(
    arguments: argparse.Namespace, spec: DatasetSpec, results: Iterable[_Result]
) -> None:
    folder = pathlib.Path(arguments.save_predictions).expanduser()
    write = _PredictionWriter(folder, spec)
    for example, maps in results:
        write(example, maps["ids"])
    print(f"split {arguments.split!r} has no labels, so no scores; predictions: {folder}")


def _score(
    arguments: argparse.Namespace, spec: DatasetSpec, protocol: str, results: Iterable[_Result]
) -> None:
    listeners: list[Callable[[Example, np.ndarray], None]] = []
    if arguments.save_predictions:
        folder = pathlib.Path(arguments.save_predictions).expanduser()
        listeners.append(_PredictionWriter(folder, spec))
    worst = _WorstImages(spec)
    if arguments.worst:
        listeners.append(worst)

    def on_result(example: Example, ids: np.ndarray) -> None:
        for listener in listeners:
            listener(example, ids)

    binary = BinaryScores(spec) if arguments.binary else None
    if binary:
        results = binary.collect(results)
    calibration = arguments.calibration is not None
    report = score(results, spec, protocol, on_result, arguments.boundary_iou, calibration)
    print(report.table())
    if binary:
        print(binary.table())
    _write_files(arguments, report, {"binary": binary.means()} if binary else {})
    if arguments.worst:
        worst.save(arguments.worst)


def _write_files(
    arguments: argparse.Namespace, report: SegmentationReport, more: dict[str, Any]
) -> None:
    def as_json() -> str:
        return json.dumps(json.loads(report.to_json()) | more, indent=2) + "\n"

    for path, text in ((arguments.json, as_json), (arguments.csv, report.to_csv)):
        if path:
            pathlib.Path(path).expanduser().write_text(text(), encoding="utf-8")
    if arguments.confusion:
        title = f"mean IoU {100 * report.mean_iou:.2f} %, {report.num_images} images"
        confusion_figure(report.matrix, report.classes, title).save(arguments.confusion)
    if arguments.calibration:
        title = f"calibration error {100 * report.calibration_error:.2f} %"
        calibration_figure(*report.reliability(), title).save(arguments.calibration)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
