"""Cross entropy between patch logits and pixel labels.

A pixel's logits are a bilinear mix of the logits of four patches. The fused form never writes the
upsampled logits down: it walks over blocks of pixel rows, and since the gradient of a cross entropy
needs nothing that its value does not, each block's gradient is taken on the spot and folded back to
patches. Memory is one block plus one gradient of the size of the patch logits.
"""

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from segmenter_jax.models import upsample
from segmenter_jax.models.resampling import resize_matrix

Implementation = Literal["fused", "plain"]

# Bytes of one block of pixel logits, by platform. Two CPU cores: best of 1 to 16 rows at Ti/16@512,
# 150 classes, batch 2 and 8. Elsewhere: what fits in the second-level cache of a large GPU.
_BLOCK_BYTES = {"cpu": 5 << 20}
_DEFAULT_BLOCK_BYTES = 32 << 20

_matmul = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@jax.named_scope("loss")
def segmentation_loss(
    logits: jax.Array,
    label: jax.Array,
    *,
    patch_size: int,
    ignore_label: int,
    class_weights: jax.Array | None = None,
    implementation: Implementation = "fused",
    num_shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Sum of the cross entropy over labelled pixels, and what to divide it by.

    The quotient is the mean over valid pixels; summing both over any split of the batch first gives
    the mean of the whole. The logits of the padded grid are upsampled and then cropped, as
    `models.upsample` does. No forward-mode derivative; none with respect to `class_weights`.

    Args:
      logits: float (B, h, w, K), one per patch; computed with in float32.
      label: integers (B, H, W) with ceil(H / P) == h and ceil(W / P) == w. Each is a class below K
        or `ignore_label`: the data layer guarantees it, since a compiled program cannot raise.
      patch_size: side of a patch P, in pixels.
      ignore_label: value of pixels that count for nothing.
      class_weights: (K,), a pixel's weight by its class; None means 1.
      implementation: "fused", or "plain", which materialises (B, H, W, K) and is the reference.
      num_shards: devices the batch is split over. Sizes blocks, changes no result.

    Returns:
      loss_sum: float32 scalar, nats times weight.
      weight: float32 scalar, number of valid pixels, or the sum of their class weights.

    Raises:
      ValueError: label and logits do not belong together, or the implementation is unknown.
    """
    grid = tuple(-(-size // patch_size) for size in label.shape[1:])
    if label.ndim != 3 or (label.shape[0], *grid) != logits.shape[:3]:
        raise ValueError(
            f"label {label.shape} at {patch_size=} does not belong to logits {logits.shape}"
        )
    if implementation not in get_args(Implementation):
        raise ValueError(f"{implementation=} is unknown; choose from {get_args(Implementation)}")
    num_classes = logits.shape[-1]
    if class_weights is not None and class_weights.shape != (num_classes,):
        raise ValueError(f"class_weights must be ({num_classes},), got {class_weights.shape}")

    if class_weights is not None:
        class_weights = jax.lax.stop_gradient(jnp.asarray(class_weights, jnp.float32))
    known, weight = _known(label, class_weights, ignore_label)
    total = weight.sum().astype(jnp.float32)
    logits = logits.astype(jnp.float32)
    if implementation == "plain":
        return _plain_loss(upsample(logits, label.shape[1:], patch_size), known, weight), total
    blocks = _blocks(logits.shape, label.shape[1:], patch_size, num_shards)
    return _fused_loss(logits, label, class_weights, ignore_label, blocks), total


def _known(
    label: jax.Array, class_weights: jax.Array | None, ignore_label: int
) -> tuple[jax.Array, jax.Array]:
    """Labels with a class in the place of ignored ones, int32, and weights, 0 for ignored ones.

    Without class weights the weights are bool: their sum is then a count, exact for any number.
    """
    valid = label != ignore_label
    known = jnp.where(valid, label, 0).astype(jnp.int32)
    return known, valid if class_weights is None else jnp.where(valid, class_weights[known], 0)


def _plain_loss(pixels: jax.Array, label: jax.Array, weight: jax.Array) -> jax.Array:
    # A comparison instead of a look-up: the gradient of a look-up is a scatter over all pixels.
    is_label = label[..., None] == jnp.arange(pixels.shape[-1])
    picked = jnp.where(is_label, pixels, 0).sum(-1)
    return (weight * (jax.nn.logsumexp(pixels, axis=-1) - picked)).sum()


class _Blocks(NamedTuple):
    """How pixel rows are cut: every block lies between the centres of two rows of patches."""

    patch_size: int
    rows: int  # pixel rows of a block; divides patch_size
    first: int  # index of the first block, from half a patch above the image
    count: int
    pad_top: int  # rows added so that the first block is whole
    pad_bottom: int


def _blocks(
    logits_shape: tuple[int, ...], size: tuple[int, int], patch_size: int, num_shards: int
) -> _Blocks:
    row_bytes = 4 * max(logits_shape[0] // num_shards, 1) * size[1] * logits_shape[-1]
    wanted = _BLOCK_BYTES.get(jax.default_backend(), _DEFAULT_BLOCK_BYTES) // row_bytes
    rows = max(r for r in range(1, patch_size + 1) if patch_size % r == 0 and r <= max(wanted, 1))
    first, pad_top = divmod(patch_size // 2, rows)
    count = -(-(pad_top + size[0]) // rows)
    return _Blocks(patch_size, rows, first, count, pad_top, count * rows - pad_top - size[0])


def _scan_blocks(
    logits: jax.Array,
    label: jax.Array,
    class_weights: jax.Array | None,
    ignore_label: int,
    blocks: _Blocks,
    with_gradient: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Loss of all blocks, and its gradient with respect to `logits`."""
    columns = logits.shape[2]
    to_pixels = jnp.asarray(
        resize_matrix(columns, columns * blocks.patch_size)[: label.shape[2]], jnp.float32
    )
    # Pixels, not classes, are the fastest axis, so that sums over classes work on whole vectors.
    padded = jnp.pad(logits.swapaxes(2, 3), ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")

    def add_block(carry, block):
        loss, gradient = carry
        index, block_label = block
        known, weight = _known(block_label[:, :, None], class_weights, ignore_label)
        weight = weight.astype(jnp.float32)
        row, below = _rows(index, blocks)
        patches = jax.lax.dynamic_slice_in_dim(padded, row, 2, axis=1)
        pixels = _pixel_logits(patches, below, to_pixels)
        value, exponential, normaliser = _value(pixels, known, weight)
        loss += value
        if with_gradient:
            d_pixels = _gradient(exponential, normaliser, known, weight)
            update = _to_patches(d_pixels, below, to_pixels)
            update += jax.lax.dynamic_slice_in_dim(gradient, row, 2, axis=1)
            gradient = jax.lax.dynamic_update_slice_in_dim(gradient, update, row, axis=1)
        return (loss, gradient), None

    xs = (blocks.first + jnp.arange(blocks.count), _split_rows(label, blocks, ignore_label))
    start = (jnp.zeros_like(padded[:, 0, 0, 0]), jnp.zeros_like(padded) if with_gradient else None)
    (loss, gradient), _ = jax.lax.scan(add_block, start, xs)
    return loss.sum(), _fold_edges(gradient).swapaxes(2, 3) if with_gradient else None


def _split_rows(x: jax.Array, blocks: _Blocks, fill: int) -> jax.Array:
    """(B, H, W) -> (count, B, rows, W)."""
    pad = ((0, 0), (blocks.pad_top, blocks.pad_bottom), (0, 0))
    x = jnp.pad(x, pad, constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], blocks.count, blocks.rows, x.shape[2]), 1, 0)


