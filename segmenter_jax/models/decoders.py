"""Decoders: patch tokens to one logit per patch and class."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from segmenter_jax.models.layers import Dense, Gelu, LayerNorm, dense_init
from segmenter_jax.models.vit import block_class


class LinearDecoder(nn.Module):
    """One dense layer on every patch token. Source: Segmenter section 3.2, "Linear"."""

    num_classes: int

    @nn.compact
    def __call__(self, patches: jax.Array, deterministic: bool) -> jax.Array:
        """Maps patch tokens (B, N, D) to float32 logits (B, N, num_classes)."""
        del deterministic
        # Logits are float32 whatever the compute type.
        dense = nn.Dense(
            self.num_classes,
            dtype=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,
            kernel_init=dense_init,
            name="head",
        )
        return dense(patches)


def _unit_norm(x: jax.Array) -> jax.Array:
    # The bound gives an all-zero vector a gradient of zero; vectors longer than it are untouched.
    square = jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24)
    return x * jax.lax.rsqrt(square)


class MaskTransformerDecoder(nn.Module):
    """Patches and learned class embeddings, decoded together. Source: Segmenter section 3.2.

    The reference's names: `class_embedding` = cls_emb, `proj_dec` = proj_dec,
    `proj_patch` / `proj_classes` = the same, `block_i` = blocks.i.
    """

    num_classes: int
    depth: int
    num_heads: int
    mlp_dim: int
    dropout_rate: float
    drop_path_rate: float
    layer_norm_eps: float
    gelu: Gelu
    attention: str
    dtype: jnp.dtype
    remat: bool = False

    @nn.compact
    def __call__(self, patches: jax.Array, deterministic: bool) -> jax.Array:
        """Maps patch tokens (B, N, D) to float32 logits (B, N, num_classes)."""
        batch, num_patches, width = patches.shape
        x = Dense(width, self.dtype, name="proj_dec")(patches)
        classes = self.param("class_embedding", dense_init, (1, self.num_classes, width))
        classes = jnp.broadcast_to(classes, (batch, self.num_classes, width)).astype(x.dtype)
        x = jnp.concatenate([x, classes], axis=1)
        for i in range(self.depth):
            x = block_class(self.remat)(
                self.num_heads,
                self.mlp_dim,
                self.dropout_rate,
                self.drop_path_rate * i / max(self.depth - 1, 1),
                self.layer_norm_eps,
                self.gelu,
                self.attention,
                self.dtype,
                name=f"block_{i}",
            )(x, deterministic)
        x = LayerNorm(self.layer_norm_eps, self.dtype, name="decoder_norm")(x)

        projection_init = initializers.normal(width**-0.5)
        proj_patch = self.param("proj_patch", projection_init, (width, width))
        proj_classes = self.param("proj_classes", projection_init, (width, width))
        patches = x[:, :num_patches] @ proj_patch.astype(self.dtype)
        classes = x[:, num_patches:] @ proj_classes.astype(self.dtype)
        patches, classes = (_unit_norm(t.astype(jnp.float32)) for t in (patches, classes))
        masks = jnp.einsum("bnd,bkd->bnk", patches, classes, precision=jax.lax.Precision.HIGHEST)
        return LayerNorm(self.layer_norm_eps, jnp.float32, name="mask_norm")(masks)
