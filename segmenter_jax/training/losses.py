"""Cross entropy between patch logits and pixel labels.

A pixel's logits are a bilinear mix of the logits of four patches. The fused form never writes the
upsampled logits down: it walks over blocks of pixel rows, and since the gradient of a cross entropy
needs nothing that its value does not, each block's gradient is taken on the spot and folded back to
patches. Memory is one block plus one gradient of the size of the patch logits.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from segmenter_jax.models import upsample
from segmenter_jax.models.placement import Placement, per_device, platform_of
from segmenter_jax.models.resampling import resize_matrix

Implementation = Literal["fused", "plain"]

# Bytes of one block of pixel logits, by platform. One row of pixels on a CPU, where sums over rows
# are slow; on a TPU, which writes no block down, all rows between two patches where possible, as
# each block reads and writes its sums; else what fits in a large GPU's cache.
_BLOCK_BYTES = {"cpu": 0, "tpu": 256 << 20}
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
    mesh: Placement = None,
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
      mesh: the devices that B is split over; None leaves it to JAX. Changes no result.

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
    # Each device by itself: blocks are cut for its share of the batch.
    loss = per_device(
        lambda logits, label: _fused_loss(
            logits, label, class_weights, ignore_label, patch_size, platform_of(mesh)
        ),
        mesh,
    )
    return loss(logits, label).sum(), total


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


def _rows_per_block(row_bytes: int, patch_size: int, platform: str) -> int:
    """Pixel rows of a block: a divisor of `patch_size`, so that blocks lie between two patches."""
    wanted = max(_BLOCK_BYTES.get(platform, _DEFAULT_BLOCK_BYTES) // row_bytes, 1)
    return max(r for r in range(1, patch_size + 1) if patch_size % r == 0 and r <= wanted)


def _scan_rows(
    logits: jax.Array,
    label: jax.Array,
    class_weights: jax.Array | None,
    ignore_label: int,
    patch_size: int,
    platform: str,
    with_gradient: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Loss of each image (B,), and its gradient with respect to `logits`.

    The outer loop runs over pairs of neighbouring rows of patches, each upsampled to the columns of
    pixels once; the inner one over blocks of the pixel rows between their centres.
    """
    batch, num_classes = logits.shape[0], logits.shape[-1]
    line = _line(batch * label.shape[2], platform)
    upsampled, folded = _columns(logits, label.shape[2], patch_size, line)
    patches = jnp.pad(logits.transpose(1, 3, 0, 2), ((1, 1), *[(0, 0)] * 3), mode="edge")
    block_rows = _rows_per_block(4 * num_classes * math.prod(line), patch_size, platform)
    labels = _split_rows(label, len(patches) - 1, patch_size, block_rows, ignore_label)
    labels = labels.reshape(*labels.shape[:3], *line)
    shares = _shares(patch_size, block_rows)

    def add_block(sums, block, upper, step):
        loss, d_upper, d_lower = sums
        block_label, below = block
        known, weight = _known(block_label[:, None], class_weights, ignore_label)
        weight = weight.astype(jnp.float32)
        pixels = upper + below * step
        value, exponential, normaliser = _value(pixels, known, weight, platform)
        loss += value
        if with_gradient:
            d_pixels = _gradient(exponential, normaliser, known, weight)
            d_below = (below * d_pixels).sum(axis=0)
            d_upper, d_lower = d_upper + d_pixels.sum(axis=0) - d_below, d_lower + d_below
        return (loss, d_upper, d_lower), None

    def add_pair(carry, pair):
        loss, upper, d_upper = carry
        lower_patches, pair_labels = pair
        lower = upsampled(lower_patches)
        body = functools.partial(add_block, upper=upper, step=lower - upper)
        start = loss, d_upper, jnp.zeros_like(upper) if with_gradient else None
        (loss, d_upper, d_lower), _ = jax.lax.scan(body, start, (pair_labels, shares))
        return (loss, lower, d_lower), folded(d_upper) if with_gradient else None

    upper = upsampled(patches[0])
    start = jnp.zeros_like(upper[0]), upper, jnp.zeros_like(upper) if with_gradient else None
    (loss, _, d_last), gradient = jax.lax.scan(add_pair, start, (patches[1:], labels))
    loss = loss.reshape(batch, -1).sum(axis=1)
    if not with_gradient:
        return loss, None
    gradient = jnp.concatenate([gradient, folded(d_last)[None]])
    return loss, _fold_edges(gradient).transpose(2, 0, 3, 1)


