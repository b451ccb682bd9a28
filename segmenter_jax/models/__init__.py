"""The network: ViT encoder, linear and mask-transformer decoders, and their composition."""

from segmenter_jax.models.config import VARIANTS, SegmenterConfig
from segmenter_jax.models.segmenter import Segmenter, upsample

__all__ = ["VARIANTS", "Segmenter", "SegmenterConfig", "upsample"]