def _rows(index: jax.Array, blocks: _Blocks) -> tuple[jax.Array, jax.Array]:
    """Patch row (of the padded ones) above a block, and the share of the one below: (rows, 1, 1).

    Blocks count rows from P // 2 above the image. There the patch row above the image has its
    centre, and pixel rows have theirs half a row further on; a whole row where P is odd, since
    P // 2 is then half a row short of half a patch.
    """
    row, offset = jnp.divmod(index * blocks.rows, blocks.patch_size)
    centre = 0.5 if blocks.patch_size % 2 == 0 else 1.0
    below = (offset + jnp.arange(blocks.rows) + centre) / blocks.patch_size
    return row, below[:, None, None].astype(jnp.float32)


def _pixel_logits(patches: jax.Array, below: jax.Array, to_pixels: jax.Array) -> jax.Array:
    """Two rows of patches (B, 2, K, w) to the pixels between them (B, rows, K, W)."""
    first, second = jnp.split(patches, 2, axis=1)
    return _matmul("bykw,xw->bykx", first + below * (second - first), to_pixels)


def _to_patches(pixels: jax.Array, below: jax.Array, to_pixels: jax.Array) -> jax.Array:
    """Transpose of `_pixel_logits`: (B, rows, K, W) to (B, 2, K, w)."""
    partial = _matmul("bykx,xw->bykw", pixels, to_pixels)
    second = (below * partial).sum(axis=1, keepdims=True)
    return jnp.concatenate([partial.sum(axis=1, keepdims=True) - second, second], axis=1)


def _value(
    pixels: jax.Array, label: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss of each image (B,), and what the gradient needs of the softmax.

    Args:
      pixels: (B, rows, K, W).
      label, weight: (B, rows, 1, W).

    Returns:
      loss: not summed over images, which would be one collective per block on several devices.
      exponential, normaliser: their quotient is the softmax.
    """
    peak = pixels.max(axis=2, keepdims=True)
    exponential = jnp.exp(pixels - peak)
    normaliser = exponential.sum(axis=2, keepdims=True)
    # A look-up, unlike in the plain form: nothing differentiates through this one.
    picked = jnp.take_along_axis(pixels, label, axis=2)
    loss = (weight * (jnp.log(normaliser) + peak - picked)).sum(axis=(1, 2, 3))
    return loss, exponential, normaliser


def _gradient(
    exponential: jax.Array, normaliser: jax.Array, label: jax.Array, weight: jax.Array
) -> jax.Array:
    """Gradient of `_value`'s loss with respect to the pixel logits."""
    is_label = label == jnp.arange(exponential.shape[2])[:, None]
    return exponential * (weight / normaliser) - jnp.where(is_label, weight, 0)


def _fold_edges(gradient: jax.Array) -> jax.Array:
    """Gradient of padding rows (axis 1) with copies of the border rows."""
    return gradient[:, 1:-1].at[:, 0].add(gradient[:, 0]).at[:, -1].add(gradient[:, -1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _fused_loss(
    logits: jax.Array,
    label: jax.Array,
    class_weights: jax.Array | None,
    ignore_label: int,
    blocks: _Blocks,
) -> jax.Array:
    return _scan_blocks(logits, label, class_weights, ignore_label, blocks, with_gradient=False)[0]


def _fused_backward(
    ignore_label: int, blocks: _Blocks, gradient: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, None, None]:
    del ignore_label, blocks
    return cotangent * gradient, None, None


_fused_loss.defvjp(functools.partial(_scan_blocks, with_gradient=True), _fused_backward)