def _line(pixels: int, platform: str) -> tuple[int, int]:
    """Shape that a row of pixels of all images has.

    It is the fastest axes of every array here: sums over classes and over rows add whole vectors,
    and those of a TPU have eight rows.
    """
    return (8, pixels // 8) if platform == "tpu" and pixels % 8 == 0 else (1, pixels)


def _columns(
    logits: jax.Array, width: int, patch_size: int, line: tuple[int, int]
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Upsamples a row of patches (K, B, w) to the columns of pixels (K, *line); its transpose."""
    batch, _, columns, num_classes = logits.shape
    matrix = resize_matrix(columns, columns * patch_size)[:width]
    to_pixels = jnp.asarray(matrix, jnp.float32)

    def upsampled(patches: jax.Array) -> jax.Array:
        return _matmul("kbw,xw->kbx", patches, to_pixels).reshape(num_classes, *line)

    def folded(pixels: jax.Array) -> jax.Array:
        return _matmul("kbx,xw->kbw", pixels.reshape(num_classes, batch, width), to_pixels)

    return upsampled, folded


def _split_rows(
    label: jax.Array, pairs: int, patch_size: int, block_rows: int, fill: int
) -> jax.Array:
    """(B, H, W) -> (pairs of rows of patches, blocks, block_rows, B, W)."""
    batch, height, width = label.shape
    # The first pair's upper row has its centre half a patch above the image.
    top = patch_size // 2
    padding = ((0, 0), (top, pairs * patch_size - top - height), (0, 0))
    label = jnp.pad(label, padding, constant_values=fill)
    label = label.reshape(batch, pairs, patch_size // block_rows, block_rows, width)
    return label.transpose(1, 2, 3, 0, 4)


def _shares(patch_size: int, block_rows: int) -> jax.Array:
    """Share of the lower patches in the pixel rows of a pair: (blocks, block_rows, 1, 1, 1)."""
    # Where P is odd, P // 2 is half a row short of half a patch.
    centre = 0.5 if patch_size % 2 == 0 else 1.0
    shares = (jnp.arange(patch_size) + centre) / patch_size
    return shares.astype(jnp.float32).reshape(-1, block_rows, 1, 1, 1)


def _value(
    pixels: jax.Array, label: jax.Array, weight: jax.Array, platform: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss of each column of pixels, and what the gradient needs of the softmax.

    Args:
      pixels: (rows, K, ...), the columns of pixels last.
      label, weight: (rows, 1, ...).
      platform: see `models.placement.platform_of`.

    Returns:
      loss: (...), summed over rows.
      exponential, normaliser: their quotient is the softmax.
    """
    peak = pixels.max(axis=1, keepdims=True)
    exponential = jnp.exp(pixels - peak)
    normaliser = exponential.sum(axis=1, keepdims=True)
    if platform == "cpu":
        # A look-up, unlike in the plain form: nothing differentiates through this one.
        picked = jnp.take_along_axis(pixels, label, axis=1)
    else:
        # Accelerators would write all pixels down for it.
        is_label = label == jnp.arange(pixels.shape[1])[:, None, None]
        picked = jnp.where(is_label, pixels, 0).sum(axis=1, keepdims=True)
    loss = (weight * (jnp.log(normaliser) + peak - picked)).sum(axis=(0, 1))
    return loss, exponential, normaliser


def _gradient(
    exponential: jax.Array, normaliser: jax.Array, label: jax.Array, weight: jax.Array
) -> jax.Array:
    """Gradient of `_value`'s loss with respect to the pixel logits."""
    is_label = label == jnp.arange(exponential.shape[1])[:, None, None]
    return exponential * (weight / normaliser) - jnp.where(is_label, weight, 0)


def _fold_edges(gradient: jax.Array) -> jax.Array:
    """Gradient of padding rows (axis 0) with copies of the border rows."""
    return gradient[1:-1].at[0].add(gradient[0]).at[-1].add(gradient[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _fused_loss(
    logits: jax.Array,
    label: jax.Array,
    class_weights: jax.Array | None,
    ignore_label: int,
    patch_size: int,
    platform: str,
) -> jax.Array:
    fixed = ignore_label, patch_size, platform
    return _scan_rows(logits, label, class_weights, *fixed, with_gradient=False)[0]


def _fused_backward(
    ignore_label: int,
    patch_size: int,
    platform: str,
    gradient: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, None, None]:
    del ignore_label, patch_size, platform
    return cotangent[:, None, None, None] * gradient, None, None


_fused_loss.defvjp(functools.partial(_scan_rows, with_gradient=True), _fused_backward)
