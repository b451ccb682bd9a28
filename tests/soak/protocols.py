"""What differences of protocol do to the mean IoU of a run's model.

python -m tests.soak.protocols WORKDIR [EVERY]

Prints a row of Markdown for each: the mean IoU and its difference from the model's own protocol.
EVERY takes every so many images of the run's evaluations only.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import cv2
import numpy as np

import segmenter_jax
from segmenter_jax.data.datasets import Dataset, build_dataset
from segmenter_jax.data.pipeline import eval_examples
from segmenter_jax.data.transforms import EvalTransform, rescaled_size
from segmenter_jax.evaluation.metrics import SegmentationReport, confusion_matrix
from segmenter_jax.inference.predictor import Predictor
from segmenter_jax.inference.sliding_window import Example
from segmenter_jax.runtime.progress import counted
from segmenter_jax.training.workdir import evaluated_on

# From a label and class ids of the same size to what is counted.
Count = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Split:
    """Labelled images of a dataset.

    Attributes:
      spec: of the dataset.
    """

    def __init__(self, dataset: Dataset, name: str, every: int) -> None:
        self.spec = dataset.spec
        self._source, self._every = dataset.source(name), every

    def examples(self, name: str) -> Iterator[Example]:
        """The images that are taken, with progress."""
        with contextlib.closing(eval_examples(self._source, EvalTransform(self.spec))) as read:
            for index, example in enumerate(counted(read, len(self._source), "image", name)):
                if index % self._every == 0:
                    yield example

    def mean_iou(self, matrix: np.ndarray) -> float:
        """In percent."""
        names = (*self.spec.class_names, "ignored")[: len(matrix)]
        return 100 * SegmentationReport(matrix, names, "", 0).mean_iou

    def count(self, label: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Confusion matrix of one image by our rules."""
        return confusion_matrix(label, ids, self.spec.num_classes, self.spec.ignore_label)

    def count_ignored(self, label: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The same with a class more for ignored pixels, which no prediction has."""
        num_classes = self.spec.num_classes
        label = np.where(label == self.spec.ignore_label, num_classes, label)
        return confusion_matrix(label, ids, num_classes + 1, -1)


def of_settings(predictor: Predictor, split: Split, name: str, **overrides) -> list[np.ndarray]:
    """Confusion matrices of all images with other settings of inference."""
    results = predictor.engine(**overrides).predict(predictor.params, split.examples(name))
    return [split.count(example["label"], maps["ids"]) for example, maps in results]


def counted_otherwise(predictor: Predictor, split: Split) -> dict[str, float]:
    """Mean IoU of the model's own predictions, counted in other ways."""
    results = predictor.engine().predict(predictor.params, split.examples("own"))
    kept = [(example["label"], maps["ids"]) for example, maps in results]
    own = [split.count(*pair) for pair in kept]
    ignored = sum(split.count_ignored(*pair) for pair in kept)
    # Predictions there count against their classes, which alone are in the mean.
    iou = SegmentationReport(ignored, (*split.spec.class_names, "ignored"), "", 0).iou[:-1]
    return {
        "the model's own": split.mean_iou(sum(own)),
        "mean over images of each image's mean IoU": float(np.mean([*map(split.mean_iou, own)])),
        "predictions on ignored pixels count as wrong": 100 * float(np.nanmean(iou)),
        "the same, and a class of its own for ignored pixels": split.mean_iou(ignored),
    }


def at_network_size(predictor: Predictor, split: Split) -> dict[str, float]:
    """Mean IoU of images that are scaled first: ids resized, and labels resized."""
    settings = predictor.engine().settings

    def scaled(example: Example) -> Example:
        image = example["image"]
        bound = settings.aspect_bound
        size = rescaled_size(*image.shape[:2], settings.base_size, bound, 1.0)
        return {**example, "image": cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)}

    engine = predictor.engine(base_size=None)
    examples = map(scaled, split.examples("scaled"))
    resized_ids, resized_labels = 0, 0
    for example, maps in engine.predict(predictor.params, examples):
        label, ids = example["label"], maps["ids"]
        nearest = {"interpolation": cv2.INTER_NEAREST}
        resized_ids += split.count(label, cv2.resize(ids, label.shape[::-1], **nearest))
        resized_labels += split.count(cv2.resize(label, ids.shape[::-1], **nearest), ids)
    return {
        "class ids, not logits, resized to the label's size": split.mean_iou(resized_ids),
        "counted at the network's size, labels resized": split.mean_iou(resized_labels),
    }


def main(workdir: str, every: str = "1") -> None:
    """Prints the table."""
    predictor, run = segmenter_jax.load(workdir), evaluated_on(workdir, None)
    dataset = build_dataset(run["dataset"], run["data_dir"], None)
    split = Split(dataset, run["split"], int(every))
    settings = predictor.engine().settings
    rows = counted_otherwise(predictor, split)
    own = rows["the model's own"]
    print(f"{settings.protocol()}; every {every}. image\n\n| protocol | mean IoU | |")
    print("| --- | --- | --- |")

    def show(rows: dict[str, float]) -> None:
        for title, value in rows.items():
            print(f"| {title} | {value:.2f} | {value - own:+.2f} |", flush=True)

    show(rows)
    show(at_network_size(predictor, split))
    # Images as high as the own windows have two of them whatever the stride.
    patch, base = predictor.description.model.patch_size, settings.base_size
    small = 2 * settings.window // (3 * patch) * patch
    for title, overrides in {
        f"windows of {small}, stride {small}": {"window": small, "stride": small},
        f"windows of {small}, stride {small - 32}": {"window": small, "stride": small - 32},
        f"windows of {small}, stride {small // 2}": {"window": small, "stride": small // 2},
        f"short side {3 * base // 4}": {"base_size": 3 * base // 4},
        f"short side {5 * base // 4}": {"base_size": 5 * base // 4},
        "images at their own size": {"base_size": None},
        "flipped as well": {"flip": True},
        "scales 0.75, 1, 1.25": {"scales": (0.75, 1.0, 1.25)},
    }.items():
        show({title: split.mean_iou(sum(of_settings(predictor, split, title, **overrides)))})


if __name__ == "__main__":
    main(*sys.argv[1:])
