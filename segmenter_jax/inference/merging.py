"""The tail of inference: low-resolution logits of windows to maps of an image, tile by tile.

A tile is a block of output pixels. `tile_maps` resamples tiles from every version of their image,
averages the probabilities and summarises them, so that no more than some tiles of probabilities
exist at a time and only what was asked for leaves the device. All tiles have one size.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segmenter_jax.inference.geometry import AxisGeometry, AxisTiles, Taps, axis_tiles

OUTPUTS = ("ids", "probs", "confidence", "entropy", "top_ids", "top_probs")

Maps = dict[str, np.ndarray]

# Output pixels of one tile, (rows, columns). On a CPU a tile of 150 classes takes 4.9 MB and stays
# in cache; accelerators want fewer and larger pieces of work, and the wider a tile, the more of the
# columns that a product sums over are zero.
_CPU_TILE = (64, 128)
_TILE = (128, 256)


def check_outputs(outputs: Sequence[str], top_k: int, num_classes: int) -> None:
    """Raises ValueError for unknown outputs and for `top_k` outside 1..K."""
    if unknown := sorted(set(outputs) - set(OUTPUTS)):
        raise ValueError(f"unknown outputs {unknown}; choose from {OUTPUTS}")
    if not 1 <= top_k <= num_classes:
        raise ValueError(f"top_k must be in 1..{num_classes} (classes of the model), got {top_k}")


def output_bytes(outputs: Sequence[str], top_k: int, num_classes: int) -> int:
    """Bytes of all outputs at one pixel, at most."""
    values = {"probs": num_classes, "top_ids": top_k, "top_probs": top_k}
    return sum(4 * values.get(name, 1) for name in outputs)


def dense_matrix(taps: Taps, num_columns: int) -> jax.Array:
    """The matrices (..., rows, num_columns) that taps describe."""
    columns = jnp.arange(num_columns, dtype=jnp.int32)
    entries = jnp.where(taps.columns[..., None] == columns, taps.weights[..., None], 0)
    # All but one of the entries summed are 0, so nothing is rounded.
    return entries.sum(axis=-2)


def _smallest_ids(ids: jax.Array, num_classes: int) -> jax.Array:
    return ids.astype(jnp.uint8 if num_classes <= 256 else jnp.int32)


def _best_class(scores: jax.Array, on_cpu: bool) -> jax.Array:
    """(T, y, K, x) -> ids (T, y, x), the first of equals."""
    num_classes = scores.shape[2]
    if not on_cpu:
        return _smallest_ids(jnp.argmax(scores, axis=2), num_classes)

    # XLA's CPU compiler makes one pixel's argmax after the other; this works on many at once.
    def step(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        best, ids = carry
        score = jax.lax.dynamic_index_in_dim(scores, k, 2, keepdims=False)
        better = score > best
        return jnp.where(better, score, best), jnp.where(better, k, ids)

    first = scores[:, :, 0]
    start = (first, jnp.zeros(first.shape, jnp.int32))
    _, ids = jax.lax.fori_loop(1, num_classes, step, start, unroll=min(10, num_classes))
    return _smallest_ids(ids, num_classes)


def _resample(rows: Taps, columns: Taps, logits: jax.Array) -> jax.Array:
    """(T, y, h), (T, x, w), (T, h, w, K) -> logits of the tiles' pixels (T, y, K, x)."""
    highest = jax.lax.Precision.HIGHEST
    tiles, height, width, num_classes = logits.shape
    rows, columns = dense_matrix(rows, height), dense_matrix(columns, width)
    # With pixels last both products are plain, and what follows runs over neighbouring pixels.
    flat = logits.swapaxes(2, 3).reshape(tiles, height, num_classes * width)
    partial = jnp.einsum("tyh,thn->tyn", rows, flat, precision=highest)
    partial = partial.reshape(tiles, -1, width)
    merged = jnp.einsum("tnw,txw->tnx", partial, columns, precision=highest)
    return merged.reshape(tiles, rows.shape[1], num_classes, columns.shape[1])


def normalised(values: jax.Array, axis: int, scores: bool) -> jax.Array:
    """Probabilities of logits, or of scores of at least 0, along an axis of classes."""
    if not scores:
        return jax.nn.softmax(values, axis=axis)
    return values / jnp.maximum(values.sum(axis, keepdims=True), jnp.finfo(values.dtype).tiny)


def _mean_probs(rows: Taps, columns: Taps, logits: jax.Array, scores: bool) -> jax.Array:
    """Operands of all versions, stacked -> their mean probabilities (T, y, K, x)."""

    def add(v: jax.Array, total: jax.Array) -> jax.Array:
        version = jax.tree.map(lambda operand: operand[v], (rows, columns, logits))
        return total + normalised(_resample(*version), 2, scores)

    num_versions, tiles, height, _ = rows.columns.shape
    zeros = jnp.zeros((tiles, height, logits.shape[-1], columns.columns.shape[2]), jnp.float32)
    return jax.lax.fori_loop(0, num_versions, add, zeros) / num_versions


