"""Transformer blocks, used by the encoder and by the mask decoder."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from segmenter_jax.models.attention import attention, attention_weights
from segmenter_jax.models.attention_kernels import CUDNN_FORWARD
from segmenter_jax.models.choices import Gelu, MlpKind
from segmenter_jax.models.layers import Dense, KernelBias, LayerNorm, dense, gelu
from segmenter_jax.models.placement import Placement, platform_of
from segmenter_jax.models.random_masks import keep_mask

# Collection filled with attention weights when it is mutable; empty and free of cost otherwise.
ATTENTION_MAPS = "attention_maps"


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What all blocks of an encoder or a decoder share; see `SegmenterConfig` for the meaning.

    `mesh` is the network's, see `Segmenter`.

    A field that `SegmenterConfig` has under the same name reaches every block of the encoder, and
    those of the mask decoder where `SegmenterConfig.decoder_block` does not replace it.
    """

    num_heads: int
    mlp: MlpKind
    mlp_dim: int
    layer_scale: bool
    dropout_rate: float
    attention_dropout_rate: float
    layer_norm_eps: float
    gelu: Gelu
    attention: str
    dtype: jnp.dtype
    mesh: Placement


# What a block keeps for its backward pass by platform, which is everything on a CPU. The rest is
# cheaper made again than written to memory, read back, and, where layers are scanned, copied into
# and out of the arrays of all layers. On a TPU kernels want queries, keys and values as arrays of
# their own: one more copy. Statistics of norms are small, and spare a pass over all tokens.
_KEPT = {"tpu": ("attended", "hidden", "statistics")}
_KEPT_BY_DEFAULT = ("projected", "attended", "hidden")

# Sine and cosine of the angles, float32 (N, head_dim) each, by which the N patches are rotated.
Rotation = tuple[jax.Array, jax.Array]


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotates queries or keys of patches by their positions, in float32.

    Args:
      x: (B, T, heads, head_dim), patches last; the tokens before them stay as they are.
      rotation: angles of the T - (number of other tokens) patches.

    Returns:
      An array like `x`.

    Source: Su et al., "RoFormer", 2021, with halves of a head as pairs, as in DINOv3.
    """
    sine, cosine = rotation
    others = x.shape[1] - sine.shape[0]
    patches = x[:, others:].astype(jnp.float32)
    first, second = jnp.split(patches, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    rotated = patches * cosine[:, None] + turned * sine[:, None]
    return jnp.concatenate([x[:, :others], rotated.astype(x.dtype)], axis=1)


class Attention(nn.Module):
    """Multi-head self-attention with separate query, key, value and out parameters."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool, rotation: Rotation | None) -> jax.Array:
        """Maps tokens (B, T, D) to tokens (B, T, D); `rotation` as for `Block`."""
        batch, length, width = x.shape
        dtype, heads = self.config.dtype, self.config.num_heads
        head_dim = width // heads
        parts = [
            KernelBias((width, heads, head_dim), (heads, head_dim), name=name)()
            for name in ("query", "key", "value")
        ]
        parts = [(k.reshape(width, width).astype(dtype), b.reshape(width)) for k, b in parts]
        query, key, value = (
            checkpoint_name(part, "projected").reshape(batch, length, heads, head_dim)
            for part in _project(x, parts, self.config.mesh)
        )
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)

        if self.is_mutable_collection(ATTENTION_MAPS):
            self.sow(ATTENTION_MAPS, "weights", attention_weights(query, key))
        # Parameters are made with a batch of 1, which is not split over devices.
        implementation = "xla" if self.is_initializing() else self.config.attention
        rate = 0.0 if deterministic else self.config.attention_dropout_rate
        seeds = None
        if rate:
            seeds = jax.random.bits(self.make_rng("dropout"), (batch, heads), jnp.uint32)
        y = attention(query, key, value, implementation, self.config.mesh, seeds, rate)
        y = checkpoint_name(y.reshape(batch, length, width), "attended")

        kernel, bias = KernelBias((heads, head_dim, width), (width,), name="out")()
        kernel = kernel.reshape(width, width)
        return dense(y, kernel.astype(dtype), bias.astype(dtype))


