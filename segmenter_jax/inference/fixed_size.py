"""A model as two functions of arrays of fixed size, for use without this package.

What `SlidingWindow` decides for each image is decided once for one size, so that all of it becomes
one program: scaling, windows, network, merging. The answers are those of `SlidingWindow`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.inference.geometry import (
    InferenceSettings,
    check_image,
    merge_matrix,
    scaled_size,
    window_anchors,
)
from segmenter_jax.inference.merging import normalised
from segmenter_jax.models import Segmenter
from segmenter_jax.models.normalization import normalize

# Of what merges a picture, which is made at once here and not in tiles.
_MAX_BYTES = 2**31

# Of OpenCV's weights for bytes.
_ONE = 2048


@dataclasses.dataclass(frozen=True)
class FixedFunction:
    """A function of one array.

    Attributes:
      call: the function.
      name: of the function.
      argument: name of its array.
      dtype, shape: of its array; a letter stands for any size.
      results: names of the arrays of the dictionary that it returns.
    """

    call: Callable[[jax.Array], dict[str, jax.Array]]
    name: str
    argument: str
    dtype: str
    shape: tuple[int | str, ...]
    results: tuple[str, ...]


def _forward(description: ModelDescription, params: Any) -> Callable[[jax.Array], jax.Array]:
    """Windows (B, h, w, C) with values in 0..255 -> patch logits, float32."""
    d = description
    # The same on all platforms.
    portable = {"dtype": "float32", "attention": "xla", "remat": False, "scan_layers": False}
    model = Segmenter(dataclasses.replace(d.model, **portable))
    params = jax.tree.map(np.asarray, params)

    def forward(windows: jax.Array) -> jax.Array:
        # Else GPUs and TPUs round the operands of products, each in its own way.
        with jax.default_matmul_precision("highest"):
            return model.apply({"params": params}, normalize(windows, None, d.mean, d.std))

    return forward


def network_function(description: ModelDescription, params: Any) -> FixedFunction:
    """The network: uint8 pixels (B, window, window, C) to what it gives, float32 (B, h, w, K).

    Those are patch logits, or scores of pixels, see `Segmenter`.

    Args:
      description: of the model.
      params: the tree under "params", on the host.
    """
    forward = _forward(description, params)
    window, channels = description.window, description.model.in_channels
    return FixedFunction(
        lambda pixels: {"logits": forward(pixels)},
        "network",
        "pixels",
        "uint8",
        ("B", window, window, channels),
        ("logits",),
    )


def picture_function(
    description: ModelDescription, params: Any, size: tuple[int, int]
) -> FixedFunction:
    """A whole picture, uint8 (H, W, C), to class ids and their probabilities, (H, W) each.

    It is scaled and cut by the model's own rule; all windows are computed as one batch.

    Args:
      description, params: see `network_function`.
      size: (H, W) of the picture, in pixels.

    Raises:
      ValueError: the picture would become too large.
    """
    settings, channels = InferenceSettings.of(description), description.model.in_channels
    check_image((*size, channels), settings, channels)
    scaled, cut = scaled_size(*size, settings, 1.0)
    side = settings.window
    tops, lefts = (window_anchors(n, side, settings.stride) for n in cut)
    cells = -(-side // description.model.cell_size)
    matrices = cells * (size[0] * len(tops) + size[1] * len(lefts))
    merged = 4 * (math.prod(size) * description.model.num_classes + matrices)
    if merged > _MAX_BYTES:
        raise ValueError(
            f"a picture of {size[0]} x {size[1]} pixels takes {merged / 2**30:.1f} GB to merge at "
            f"once, over the limit of {_MAX_BYTES / 2**30:.0f} GB; export smaller pictures"
        )
    forward, merge = _forward(description, params), _merging(description, size)

    def call(picture: jax.Array) -> dict[str, jax.Array]:
        if scaled != size:
            picture = _resized_bytes(picture, scaled)
        if cut != scaled:
            picture = _resized(picture.astype(jnp.float32), cut)
        places = itertools.product(tops, lefts)
        windows = [picture[top : top + side, left : left + side] for top, left in places]
        scores = merge(forward(jnp.stack(windows)))
        ids = jnp.argmax(scores, axis=-1).astype(ids_dtype(scores.shape[-1]))
        probs = normalised(scores, -1, description.model.gives_scores)
        return {"ids": ids, "confidence": probs.max(axis=-1)}

    shape = (*size, channels)
    return FixedFunction(call, "picture", "picture", "uint8", shape, ("ids", "confidence"))


def ids_dtype(num_classes: int) -> str:
    """The smallest type of ids: uint8, uint16 or int32."""
    return next((t for t in ("uint8", "uint16") if num_classes <= np.iinfo(t).max + 1), "int32")


def _merging(
    description: ModelDescription, size: tuple[int, int]
) -> Callable[[jax.Array], jax.Array]:
    """Patch logits of all windows (N, h, w, K) -> logits of a picture (H, W, K); see `merging`."""
    settings = InferenceSettings.of(description)
    side, stride, cell = settings.window, settings.stride, description.model.cell_size
    _, cut = scaled_size(*size, settings, 1.0)
    rows, columns = (
        merge_matrix(n, side, stride, cell, out) for n, out in zip(cut, size, strict=True)
    )
    count = [len(window_anchors(n, side, stride)) for n in cut]
    highest = jax.lax.Precision.HIGHEST

    def merge(logits: jax.Array) -> jax.Array:
        _, height, width, num_classes = logits.shape
        grid = logits.reshape(*count, height, width, num_classes).transpose(0, 2, 1, 3, 4)
        grid = grid.reshape(rows.shape[1], -1)
        partial = jnp.matmul(rows, grid, precision=highest)
        partial = partial.reshape(size[0], columns.shape[1], num_classes)
        return jnp.matmul(columns, partial, precision=highest)

    return merge


def _taps(in_size: int, out_size: int, clamp: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second sample of each output sample, and the weight of the second, as OpenCV's."""
    # In its order of operations and its types: what is rounded decides about bytes.
    centre = ((np.arange(out_size) + 0.5) * (1.0 / (out_size / in_size)) - 0.5).astype(np.float32)
    first = np.floor(centre)
    weight, first = centre - first, first.astype(np.int32)
    if clamp:
        weight = np.where((first < 0) | (first >= in_size - 1), np.float32(0), weight)
    first, second = (np.clip(first + i, 0, in_size - 1) for i in (0, 1))
    return first, second, weight


