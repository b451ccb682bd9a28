"""The network: ViT encoder, linear and mask-transformer decoders, and their composition."""

from segmenter_jax.models.segmenter import VARIANTS, Segmenter, SegmenterConfig, upsample

__all__ = ["VARIANTS", "Segmenter", "SegmenterConfig", "upsample"]