def _project(
    x: jax.Array, parts: list[tuple[jax.Array, jax.Array]], mesh: Placement
) -> Sequence[jax.Array]:
    """Several dense layers of one width, given as (kernel, bias), of the same input."""
    if platform_of(mesh) != "cpu":
        # Kernels of attention want arrays of their own, which a product writes at no cost.
        return [dense(x, kernel, bias.astype(x.dtype)) for kernel, bias in parts]
    # One matmul: a wider product, and one read of x.
    kernel = jnp.concatenate([kernel for kernel, _ in parts], axis=1)
    bias = jnp.concatenate([bias for _, bias in parts])
    # A split, not slices: its gradient is one concatenation instead of padded sums.
    return jnp.split(dense(x, kernel, bias.astype(x.dtype)), len(parts), axis=-1)


class Dropout(nn.Module):
    """Zeroes elements with probability `rate`, scales what is kept by 1/keep."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0.0:
            return x
        mask = keep_mask(self.make_rng("dropout"), x.shape, self.rate)
        return jnp.where(mask, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, or the first one times a SiLU of a third, a gate.

    Source of the gate: Shazeer, "GLU Variants Improve Transformer", 2020, "SwiGLU".
    """

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Maps tokens (B, T, D) to tokens (B, T, D)."""
        c, width = self.config, x.shape[-1]
        hidden = functools.partial(Dense, c.mlp_dim, c.dtype)
        y = checkpoint_name(hidden(name="Dense_0")(x), "hidden")
        if c.mlp == "swiglu":
            x = nn.silu(checkpoint_name(hidden(name="gate")(x), "hidden")) * y
        else:
            x = gelu(y, c.gelu)
        x = Dropout(c.dropout_rate)(x, deterministic)
        x = Dense(width, c.dtype, name="Dense_1")(x)
        return Dropout(c.dropout_rate)(x, deterministic)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample, scales what is kept by 1/keep.

    The rate is an array where layers are scanned, since each has its own.
    """

    rate: float | jax.Array

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or (isinstance(self.rate, float) and self.rate == 0.0):
            return x
        keep = 1.0 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0], 1, 1))
        # A rate that is an array is float32, whatever x is.
        return jnp.where(mask, (x / keep).astype(x.dtype), jnp.zeros((), x.dtype))


class Block(nn.Module):
    """Pre-norm transformer block, used by the encoder and by the mask decoder."""

    config: BlockConfig
    drop_path_rate: float | jax.Array

    @nn.compact
    def __call__(
        self, x: jax.Array, deterministic: bool, rotation: Rotation | None = None
    ) -> jax.Array:
        """Maps tokens (B, T, D) to tokens (B, T, D).

        Args:
          x: tokens, those of patches last.
          deterministic: no dropout, no stochastic depth.
          rotation: see `rotate`; None where positions are not rotations.
        """
        c = self.config
        norm = functools.partial(LayerNorm, c.layer_norm_eps, c.dtype)
        drop_path = DropPath(self.drop_path_rate)
        y = Attention(c, name="attention")(norm(name="LayerNorm_0")(x), deterministic, rotation)
        y = self._scaled(0, Dropout(c.dropout_rate)(y, deterministic))
        x = x + drop_path(y, deterministic)
        y = Mlp(c, name="mlp")(norm(name="LayerNorm_1")(x), deterministic)
        return x + drop_path(self._scaled(1, y), deterministic)

    def _scaled(self, branch: int, y: jax.Array) -> jax.Array:
        """A residual branch times its factor per channel. Source: Touvron et al., CaiT, 2021."""
        if not self.config.layer_scale:
            return y
        shape = (y.shape[-1],)
        scale = self.param(f"layer_scale_{branch}", nn.initializers.ones, shape)
        return y * scale.astype(y.dtype)


def checkpoint_options(remat: bool, mesh: Placement) -> dict[str, Any] | None:
    """How a block's arrays are kept for its backward pass, as arguments of `jax.checkpoint`.

    Args:
      remat: keep the block's input only.
      mesh: see `Segmenter`.

    Returns:
      None to keep all that the backward pass needs.
    """
    if remat:
        return {}
    platform = platform_of(mesh)
    if platform == "cpu":
        return None
    policies = jax.checkpoint_policies
    return {
        "policy": policies.save_from_both_policies(
            policies.save_only_these_names(*_KEPT.get(platform, _KEPT_BY_DEFAULT)),
            lambda primitive, *_, **__: primitive.name == CUDNN_FORWARD,
        )
    }


def block_class(remat: bool, mesh: Placement) -> type[Block]:
    """`Block`, or one that recomputes activations in the backward pass; same parameters.

    Args:
      remat, mesh: see `checkpoint_options`.
    """
    options = checkpoint_options(remat, mesh)
    return Block if options is None else nn.remat(Block, static_argnums=(2,), **options)


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rate of stochastic depth of each block: from 0, linearly, to `last`."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]
