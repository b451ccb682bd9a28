"""How far functions that were written to files are from their model."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from segmenter_jax.data.datasets import Dataset
from segmenter_jax.data.pipeline import eval_examples
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.evaluation.scoring import score
from segmenter_jax.inference.fixed_size import FixedFunction
from segmenter_jax.inference.foreign_network import cpu, foreign_engine
from segmenter_jax.inference.predictor import Predictor
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.runtime.progress import counted

# A function that was read from a file.
Read = Callable[[np.ndarray], Mapping[str, Any]]


def differences(
    predictor: Predictor, functions: Sequence[FixedFunction], read: Mapping[str, Read]
) -> dict[str, float]:
    """Largest difference of logits, as a part of the largest of them, and share of other ids.

    Args:
      predictor: the model on `cpu()`.
      functions: its network and its picture, see `fixed_size`.
      read: the same from their files, by name. Both get noise.
    """
    noise = np.random.default_rng(0)
    network, picture = functions
    windows = noise.integers(0, 256, (2, *network.shape[1:]), np.uint8)
    found = np.asarray(read["network"](windows)["logits"])
    with jax.default_device(cpu()[0]):
        expected = np.asarray(jax.jit(network.call)(windows)["logits"])
    pixels = noise.integers(0, 256, picture.shape, np.uint8)
    ids = np.asarray(read["picture"](pixels)["ids"])
    return {
        "logits": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "ids": float((ids != predictor.predict(pixels)).mean()),
    }


def losses(dataset: Dataset, split: str, predictor: Predictor, network: Read) -> dict[str, Any]:
    """Mean IoU, 0..1, of a model, and of the same with another network in its place.

    Args:
      dataset: with the classes of the model.
      split: of it, with labels.
      predictor: the model.
      network: see `differences`.
    """

    def mean_iou(engine: SlidingWindow, name: str) -> float:
        source, transform = dataset.source(split), EvalTransform(dataset.spec)
        with contextlib.closing(eval_examples(source, transform)) as read:
            examples = counted(read, len(source), "image", name)
            results = engine.predict(predictor.params, examples)
            return score(results, dataset.spec, engine.settings.protocol()).mean_iou

    description = predictor.description
    return {
        "dataset": f"{dataset.name}, {split}",
        "mean_iou_of_the_model": mean_iou(predictor.engine(), "model"),
        "mean_iou": mean_iou(foreign_engine(description, lambda x: network(x)["logits"]), "files"),
    }
