"""Vision Transformer encoder.

Parameter names are those of the original Google checkpoints, so that loading them is nearly the
identity: `embedding`, `cls`, `pos_embedding`, `encoderblock_i/{LayerNorm_0, attention, LayerNorm_1,
mlp}`, `encoder_norm`. Distilled DeiT models have one more token, `dist`, after the class token.
"""

import functools
import itertools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from segmenter_jax.models.attention import attention, attention_weights
from segmenter_jax.models.layers import Dense, Gelu, KernelBias, LayerNorm, dense, dense_init, gelu
from segmenter_jax.models.resampling import Method, resize_matrix

# Collection filled with attention weights when it is mutable; empty and free of cost otherwise.
ATTENTION_MAPS = "attention_maps"


class Attention(nn.Module):
    """Multi-head self-attention with separate query, key, value and out parameters."""

    num_heads: int
    implementation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens (B, T, D) to tokens (B, T, D)."""
        batch, length, width = x.shape
        heads, head_dim = self.num_heads, width // self.num_heads
        parts = [
            KernelBias((width, heads, head_dim), (heads, head_dim), name=name)()
            for name in ("query", "key", "value")
        ]
        # One matmul for the three projections: a wider product, and one read of x.
        kernel = jnp.concatenate([k.reshape(width, width) for k, _ in parts], axis=1)
        bias = jnp.concatenate([b.reshape(width) for _, b in parts])
        qkv = dense(x, kernel.astype(self.dtype), bias.astype(self.dtype))
        qkv = qkv.reshape(batch, length, 3, heads, head_dim)
        # A split, not three slices: its gradient is one concatenation instead of three padded sums.
        query, key, value = (part.squeeze(2) for part in jnp.split(qkv, 3, axis=2))

        if self.is_mutable_collection(ATTENTION_MAPS):
            self.sow(ATTENTION_MAPS, "weights", attention_weights(query, key))
        y = attention(query, key, value, self.implementation)

        kernel, bias = KernelBias((heads, head_dim, width), (width,), name="out")()
        kernel = kernel.reshape(width, width)
        y = y.reshape(batch, length, width)
        return dense(y, kernel.astype(self.dtype), bias.astype(self.dtype))


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32 by two rounds of an integer hash of each element's index and the key.

    Enough for dropout masks, and a twentieth of the cost of `jax.random.bits` on a CPU. Like it,
    an element's bits depend on its index alone, not on how the array is split over devices.
    Source: the mixing function "lowbias32" of C. Wellons' hash-prospector.
    """

    def mix(x: jax.Array) -> jax.Array:
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        return x ^ (x >> 16)

    seed = jax.random.bits(key, (2,), jnp.uint32)
    index = jnp.zeros(shape, jnp.uint32)
    for axis, stride in enumerate(itertools.accumulate(shape[:0:-1], operator.mul, initial=1)):
        axis = len(shape) - 1 - axis
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return mix(mix(index + seed[0]) ^ seed[1])


