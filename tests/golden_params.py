"""The golden networks: their parameters in this package's tree, and their configurations."""

import pathlib
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from segmenter_jax.models import SegmenterConfig

_FOLDER = pathlib.Path(__file__).parent / "golden"

NAMES = ("segm_mask", "segm_linear_distilled")


def golden_config(name: str, **overrides: Any) -> SegmenterConfig:
    """Configuration of the network of `golden/NAME.npz`."""
    linear = name == "segm_linear_distilled"
    fields = {
        "num_classes": 7,
        "image_size": (64, 64),
        "width": 64,
        "depth": 2,
        "num_heads": 2,
        "distilled": linear,
        "decoder": "linear" if linear else "mask",
        "drop_path_rate": 0.0,
        "decoder_dropout_rate": 0.0,
        "decoder_attention_dropout_rate": 0.0,
    }
    return SegmenterConfig(**(fields | overrides))


def golden_params(name: str) -> dict[str, Any]:
    """Parameters (the tree under "params"), float32 NumPy, of the network of `golden/NAME.npz`."""
    with np.load(_FOLDER / f"{name}_params.npz") as flat:
        return unflatten_dict({tuple(key.split("/")): flat[key] for key in flat.files})
