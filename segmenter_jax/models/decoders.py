"""Decoders: patch tokens to one logit per patch and class; or, of queries, to masks and classes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from segmenter_jax.models.config import SegmenterConfig
from segmenter_jax.models.layers import Dense, KernelBias, LayerNorm, dense, dense_init, gelu
from segmenter_jax.models.placement import Placement
from segmenter_jax.models.transformer import block_class, drop_path_rates

_NORM_EPS = 1e-5
# Whatever the encoder's.
_UPSCALE_EPS = 1e-6


def _logits(number: int, **options: Any) -> nn.Dense:
    """A dense layer whose results are logits, float32 whatever the compute type."""
    return nn.Dense(
        number,
        dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        kernel_init=dense_init,
        **options,
    )


class LinearDecoder(nn.Module):
    """One dense layer on every patch token. Source: Segmenter section 3.2, "Linear".

    The running statistics of a batch norm before it are in the collection "batch_stats".
    """

    config: SegmenterConfig
    mesh: Placement = None

    @nn.compact
    def __call__(self, patches: jax.Array, deterministic: bool) -> jax.Array:
        """Maps patch tokens (B, N, D) to float32 logits (B, N, num_classes)."""
        c = self.config
        if c.head_dropout_rate:
            drop = nn.Dropout(c.head_dropout_rate, broadcast_dims=(1,))
            patches = drop(patches, deterministic=deterministic)
        if c.head_norm == "batch":
            # Under jit the batch is the global one, on however many devices.
            patches = nn.BatchNorm(
                use_running_average=deterministic,
                momentum=0.9,
                epsilon=_NORM_EPS,
                dtype=jnp.float32,
                name="head_norm",
            )(patches)
        return _logits(c.num_classes, name="head")(patches)


def fold_head_norm(params: dict[str, Any], stats: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a network without the batch norm before its head, which computes the same.

    Args:
      params: of a Segmenter with `head_norm="batch"`.
      stats: its collection "batch_stats".

    Returns:
      Parameters of the Segmenter with `head_norm="none"`.
    """
    decoder = dict(params["decoder"])
    norm, running, head = decoder.pop("head_norm"), stats["decoder"]["head_norm"], decoder["head"]
    scale = norm["scale"] * jax.lax.rsqrt(running["var"] + _NORM_EPS)
    shift = norm["bias"] - running["mean"] * scale
    constant = jnp.dot(shift, head["kernel"], precision=jax.lax.Precision.HIGHEST)
    head = {"kernel": scale[:, None] * head["kernel"], "bias": head["bias"] + constant}
    return params | {"decoder": decoder | {"head": head}}


def _unit_norm(x: jax.Array) -> jax.Array:
    # The bound gives an all-zero vector a gradient of zero; vectors longer than it are untouched.
    square = jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24)
    return x * jax.lax.rsqrt(square)


class MaskTransformerDecoder(nn.Module):
    """Patches and learned class embeddings, decoded together. Source: Segmenter section 3.2.

    The reference's names: `class_embedding` = cls_emb, `proj_dec` = proj_dec,
    `proj_patch` / `proj_classes` = the same, `block_i` = blocks.i.
    """

    config: SegmenterConfig
    mesh: Placement = None

    @nn.compact
    def __call__(self, patches: jax.Array, deterministic: bool) -> jax.Array:
        """Maps patch tokens (B, N, D) to float32 logits (B, N, num_classes)."""
        c, block = self.config, self.config.decoder_block(self.mesh)
        batch, num_patches, width = patches.shape
        x = Dense(width, block.dtype, name="proj_dec")(patches)
        classes = self.param("class_embedding", dense_init, (1, c.num_classes, width))
        classes = jnp.broadcast_to(classes, (batch, c.num_classes, width)).astype(x.dtype)
        x = jnp.concatenate([x, classes], axis=1)
        for i, rate in enumerate(drop_path_rates(c.decoder_drop_path_rate, c.decoder_depth)):
            x = block_class(c.remat, self.mesh)(block, rate, name=f"block_{i}")(x, deterministic)
        x = LayerNorm(block.layer_norm_eps, block.dtype, name="decoder_norm")(x)

        projection_init = initializers.normal(width**-0.5)
        proj_patch = self.param("proj_patch", projection_init, (width, width))
        proj_classes = self.param("proj_classes", projection_init, (width, width))
        patches = x[:, :num_patches] @ proj_patch.astype(block.dtype)
        classes = x[:, num_patches:] @ proj_classes.astype(block.dtype)
        patches, classes = (_unit_norm(t.astype(jnp.float32)) for t in (patches, classes))
        masks = jnp.einsum("bnd,bkd->bnk", patches, classes, precision=jax.lax.Precision.HIGHEST)
        # Masks of one patch may differ by little: the variance, a difference of means of squares,
        # is exact for what is centred only.
        masks -= masks.mean(axis=-1, keepdims=True)
        return LayerNorm(block.layer_norm_eps, jnp.float32, name="mask_norm")(masks)


