"""A program of a user, for `mypy`: the exported names have types, though they come late."""

from typing import assert_type

from PIL import Image

import segmenter_jax


def use() -> None:
    """Never runs."""
    seg = segmenter_jax.load("runs/quickstart")
    assert_type(seg, segmenter_jax.Predictor)
    assert_type(seg.overlay("photo.jpg", alpha=0.3), Image.Image)
    assert_type(seg.classes, tuple[str, ...])
    assert_type(segmenter_jax.train("quickstart", "runs/quickstart"), segmenter_jax.Predictor)
    config = segmenter_jax.SegmenterConfig.from_variant("S/16", num_classes=2, image_size=(64, 64))
    assert_type(config, segmenter_jax.SegmenterConfig)
    assert_type(segmenter_jax.Segmenter(config), segmenter_jax.Segmenter)
