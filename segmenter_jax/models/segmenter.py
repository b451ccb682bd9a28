"""Segmenter: encoder, decoder, and the upsampling of their logits to pixels.

Source: Strudel, Garcia, Laptev, Schmid, "Segmenter: Transformer for Semantic Segmentation", 2021.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from segmenter_jax.models.config import SegmenterConfig, patch_grid
from segmenter_jax.models.decoders import EomtDecoder, LinearDecoder, MaskTransformerDecoder
from segmenter_jax.models.placement import Placement
from segmenter_jax.models.resampling import resize_matrix
from segmenter_jax.models.vit import VisionTransformer

_DECODERS = {"mask": MaskTransformerDecoder, "linear": LinearDecoder, "eomt": EomtDecoder}


class Segmenter(nn.Module):
    """ViT encoder and decoder; logits stay at patch resolution (see `upsample`).

    With the decoder "eomt" there are scores of pixels instead, see `class_scores`.

    Attributes:
      config: the network.
      mesh: the devices that it runs on, the batch split over all axes; they decide what "auto"
        means in the config. None leaves them to JAX; kernels of attention then work on one only.
    """

    config: SegmenterConfig
    mesh: Placement = None

    def setup(self) -> None:
        self.encoder = VisionTransformer(self.config, self.mesh)
        self.decoder = _DECODERS[self.config.decoder](self.config, self.mesh)

    def encode(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Normalised encoder tokens.

        Args:
          image: normalised (B, H, W, C), any H and W; padded with 0 at the bottom and right.
          train: use dropout and stochastic depth (needs the "dropout" rng).

        Returns:
          (B, num_extra_tokens + h * w, width), extra tokens first, in the compute dtype; before
          them the queries, where the decoder has some.

        Raises:
          ValueError: the image has another number of channels than the model.
        """
        c = self.config
        if image.ndim != 4 or image.shape[-1] != c.in_channels:
            raise ValueError(f"image must be (B, H, W, {c.in_channels}), got {image.shape}")
        pad = [(0, -size % c.patch_size) for size in image.shape[1:3]]
        image = jnp.pad(image, ((0, 0), *pad, (0, 0)))
        queries = self.decoder.queries if c.decoder == "eomt" else None
        return self.encoder(image, not train, queries)

    def encode_patches(self, image: jax.Array, train: bool = False) -> jax.Array:
        """As `encode`, but without the extra tokens: (B, h * w, width)."""
        return self.encode(image, train)[:, self.config.num_extra_tokens :]

    def decode(self, patches: jax.Array, size: tuple[int, int], train: bool = False) -> jax.Array:
        """Low-resolution logits of patch tokens.

        Args:
          patches: (B, h * w, width), as `encode_patches` gives them.
          size: (H, W) of their image, in pixels.
          train: use dropout and stochastic depth (needs the "dropout" rng).

        Returns:
          float32 (B, h, w, num_classes).
        """
        grid = patch_grid(size, self.config.patch_size)
        logits = self.decoder(patches, not train)
        return logits.reshape(patches.shape[0], *grid, self.config.num_classes)

    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Low-resolution logits, or scores of pixels.

        Args:
          image: normalised (B, H, W, C), any H and W.
          train: use dropout and stochastic depth (needs the "dropout" rng).

        Returns:
          float32 (B, ceil(H / S), ceil(W / S), num_classes); S is the config's `cell_size`.
        """
        size = image.shape[1], image.shape[2]
        if self.config.decoder == "eomt":
            return class_scores(*self.query_logits(image, train), size)
        return self.decode(self.encode_patches(image, train), size, train)

    def query_logits(
        self, image: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array, int]:
        """What the queries of the decoder "eomt" say.

        Args:
          image, train: see `__call__`.

        Returns:
          Logits of masks and of classes, see `EomtDecoder`, and the side of what a mask's logit
          is for, in pixels.
        """
        c = self.config
        tokens = self.encode(image, train)
        grid = patch_grid((image.shape[1], image.shape[2]), c.patch_size)
        patches = tokens[:, c.num_queries + c.num_extra_tokens :]
        patches = patches.reshape(image.shape[0], *grid, c.width)
        masks, classes = self.decoder(tokens[:, : c.num_queries], patches)
        return masks, classes, c.patch_size // 2**c.num_upscales


def class_scores(
    masks: jax.Array, classes: jax.Array, side: int, size: tuple[int, int]
) -> jax.Array:
    """Scores of classes at pixels: over all queries, the share of its mask times its class.

    Args:
      masks, classes, side: see `Segmenter.query_logits`.
      size: (H, W) wanted, in pixels; what the masks have beyond it is padding.

    Returns:
      float32 (B, H, W, num_classes), at least 0.

    Source: EoMT, `to_per_pixel_logits_semantic`.
    """
    whole = masks.shape[1] * side, masks.shape[2] * side
    shares = nn.sigmoid(upsample(masks, whole, side)[:, : size[0], : size[1]])
    # The last class is none.
    weights = nn.softmax(classes)[..., :-1]
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("byxq,bqk->byxk", shares, weights, precision=highest)


def upsample(logits: jax.Array, size: tuple[int, int], patch_size: int) -> jax.Array:
    """Bilinear upsampling of patch logits to pixels.

    The whole padded grid is upsampled and then cropped, so that a pixel's value does not depend on
    the crop.

    Args:
      logits: (B, h, w, K), one per patch.
      size: (H, W) wanted, in pixels, with ceil(H / P) == h and ceil(W / P) == w.
      patch_size: side of a patch P, in pixels.

    Returns:
      (B, H, W, K) in the dtype of `logits`.

    Raises:
      ValueError: the size does not belong to the grid.
    """
    if patch_grid(size, patch_size) != logits.shape[1:3]:
        raise ValueError(f"{size=} at {patch_size=} does not belong to logits {logits.shape}")
    rows, columns = (
        jnp.asarray(resize_matrix(n, n * patch_size)[:out], logits.dtype)
        for n, out in zip(logits.shape[1:3], size, strict=True)
    )
    partial = jnp.einsum("yh,bhwk->bywk", rows, logits, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("xw,bywk->byxk", columns, partial, precision=jax.lax.Precision.HIGHEST)