def _resized(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """What `cv2.resize` makes of float32 (H, W, C)."""
    for axis in (1, 0):
        first, second, weight = _taps(image.shape[axis], size[axis], clamp=True)
        weight = weight.reshape(-1, *(1,) * (2 - axis))
        pair = (jnp.take(image, index, axis=axis) for index in (first, second))
        image = next(pair) * (1 - weight) + next(pair) * weight
    return image


def _resized_bytes(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """What `cv2.resize` makes of uint8 (H, W, C), bit for bit: its integers, as uint8."""
    image = image.astype(jnp.int32)

    def sides(axis: int) -> list[tuple[jax.Array, np.ndarray]]:
        # Weights are clamped along rows only.
        first, second, weight = _taps(image.shape[axis], size[axis], clamp=axis == 1)
        shape = (-1, *(1,) * (2 - axis))
        pairs = (first, np.float32(1) - weight), (second, weight)
        return [
            (jnp.take(image, index, axis=axis), np.rint(w * np.float32(_ONE)).astype(np.int32))
            for index, w in pairs
            for w in [w.reshape(shape)]
        ]

    image = sum(samples * weight for samples, weight in sides(1))
    image = sum(_divided(_divided(samples, 16) * weight, 2**16) for samples, weight in sides(0))
    return _divided(image + 2, 4).astype(jnp.uint8)


def _divided(values: jax.Array, divisor: int) -> jax.Array:
    # Of what is not negative this is a shift, which ONNX does not have for signed integers.
    return jax.lax.div(values, jnp.int32(divisor))
