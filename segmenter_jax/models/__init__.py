"""The network: ViT encoder, linear and mask-transformer decoders, and their composition."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segmenter_jax.models.config import SegmenterConfig
    from segmenter_jax.models.segmenter import Segmenter, upsample
    from segmenter_jax.models.variants import VARIANTS

# Imported on first use, so that `choices` costs nothing.
_PLACES = {
    "VARIANTS": "segmenter_jax.models.variants",
    "Segmenter": "segmenter_jax.models.segmenter",
    "SegmenterConfig": "segmenter_jax.models.config",
    "upsample": "segmenter_jax.models.segmenter",
}

__all__ = ["VARIANTS", "Segmenter", "SegmenterConfig", "upsample"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
