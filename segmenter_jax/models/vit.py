"""Vision Transformer encoder.

Parameter names are those of the original Google checkpoints, so that loading them is nearly the
identity: `embedding`, `cls`, `pos_embedding`, `encoderblock_i/{LayerNorm_0, attention, LayerNorm_1,
mlp}`, `encoder_norm`. Distilled DeiT models have one more token, `dist`, after the class token, and
others `registers` after that. What else a family of pretrained encoders has is a field of
`SegmenterConfig`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from segmenter_jax.models.choices import Method
from segmenter_jax.models.config import SegmenterConfig
from segmenter_jax.models.layers import KernelBias, LayerNorm, dense, dense_init, to_compute_type
from segmenter_jax.models.placement import Placement, gather, stack_layers
from segmenter_jax.models.resampling import resize_matrix
from segmenter_jax.models.transformer import (
    ATTENTION_MAPS,
    Block,
    BlockConfig,
    Dropout,
    Rotation,
    block_class,
    checkpoint_options,
    drop_path_rates,
)


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


def rope_rotation(config: SegmenterConfig, grid: tuple[int, int]) -> Rotation:
    """Angles of rotated positions; row and column of a patch lie in [-1, 1], whatever the grid.

    Args:
      config: `rope_base`, `rope_periods` and the size of a head count.
      grid: (rows, columns) of patches.

    Source: DINOv3, `rope_position_encoding.py`.
    """
    head_dim = config.width // config.num_heads
    count = head_dim // 4
    periods = config.rope_base ** (np.arange(count, dtype=np.float32) / np.float32(count))
    periods = periods.astype(jnp.dtype(config.rope_periods)).astype(np.float32)
    centres = [2 * (np.arange(n, dtype=np.float32) + 0.5) / n - 1 for n in grid]
    places = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = np.tile((2 * np.pi * places / periods).reshape(-1, 2 * count), 2)
    return jnp.asarray(np.sin(angles), jnp.float32), jnp.asarray(np.cos(angles), jnp.float32)


def _bias_init(fan_in: int) -> initializers.Initializer:
    """PyTorch's default of a convolution, which the reference leaves to the patch embedding."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class VisionTransformer(nn.Module):
    """ViT encoder over a padded image; returns normalised tokens, extra tokens first.

    Source: Dosovitskiy et al. 2021; Segmenter section 3.1.
    """

    config: SegmenterConfig
    mesh: Placement = None

    @nn.compact
    def __call__(
        self, image: jax.Array, deterministic: bool, queries: jax.Array | None = None
    ) -> jax.Array:
        """Encodes an image.

        Args:
          image: normalised (B, H, W, C) with H and W multiples of the patch size, in pixels.
          deterministic: no dropout, no stochastic depth.
          queries: (1, Q, width), tokens that enter `decoder_depth` layers before the end.

        Returns:
          (B, Q + num_extra_tokens + h * w, width) in the compute dtype, queries first.
        """
        c, block = self.config, self.config.encoder_block(self.mesh)
        x = self._tokens(image, block.dtype)
        x = Dropout(c.dropout_rate)(x, deterministic)
        grid = tuple(size // c.patch_size for size in image.shape[1:3])
        rotation = rope_rotation(c, grid) if c.position == "rope" else None
        last = 0 if queries is None else c.decoder_depth
        x = self._layers(x, range(c.depth - last), block, deterministic, rotation)
        if queries is not None:
            queries = jnp.broadcast_to(queries, (x.shape[0], *queries.shape[1:])).astype(x.dtype)
            x = jnp.concatenate([queries, x], axis=1)
            x = self._layers(x, range(c.depth - last, c.depth), block, deterministic, rotation)
        return LayerNorm(c.layer_norm_eps, block.dtype, name="encoder_norm")(x)

    def _layers(
        self,
        x: jax.Array,
        numbers: range,
        block: BlockConfig,
        deterministic: bool,
        rotation: Rotation | None,
    ) -> jax.Array:
        """Some of the layers, one after the other."""
        c = self.config
        rates = drop_path_rates(c.drop_path_rate, c.depth)
        # Layers of their own make the parameters, and hand attention weights out.
        unrolled = self.is_initializing() or self.is_mutable_collection(ATTENTION_MAPS)
        if c.scan_layers and numbers and not unrolled:
            return self._scan(x, numbers, block, rates, deterministic, rotation)
        for i in numbers:
            layer = block_class(c.remat, self.mesh)(block, rates[i], name=f"encoderblock_{i}")
            x = layer(x, deterministic, rotation)
        return x

    def _tokens(self, image: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Embedded patches after the extra tokens, with their position embeddings."""
        c = self.config
        batch, channels = image.shape[0], image.shape[-1]
        rows, columns = (size // c.patch_size for size in image.shape[1:3])
        kernel, bias = KernelBias(
            (c.patch_size, c.patch_size, channels, c.width),
            (c.width,),
            initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            _bias_init(c.patch_size**2 * channels),
            name="embedding",
        )()
        # The convolution of the checkpoints, whose patches do not overlap, is one matmul.
        x = image.astype(dtype)
        x = x.reshape(batch, rows, c.patch_size, columns, c.patch_size, channels)
        x = x.swapaxes(2, 3).reshape(batch, rows * columns, -1)
        x = dense(x, kernel.reshape(-1, c.width).astype(dtype), bias.astype(dtype))

        def token(name: str, count: int = 1) -> jax.Array:
            value = self.param(name, dense_init, (1, count, c.width))
            return jnp.broadcast_to(value, (batch, count, c.width)).astype(dtype)

        first = [token(n) for n, there in (("cls", c.class_token), ("dist", c.distilled)) if there]
        x = jnp.concatenate([*first, x], axis=1)
        if c.position == "learned":
            shape = (1, len(first) + c.grid[0] * c.grid[1], c.width)
            position = self.param("pos_embedding", dense_init, shape)
            x += resize_position_embedding(
                position, len(first), c.grid, (rows, columns), c.position_resize
            ).astype(dtype)
        if not c.num_registers:
            return x
        registers = token("registers", c.num_registers)
        return jnp.concatenate([x[:, : len(first)], registers, x[:, len(first) :]], axis=1)

    def _scan(
        self,
        x: jax.Array,
        numbers: range,
        config: BlockConfig,
        rates: list[float],
        deterministic: bool,
        rotation: Rotation | None,
    ) -> jax.Array:
        """Layers in a loop of one body, compiled once whatever the depth.

        The parameters are stacked here rather than kept so: their names stay those of the
        checkpoints, for a copy of the encoder's parameters and one of their gradients. Where they
        lie in pieces, no more than one layer of them is whole at a time.
        """
        params = self.variables["params"]
        # What is cast first is stacked, and sent between devices, at half the size.
        layers = [params[f"encoderblock_{i}"] for i in numbers]
        rates = [rates[i] for i in numbers]
        stacked = stack_layers([to_compute_type(x, config.dtype) for x in layers], self.mesh)
        random = not deterministic and bool(
            config.dropout_rate or config.attention_dropout_rate or any(rates)
        )
        keys = jax.random.split(self.make_rng("dropout"), len(rates)) if random else None

        def body(x: jax.Array, layer: tuple[Any, jax.Array, jax.Array | None]):
            params, rate, key = layer
            block = Block(config, rate if any(rates) else 0.0, parent=None)
            rngs = {"dropout": key} if random else None
            params = gather(params, self.mesh)
            return block.apply({"params": params}, x, deterministic, rotation, rngs=rngs), None

        options = checkpoint_options(self.config.remat, self.mesh)
        if options is not None:
            # A loop's body is not merged with its recomputation: nothing needs to prevent that.
            body = jax.checkpoint(body, prevent_cse=False, **options)
        return jax.lax.scan(body, x, (stacked, jnp.asarray(rates), keys))[0]
