"""Segmenter in JAX: semantic segmentation with Vision Transformers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segmenter_jax.inference.predictor import Predictor, load
    from segmenter_jax.models import Segmenter, SegmenterConfig
    from segmenter_jax.training.start import train

__version__ = "0.1.0"

# Imported on first use: importing the package costs nothing.
_PLACES = {
    "load": "segmenter_jax.inference.predictor",
    "train": "segmenter_jax.training.start",
    "Predictor": "segmenter_jax.inference.predictor",
    "Segmenter": "segmenter_jax.models",
    "SegmenterConfig": "segmenter_jax.models",
}

__all__ = ["Predictor", "Segmenter", "SegmenterConfig", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