class Upscale(nn.Module):
    """Doubles a grid of vectors: a transposed convolution of 2 x 2, then a depthwise one of 3 x 3.

    The original's names: itself = conv1, `depthwise` = conv2, `norm` = norm.
    """

    config: SegmenterConfig
    mesh: Placement = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, h, w, D) to (B, 2 h, 2 w, D)."""
        c, dtype = self.config, x.dtype
        batch, rows, columns, width = x.shape
        kernel, bias = KernelBias((width, 2, 2, width), (width,), name="transposed")()
        # Its windows do not overlap: four products side by side.
        kernel, bias = kernel.reshape(width, -1).astype(dtype), jnp.tile(bias, 4).astype(dtype)
        x = dense(x.reshape(batch, rows * columns, width), kernel, bias)
        x = x.reshape(batch, rows, columns, 2, 2, width).swapaxes(2, 3)
        x = gelu(x.reshape(batch, 2 * rows, 2 * columns, width), c.gelu)

        # Nine products of arrays: compilers for CPUs make a loop over channels of the convolution.
        weights = self.param("depthwise", dense_init, (3, 3, width)).astype(dtype)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = [(i, j) for i in range(3) for j in range(3)]
        x = sum(weights[i, j] * padded[:, i : i + 2 * rows, j : j + 2 * columns] for i, j in shifts)
        x = LayerNorm(_UPSCALE_EPS, dtype, name="norm")(x.reshape(batch, -1, width))
        return x.reshape(batch, 2 * rows, 2 * columns, width)


class EomtDecoder(nn.Module):
    """Masks and classes of queries that went through the encoder's last layers.

    Source: Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", 2025. The
    original's names: `queries` = q, `mask_head_i` = mask_head.{2 i}, `upscale_i` = upscale.i.
    """

    config: SegmenterConfig
    mesh: Placement = None

    def setup(self) -> None:
        c, dtype = self.config, jnp.dtype(self.config.compute_dtype(self.mesh))
        self.queries = self.param("queries", initializers.normal(1.0), (1, c.num_queries, c.width))
        self.class_head = _logits(c.num_classes + 1)
        self.mask_head = [Dense(c.width, dtype) for _ in range(3)]
        self.upscale = [Upscale(c, self.mesh) for _ in range(c.num_upscales)]

    def __call__(self, queries: jax.Array, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps tokens of queries (B, Q, D) and of patches (B, h, w, D) to logits.

        Returns:
          float32 logits of masks (B, s h, s w, Q), s = 2 ** num_upscales, and of the classes of
          queries (B, Q, num_classes + 1), the last for none.
        """
        vectors = queries
        for i, layer in enumerate(self.mask_head):
            vectors = layer(gelu(vectors, self.config.gelu) if i else vectors)
        for layer in self.upscale:
            patches = layer(patches)
        vectors, patches = (x.astype(jnp.float32) for x in (vectors, patches))
        highest = jax.lax.Precision.HIGHEST
        masks = jnp.einsum("byxd,bqd->byxq", patches, vectors, precision=highest)
        return masks, self.class_head(queries)
