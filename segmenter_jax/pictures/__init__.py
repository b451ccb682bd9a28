"""Pictures of data, predictions, attention and training."""

from segmenter_jax.pictures.overlays import colorize, legend, overlay, palette_image

__all__ = ["colorize", "legend", "overlay", "palette_image"]
