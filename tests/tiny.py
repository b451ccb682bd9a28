"""A network small enough that compiling it is all that takes time."""

from typing import Any

from segmenter_jax.models import SegmenterConfig


def tiny_network(**overrides: Any) -> SegmenterConfig:
    """Two blocks of width 64, patches of 8 pixels, five classes, nothing random."""
    fields = {
        "num_classes": 5,
        "image_size": (32, 32),
        "width": 64,
        "depth": 1,
        "num_heads": 2,
        "patch_size": 8,
        "decoder_depth": 1,
        "drop_path_rate": 0.0,
        "decoder_dropout_rate": 0.0,
        "decoder_attention_dropout_rate": 0.0,
    }
    return SegmenterConfig(**(fields | overrides))
