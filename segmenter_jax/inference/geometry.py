"""The geometry of sliding-window inference: sizes, windows, and one matrix per axis.

Placing the upsampled logits of overlapping windows, dividing by their count, resizing to the
original image and un-flipping are all linear and separable. `merge_matrix` composes them for one
axis; it is nearly empty, so `axis_tiles` cuts it into tiles that see few patches each.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from segmenter_jax.checkpoints.description import ModelDescription, check_windows
from segmenter_jax.data.transforms import rescaled_size
from segmenter_jax.models.resampling import bilinear_taps, resize_matrix

# One scaled version of one image; what is larger is refused with a message instead of a kill.
MAX_VERSION_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """How an image is scaled, cut and averaged: the protocol behind a number.

    Attributes:
      window: side of the square windows, in pixels.
      stride: distance of neighbouring windows, in pixels.
      base_size: short side that images are scaled to, in pixels; None keeps their own size.
      aspect_bound: the long side is scaled to at most `aspect_bound * base_size`.
      scales: factors on top of `base_size`, one version of the image for each.
      flip: every version is also seen flipped left to right.
      batch_size: windows at a time, rounded up to a multiple of the devices, or on one CPU of the
        calls that run side by side (see `calls`); None chooses by the kind of device.
    """

    window: int
    stride: int
    base_size: int | None = None
    aspect_bound: float = 4.0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(s) for s in self.scales))
        check_windows(self.window, self.stride, self.base_size, self.aspect_bound)
        if not self.scales or not all(0 < s < math.inf for s in self.scales):
            raise ValueError(f"scales must be positive numbers, at least one; got {self.scales}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be None or at least 1")

    @classmethod
    def of(cls, description: ModelDescription, **overrides: Any) -> "InferenceSettings":
        """A model's own settings, single scale, but for what is given.

        Args:
          description: of the model.
          **overrides: fields of this class. A window given without a stride keeps the model's
            stride if it fits, and else does not overlap.

        Raises:
          ValueError: a value is outside its range.
        """
        window = overrides.get("window", description.window)
        own = {
            "window": window,
            "stride": min(description.stride, window),
            "base_size": description.base_size,
            "aspect_bound": description.aspect_bound,
        }
        return cls(**(own | overrides))

    def protocol(self) -> str:
        """One line that belongs beside every number measured with these settings."""
        base = "native" if self.base_size is None else str(self.base_size)
        scales = ",".join(f"{s:g}" for s in self.scales)
        flip = "yes" if self.flip else "no"
        return (
            f"window {self.window}, stride {self.stride}, base {base}, scales {scales}, flip {flip}"
        )


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below `value`."""
    return -(-value // multiple) * multiple


def window_anchors(side: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis: every `stride`, the last flush with the end.

    Args:
      side, window, stride: in pixels, `window <= side`.

    Raises:
      ValueError: the window is longer than the side.
    """
    if window > side:
        raise ValueError(f"{window=} does not fit into {side=}")
    return [*range(0, side - window, stride), side - window]


def _placed_windows(side: int, window: int, stride: int, patch_size: int) -> np.ndarray:
    """Maps the patches of all windows to the mean over windows at each pixel; (side, patches)."""
    anchors = window_anchors(side, window, stride)
    rows = math.ceil(window / patch_size)
    upsample = resize_matrix(rows, rows * patch_size)[:window]
    placed = np.zeros((side, len(anchors) * rows))
    count = np.zeros((side, 1))
    for i, anchor in enumerate(anchors):
        placed[anchor : anchor + window, i * rows : (i + 1) * rows] = upsample
        count[anchor : anchor + window] += 1
    return placed / count


def merge_matrix(
    scaled_side: int, window: int, stride: int, patch_size: int, out_side: int, flip: bool = False
) -> np.ndarray:
    """Matrix from the patch logits of all windows to output pixels, along one axis.

    Composes: upsample each window, add it at its place, divide by the number of windows, resize
    to the output, un-flip.

    Args:
      scaled_side: side of the image that was cut, in pixels.
      window, stride, patch_size: in pixels.
      out_side: side of the output, in pixels.
      flip: the cut image was flipped along this axis.

    Returns:
      float32 (out_side, windows * ceil(window / patch_size)); rows sum to 1.
    """
    placed = _placed_windows(scaled_side, window, stride, patch_size)
    first, second, weight = bilinear_taps(scaled_side, out_side)
    merged = placed[first] * (1 - weight)[:, None] + placed[second] * weight[:, None]
    return (merged[::-1] if flip else merged).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class AxisGeometry:
    """What tiles of one axis depend on besides the sizes of the image; all in pixels."""

    window: int
    stride: int
    patch_size: int
    tile: int

    @property
    def taps(self) -> int:
        """Patches that one output pixel may see.

        It lies between two pixels of the scaled image, each of them in some windows, and in each
        window between two patches.
        """
        overlap = math.ceil(self.window / self.stride) + 1
        return 4 * overlap

    @property
    def capacity(self) -> int:
        """Patches that one tile may see.

        Enough for a tile at scale 1 that two windows overlap, and always for a single pixel; where
        a tile would see more, it is made shorter.
        """
        return round_up(max(2 * (self.tile // self.patch_size + 3), self.taps), 8)


class Taps(NamedTuple):
    """A matrix with few entries in a row.

    Attributes:
      columns: int32 (..., rows, taps), columns of the entries; padded with column 0.
      weights: float32 (..., rows, taps), their values; padded with 0.
    """

    columns: np.ndarray
    weights: np.ndarray


TAP_TYPES = Taps(np.int32, np.float32)


@dataclasses.dataclass(frozen=True)
class AxisTiles:
    """One output axis cut into T tiles, with what each tile takes from each of V versions.

    Attributes:
      spans: T pairs (start, stop) of output pixels.
      index: int32 (V, T, capacity), patches that a tile sees.
      taps: (V, T, tile, taps), the rows and columns of the merge matrix for them: (tile, capacity);
        zero where the tile is shorter or sees fewer patches.
    """

    spans: tuple[tuple[int, int], ...]
    index: np.ndarray
    taps: Taps


@functools.lru_cache(maxsize=64)
def axis_tiles(
    versions: tuple[tuple[int, bool], ...], out_side: int, geometry: AxisGeometry
) -> AxisTiles:
    """Cuts an output axis into tiles; `versions` are (scaled side, flipped)."""
    g, capacity = geometry, geometry.capacity
    matrices = [
        merge_matrix(side, g.window, g.stride, g.patch_size, out_side, flip)
        for side, flip in versions
    ]
    spans, start = [], 0
    while start < out_side:
        stop = min(start + g.tile, out_side)
        for matrix in matrices:
            seen = np.logical_or.accumulate(matrix[start:stop] != 0, axis=0).sum(axis=1)
            stop = start + int(np.searchsorted(seen, capacity, side="right"))
        spans.append((start, stop))
        start = stop

    index = np.zeros((len(versions), len(spans), capacity), np.int32)
    shape = (len(versions), len(spans), g.tile, g.taps)
    taps = Taps(*(np.zeros(shape, dtype) for dtype in TAP_TYPES))
    for v, matrix in enumerate(matrices):
        for t, (start, stop) in enumerate(spans):
            seen = np.flatnonzero(matrix[start:stop].any(axis=0))
            index[v, t, : len(seen)] = seen
            block = matrix[start:stop, seen]
            rows, columns = np.nonzero(block)
            # How many entries of its row are before an entry.
            order = np.cumsum(block != 0, axis=1)[rows, columns] - 1
            taps.columns[v, t, rows, order] = columns
            taps.weights[v, t, rows, order] = block[rows, columns]
    return AxisTiles(tuple(spans), index, taps)


def scaled_size(
    height: int, width: int, settings: InferenceSettings, factor: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes of one version of an image.

    Args:
      height, width: of the image, in pixels.
      settings: gives base size, aspect bound and window.
      factor: one of `settings.scales`.

    Returns:
      (h, w) after scaling, and (h, w) of what is cut into windows: the same, or enlarged so that
      the short side equals the window.
    """
    if settings.base_size is None:
        size = max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)
    else:
        size = rescaled_size(height, width, settings.base_size, settings.aspect_bound, factor)
    (h, w), window = size, settings.window
    if min(h, w) >= window:
        return size, size
    # In this order of operations: the long side is truncated, so rounding matters.
    return size, (window, int(w / h * window)) if h < w else (int(h / w * window), window)


def check_image(shape: tuple[int, ...], settings: InferenceSettings, channels: int) -> None:
    """Checks that all versions of an image can be made.

    Args:
      shape: of the image.
      settings: how it will be scaled.
      channels: that the model takes.

    Raises:
      ValueError: not (H, W, channels), without pixels, or a version would take more than
        `MAX_VERSION_BYTES`.
    """
    if len(shape) != 3 or shape[2] != channels or 0 in shape:
        raise ValueError(f"image must be (H, W, {channels}) for this model, got {shape}")
    for factor in settings.scales:
        scaled, cut = scaled_size(*shape[:2], settings, factor)
        # Enlarged versions are float32.
        if math.prod(cut) * channels * (1 if cut == scaled else 4) > MAX_VERSION_BYTES:
            raise ValueError(
                f"an image of {shape[0]} x {shape[1]} pixels becomes {cut[0]} x {cut[1]} at scale "
                f"{factor:g} and window {settings.window}, over the limit of "
                f"{MAX_VERSION_BYTES >> 20} MB"
            )


def scaled_image(image: np.ndarray, settings: InferenceSettings, factor: float) -> np.ndarray:
    """Scales an image for one version and makes sure that a window fits into it.

    Args:
      image: uint8 or float32 (H, W, C).
      settings: gives base size, aspect bound and window.
      factor: one of `settings.scales`.

    Returns:
      (h, w, C); uint8 images become float32 where the short side had to be enlarged to the window.
    """
    scaled, cut = scaled_size(*image.shape[:2], settings, factor)
    channels = image.shape[2]
    if scaled != image.shape[:2]:
        image = cv2.resize(image, scaled[::-1], interpolation=cv2.INTER_LINEAR)
    if cut != scaled:
        image = cv2.resize(image.astype(np.float32), cut[::-1], interpolation=cv2.INTER_LINEAR)
    # OpenCV drops a channel axis of length 1.
    return image.reshape(*cut, channels)


def image_versions(
    image: np.ndarray, settings: InferenceSettings
) -> Iterator[tuple[np.ndarray, bool]]:
    """Every version of an image (H, W, C), scaled when asked for, and whether it is flipped."""
    for factor in settings.scales:
        scaled = scaled_image(image, settings, factor)
        yield scaled, False
        if settings.flip:
            yield scaled[:, ::-1], True