class Dropout(nn.Module):
    """Zeroes elements with probability `rate`, scales what is kept by 1/keep."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = random_bits(self.make_rng("dropout"), x.shape) < jnp.uint32(keep * 2**32)
        return jnp.where(mask, x / keep, jnp.zeros((), x.dtype))


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    mlp_dim: int
    dropout_rate: float
    gelu: Gelu
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Maps tokens (B, T, D) to tokens (B, T, D)."""
        width = x.shape[-1]
        x = Dense(self.mlp_dim, self.dtype, name="Dense_0")(x)
        x = gelu(x, self.gelu)
        x = Dropout(self.dropout_rate)(x, deterministic)
        x = Dense(width, self.dtype, name="Dense_1")(x)
        return Dropout(self.dropout_rate)(x, deterministic)


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

    num_heads: int
    mlp_dim: int
    dropout_rate: float
    drop_path_rate: float | jax.Array
    layer_norm_eps: float
    gelu: Gelu
    attention: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Maps tokens (B, T, D) to tokens (B, T, D)."""
        norm = functools.partial(LayerNorm, self.layer_norm_eps, self.dtype)
        drop_path = DropPath(self.drop_path_rate)
        y = norm(name="LayerNorm_0")(x)
        y = Attention(self.num_heads, self.attention, self.dtype, name="attention")(y)
        y = Dropout(self.dropout_rate)(y, deterministic)
        x = x + drop_path(y, deterministic)
        y = norm(name="LayerNorm_1")(x)
        y = Mlp(self.mlp_dim, self.dropout_rate, self.gelu, self.dtype, name="mlp")(
            y, deterministic
        )
        return x + drop_path(y, deterministic)


def block_class(remat: bool) -> type[Block]:
    """`Block`, or one that recomputes its activations in the backward pass; same parameters."""
    return nn.remat(Block, static_argnums=(2,)) if remat else Block


def resize_position_embedding(
    embedding: jax.Array,
    num_extra: int,
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    method: Method = "bilinear",
) -> jax.Array:
    """Resizes the grid part of position embeddings; extra tokens are kept as they are.

    Args:
      embedding: (1, num_extra + grid[0] * grid[1], D), extra tokens first.
      num_extra: number of class and distillation tokens.
      grid: (rows, columns) the embeddings were made for, in patches.
      new_grid: (rows, columns) wanted, in patches.
      method: see `resampling.resize_matrix`.

    Returns:
      (1, num_extra + new_grid[0] * new_grid[1], D).
    """
    if tuple(grid) == tuple(new_grid):
        return embedding
    extra, patches = embedding[:, :num_extra], embedding[:, num_extra:]
    patches = patches.reshape(*grid, -1)
    rows, columns = (
        jnp.asarray(resize_matrix(i, o, method), patches.dtype)
        for i, o in zip(grid, new_grid, strict=True)
    )
    resized = jnp.einsum(
        "yh,xw,hwd->yxd", rows, columns, patches, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.concatenate([extra, resized.reshape(1, -1, resized.shape[-1])], axis=1)


class VisionTransformer(nn.Module):
    """ViT encoder over a padded image; returns normalised tokens, extra tokens first.

    Source: Dosovitskiy et al. 2021; Segmenter section 3.1.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int
    grid: tuple[int, int]
    distilled: bool
    dropout_rate: float
    drop_path_rate: float
    layer_norm_eps: float
    gelu: Gelu
    attention: str
    dtype: jnp.dtype
    remat: bool = False
    scan_layers: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, deterministic: bool) -> jax.Array:
        """Encodes an image.

        Args:
          image: normalised (B, H, W, C) with H and W multiples of `patch_size`, in pixels.
          deterministic: no dropout, no stochastic depth.

        Returns:
          (B, num_extra + h * w, width) in `dtype`.
        """
        batch, channels, width = image.shape[0], image.shape[-1], self.width
        rows, columns = (size // self.patch_size for size in image.shape[1:3])
        kernel, bias = KernelBias(
            (self.patch_size, self.patch_size, channels, width),
            (width,),
            initializers.lecun_normal(),
            name="embedding",
        )()
        # The convolution of the checkpoints, whose patches do not overlap, is one matmul.
        x = image.astype(self.dtype)
        x = x.reshape(batch, rows, self.patch_size, columns, self.patch_size, channels)
        x = x.swapaxes(2, 3).reshape(batch, rows * columns, -1)
        kernel = kernel.reshape(-1, width)
        x = dense(x, kernel.astype(self.dtype), bias.astype(self.dtype))

        names = ("cls", "dist") if self.distilled else ("cls",)
        extra = [self.param(name, dense_init, (1, 1, width)) for name in names]
        position = self.param(
            "pos_embedding", dense_init, (1, len(extra) + self.grid[0] * self.grid[1], width)
        )
        position = resize_position_embedding(position, len(extra), self.grid, (rows, columns))
        extra = [jnp.broadcast_to(token, (batch, 1, width)).astype(x.dtype) for token in extra]
        x = jnp.concatenate([*extra, x], axis=1) + position.astype(x.dtype)
        x = Dropout(self.dropout_rate)(x, deterministic)

        # Layers of their own make the parameters, and hand attention weights out.
        unrolled = self.is_initializing() or self.is_mutable_collection(ATTENTION_MAPS)
        if self.scan_layers and not unrolled:
            x = self._scan(x, deterministic)
        else:
            for i in range(self.depth):
                layer = block_class(self.remat)(
                    **self._layer_fields(),
                    drop_path_rate=self._drop_path_rate(i),
                    name=f"encoderblock_{i}",
                )
                x = layer(x, deterministic)
        return LayerNorm(self.layer_norm_eps, self.dtype, name="encoder_norm")(x)

    def _layer_fields(self) -> dict[str, Any]:
        return {
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "dropout_rate": self.dropout_rate,
            "layer_norm_eps": self.layer_norm_eps,
            "gelu": self.gelu,
            "attention": self.attention,
            "dtype": self.dtype,
        }

    def _drop_path_rate(self, layer: int) -> float:
        return self.drop_path_rate * layer / max(self.depth - 1, 1)

    def _scan(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """All layers in a loop of one body, compiled once whatever the depth.

        The parameters are stacked here rather than kept so: their names stay those of the
        checkpoints, for a copy of the encoder's parameters and one of their gradients.
        """
        layers = [self.variables["params"][f"encoderblock_{i}"] for i in range(self.depth)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        rates = jnp.asarray([self._drop_path_rate(i) for i in range(self.depth)])
        random = not deterministic and bool(self.dropout_rate or self.drop_path_rate)
        keys = jax.random.split(self.make_rng("dropout"), self.depth) if random else None

        def body(x: jax.Array, layer: tuple[Any, jax.Array, jax.Array | None]):
            params, rate, key = layer
            block = Block(
                **self._layer_fields(),
                drop_path_rate=rate if self.drop_path_rate else 0.0,
                parent=None,
            )
            rngs = {"dropout": key} if random else None
            return block.apply({"params": params}, x, deterministic, rngs=rngs), None

        # A loop's body is not merged with its recomputation, so nothing needs to prevent that.
        body = jax.checkpoint(body, prevent_cse=False) if self.remat else body
        return jax.lax.scan(body, x, (stacked, rates, keys))[0]
