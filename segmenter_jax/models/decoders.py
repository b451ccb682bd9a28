"""Decoders: patch tokens to one logit per patch and class."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from segmenter_jax.models.config import SegmenterConfig
from segmenter_jax.models.layers import Dense, LayerNorm, dense_init
from segmenter_jax.models.placement import Placement
from segmenter_jax.models.transformer import block_class, drop_path_rates

_NORM_EPS = 1e-5


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
        # Logits are float32 whatever the compute type.
        dense = nn.Dense(
            c.num_classes,
            dtype=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,
            kernel_init=dense_init,
            name="head",
        )
        return dense(patches)


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
        return LayerNorm(block.layer_norm_eps, jnp.float32, name="mask_norm")(masks)
