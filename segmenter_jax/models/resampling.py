"""Resizing as linear algebra: one small matrix per axis.

A separable resize of an image is `R_y @ image @ R_x.T`. Everything that moves pixels in this
package (upsampling logits, merging windows, resizing position embeddings) is a product of the
matrices made here, so the conventions are stated once: half-pixel centres, no antialiasing, edges
clamped, as PyTorch's `interpolate(align_corners=False)`. The other rules are those by which
pretrained networks resize their position embeddings, see `resize_matrix`.
"""

import functools
from typing import get_args

import numpy as np

from segmenter_jax.models.choices import Method

# PyTorch's cubic convolution coefficients, without and with antialiasing.
_CUBIC_A, _CUBIC_A_ANTIALIAS = -0.75, -0.5

# Added to the output's length by DINOv2's code, against rounding of the scale.
_DINOV2_OFFSET = 0.1


def bilinear_taps(in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each output sample of a bilinear resize takes from the input.

    Args:
      in_size: length of the input axis, in samples.
      out_size: length of the output axis, in samples.

    Returns:
      Index of the first sample, index of the second, and weight of the second; (out_size,) each.
    """
    centre = (np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5
    # Clamping the coordinate, not only the samples, is what PyTorch does; the result is the same.
    centre = np.clip(centre, 0, in_size - 1)
    first = np.floor(centre).astype(np.int64)
    return first, np.minimum(first + 1, in_size - 1), centre - first


def _cubic_kernel(distance: np.ndarray, a: float = _CUBIC_A) -> np.ndarray:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _linear_kernel(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0)


def _antialiased(in_size: int, out_size: int, cubic: bool) -> np.ndarray:
    """Matrix whose kernel is as wide as an output sample, cut at the borders and renormalised."""
    scale = in_size / out_size
    width, centre = max(scale, 1.0), (np.arange(out_size) + 0.5) * scale
    radius = (2 if cubic else 1) * width
    sample = np.arange(in_size)
    first, stop = (
        np.floor(np.clip(edge + 0.5, 0, in_size)) for edge in (centre - radius, centre + radius)
    )
    distance = (sample + 0.5 - centre[:, None]) / width
    weights = _cubic_kernel(distance, _CUBIC_A_ANTIALIAS) if cubic else _linear_kernel(distance)
    weights = np.where((sample >= first[:, None]) & (sample < stop[:, None]), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


@functools.lru_cache(maxsize=512)
def resize_matrix(in_size: int, out_size: int, method: Method = "bilinear") -> np.ndarray:
    """Matrix of a one-dimensional resize.

    Args:
      in_size: length of the input axis, in samples.
      out_size: length of the output axis, in samples.
      method: "bilinear" or "bicubic" with half-pixel centres; "bicubic_offset", the same with a
        scale that is a little off (DINOv2's own code); "bilinear_antialias" or "bicubic_antialias",
        which average where samples get fewer (LOCA; DINOv2 with registers, and timm); or
        "corner_linear", where the first and last samples of both axes coincide (Google's ViT code).

    Returns:
      float64 (out_size, in_size), read-only; rows sum to 1.

    Raises:
      ValueError: a size is not positive or the method is unknown.
    """
    if in_size < 1 or out_size < 1:
        raise ValueError(f"sizes must be at least 1, got {in_size=}, {out_size=}")
    if method.endswith("_antialias"):
        matrix = _antialiased(in_size, out_size, method == "bicubic_antialias")
    else:
        matrix = np.zeros((out_size, in_size))
        for samples, weight in _taps(in_size, out_size, method):
            # Edge taps fold onto the border sample, hence accumulation.
            np.add.at(matrix, (np.arange(out_size), samples), weight)
    matrix.setflags(write=False)
    return matrix


def _taps(in_size: int, out_size: int, method: Method) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of input samples and their weights, (out_size,) each."""
    if method == "bilinear":
        first, second, weight = bilinear_taps(in_size, out_size)
        return [(first, 1 - weight), (second, weight)]
    index = np.arange(out_size, dtype=np.float64)
    if method == "corner_linear":
        centre = index * ((in_size - 1) / (out_size - 1) if out_size > 1 else 0.0)
        kernel, offsets = _linear_kernel, (0, 1)
    elif method in ("bicubic", "bicubic_offset"):
        offset = _DINOV2_OFFSET if method == "bicubic_offset" else 0.0
        centre = (index + 0.5) * (in_size / (out_size + offset)) - 0.5
        kernel, offsets = _cubic_kernel, (-1, 0, 1, 2)
    else:
        raise ValueError(f"{method=} is unknown; choose from {get_args(Method)}")
    taps = [np.floor(centre).astype(np.int64) + offset for offset in offsets]
    return [(np.clip(tap, 0, in_size - 1), kernel(centre - tap)) for tap in taps]