def tile_maps(
    rows: Taps,
    columns: Taps,
    logits: jax.Array,
    *,
    outputs: tuple[str, ...],
    top_k: int,
    on_cpu: bool,
    scores: bool,
) -> dict[str, jax.Array]:
    """Maps of T tiles from their V versions.

    Args:
      rows, columns: matrices (V, T, y, h) and (V, T, x, w), see `AxisTiles`.
      logits: float32 (V, T, h, w, K), of the patches that each tile sees.
      outputs: of `OUTPUTS`.
      top_k: classes of the outputs "top_ids" and "top_probs".
      on_cpu: choose what XLA's CPU compiler is good at.
      scores: the logits are scores, whose shares of their sum are probabilities.

    Returns:
      The outputs, (T, y, x) or (T, y, x, K) or (T, y, x, top_k).
    """
    num_versions, num_classes = len(logits), logits.shape[-1]
    if outputs == ("ids",) and num_versions == 1:
        # With one version probabilities are in the same order, and are left out.
        version = jax.tree.map(lambda operand: operand[0], (rows, columns, logits))
        return {"ids": _best_class(_resample(*version), on_cpu)}
    probs = _mean_probs(rows, columns, logits, scores)
    maps = {}
    if "ids" in outputs:
        maps["ids"] = _best_class(probs, on_cpu)
    if "confidence" in outputs:
        maps["confidence"] = probs.max(axis=2)
    if "entropy" in outputs:
        maps["entropy"] = jax.scipy.special.entr(probs).sum(axis=2)
    last = probs.swapaxes(2, 3)
    if "probs" in outputs:
        maps["probs"] = last
    if {"top_ids", "top_probs"} & {*outputs}:
        best, ids = jax.lax.top_k(last, top_k)
        top = {"top_ids": _smallest_ids(ids, num_classes), "top_probs": best}
        maps |= {name: top[name] for name in top if name in outputs}
    return maps


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTiles:
    """The tiles of one image, row by row, and its maps as they fill up.

    Attributes:
      size: (H, W) of the image, in pixels.
      rows, columns: both axes, cut into tiles.
      maps: the outputs so far, made with the first tile.
    """

    size: tuple[int, int]
    rows: AxisTiles
    columns: AxisTiles
    maps: Maps = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows.spans) * len(self.columns.spans)

    def operands(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray, Taps, Taps]:
        """What some tiles see, and how they mix it.

        Args:
          tiles: int (T,), their numbers.

        Returns:
          Rows (V, T, h) and columns (V, T, w) of the patches, counted over all windows of a version
          side by side; and the matrices for them, (V, T, y, h) and (V, T, x, w).
        """
        taken = zip((self.rows, self.columns), self._places(tiles), strict=True)
        (rows, row_taps), (columns, column_taps) = (
            (axis.index[:, t], Taps(*(array[:, t] for array in axis.taps))) for axis, t in taken
        )
        return rows, columns, row_taps, column_taps

    def write(self, tile: int, values: Maps) -> None:
        """Copies what was computed for a tile, (y, x, ...), to its place in the maps."""
        row, column = self._places(tile)
        (top, bottom), (left, right) = self.rows.spans[row], self.columns.spans[column]
        for name, part in values.items():
            if name not in self.maps:
                self.maps[name] = np.empty((*self.size, *part.shape[2:]), part.dtype)
            self.maps[name][top:bottom, left:right] = part[: bottom - top, : right - left]

    def _places(self, tiles: Any) -> Any:
        return divmod(tiles, len(self.columns.spans))


class Tiling:
    """How images are cut into tiles.

    Attributes:
      tile: (rows, columns) of a tile, in pixels.
      capacity: (rows, columns) of patches that a tile sees in each version.
      taps: patches that a pixel sees along an axis.
      tiles_of_a_window: tiles of an image as large as a window.
    """

    def __init__(self, window: int, stride: int, patch_size: int, on_cpu: bool) -> None:
        """Chooses the tiles; `window`, `stride` and `patch_size` are in pixels."""
        self.tile = _CPU_TILE if on_cpu else _TILE
        self._axes = [AxisGeometry(window, stride, patch_size, side) for side in self.tile]
        self.capacity = tuple(axis.capacity for axis in self._axes)
        self.taps = self._axes[0].taps
        self.tiles_of_a_window = math.prod(-(-window // side) for side in self.tile)

    def cut(
        self, versions: Sequence[tuple[tuple[int, int], bool]], size: tuple[int, int]
    ) -> ImageTiles:
        """Tiles of an image.

        Args:
          versions: (h, w) in pixels of each scaled version, and whether it was flipped.
          size: (H, W) of the image, in pixels.
        """
        axes = (
            axis_tiles(
                tuple((scaled[axis], flipped and axis == 1) for scaled, flipped in versions),
                size[axis],
                self._axes[axis],
            )
            for axis in (0, 1)
        )
        return ImageTiles(size, *axes)
