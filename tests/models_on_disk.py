"""Model directories for the tests of command lines."""

import pathlib
from typing import Any

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import save_model
from tests.golden_params import golden_config, golden_params

CLASSES = ("sky", "building", "road", "car", "person", "tree", "sign")
COLORS = tuple((30 * i, 200 - 20 * i, 90) for i in range(7))


def golden_description(**overrides: Any) -> ModelDescription:
    """The golden mask network with classes, for windows of 64 pixels."""
    fields = {
        "model": golden_config("segm_mask"),
        "classes": CLASSES,
        "colors": COLORS,
        "mean": (0.5,),
        "std": (0.5,),
        "window": 64,
        "stride": 48,
        "base_size": 64,
    }
    return ModelDescription(**(fields | overrides))


def write_golden_model(path: pathlib.Path, **overrides: Any) -> pathlib.Path:
    """Writes the golden mask network as a model directory."""
    save_model(path, golden_description(**overrides), golden_params("segm_mask"))
    return path
