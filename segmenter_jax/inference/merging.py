"""The tail of inference: low-resolution logits of windows to maps of an image, tile by tile.

A tile is a block of output pixels. One program resamples a tile from every version of its image,
averages the probabilities and summarises them, so that no more than a tile of probabilities exists
at a time and only what was asked for leaves the device. All tiles have one size.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from segmenter_jax.inference.calls import Calls
from segmenter_jax.inference.geometry import (
    AxisGeometry,
    AxisTiles,
    axis_tiles,
    window_anchors,
)
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.config import patch_grid

OUTPUTS = ("ids", "probs", "confidence", "entropy", "top_ids", "top_probs")

# Output pixels of one tile, (rows, columns). On a CPU a tile of 150 classes takes 4.9 MB and stays
# in cache; accelerators want fewer and larger pieces of work.
_CPU_TILE = (64, 128)
_TILE = (128, 512)


@dataclasses.dataclass
class Version:
    """Low-resolution logits of one scaled version of an image.

    Attributes:
      size: (h, w) of the scaled image, in pixels.
      flipped: it was flipped left to right.
      logits: float32 (rows, columns, K), the patches of all windows side by side.
    """

    size: tuple[int, int]
    flipped: bool
    logits: np.ndarray


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


def _resample(rows: jax.Array, columns: jax.Array, logits: jax.Array) -> jax.Array:
    """(T, y, h), (T, x, w), (T, h, w, K) -> logits of the tiles' pixels (T, y, K, x)."""
    highest = jax.lax.Precision.HIGHEST
    tiles, height, width, num_classes = logits.shape
    # With pixels last both products are plain, and what follows runs over neighbouring pixels.
    flat = logits.swapaxes(2, 3).reshape(tiles, height, num_classes * width)
    partial = jnp.einsum("tyh,thn->tyn", rows, flat, precision=highest)
    partial = partial.reshape(tiles, -1, width)
    merged = jnp.einsum("tnw,txw->tnx", partial, columns, precision=highest)
    return merged.reshape(tiles, rows.shape[1], num_classes, columns.shape[1])


def _mean_probs(rows: jax.Array, columns: jax.Array, logits: jax.Array) -> jax.Array:
    """Operands of all versions, stacked -> their mean probabilities (T, y, K, x)."""

    def add(v: jax.Array, total: jax.Array) -> jax.Array:
        return total + jax.nn.softmax(_resample(rows[v], columns[v], logits[v]), axis=2)

    num_versions, tiles, height, _ = rows.shape
    zeros = jnp.zeros((tiles, height, logits.shape[-1], columns.shape[2]), jnp.float32)
    return jax.lax.fori_loop(0, num_versions, add, zeros) / num_versions


@functools.partial(jax.jit, static_argnames=("outputs", "top_k", "on_cpu"))
def _tile_maps(
    rows: jax.Array,
    columns: jax.Array,
    logits: jax.Array,
    outputs: tuple[str, ...],
    top_k: int,
    on_cpu: bool,
) -> dict[str, jax.Array]:
    """(V, T, y, h), (V, T, x, w), (V, T, h, w, K) -> maps (T, y, x, ...)."""
    num_classes = logits.shape[-1]
    if outputs == ("ids",) and len(rows) == 1:
        # With one version the softmax changes no order, and is left out.
        return {"ids": _best_class(_resample(rows[0], columns[0], logits[0]), on_cpu)}
    probs = _mean_probs(rows, columns, logits)
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


def check_outputs(outputs: Sequence[str], top_k: int, num_classes: int) -> None:
    """Raises ValueError for unknown outputs and for `top_k` outside 1..K."""
    if unknown := sorted(set(outputs) - set(OUTPUTS)):
        raise ValueError(f"unknown outputs {unknown}; choose from {OUTPUTS}")
    if not 1 <= top_k <= num_classes:
        raise ValueError(f"top_k must be in 1..{num_classes} (classes of the model), got {top_k}")


def read_ahead(items: Iterable[Any], count: int) -> Iterator[Any]:
    """Passes items on once `count` more were read, so that what each started may run meanwhile."""
    waiting = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


class Merger:
    """Keeps the patch logits of windows, and makes the maps of an image from them."""

    def __init__(
        self,
        window: int,
        stride: int,
        config: SegmenterConfig,
        sharding: NamedSharding,
        calls: Calls,
    ) -> None:
        """Chooses the tiles.

        Args:
          window, stride: in pixels.
          config: of the network.
          sharding: splits the tiles of a call over the devices, one for each.
          calls: start the programs.
        """
        self._calls = calls
        self._window, self._stride, self._num_classes = window, stride, config.num_classes
        self._grid = patch_grid((window, window), config.patch_size)
        self._on_cpu = next(iter(sharding.device_set)).platform == "cpu"
        self._tiles_per_call = len(sharding.device_set)
        # The leading axis counts versions.
        self._split = NamedSharding(sharding.mesh, jax.P(None, *sharding.spec))
        self._axes = [
            AxisGeometry(window, stride, config.patch_size, tile)
            for tile in (_CPU_TILE if self._on_cpu else _TILE)
        ]

    def version(self, size: tuple[int, int], flipped: bool) -> Version:
        """A version of an image whose logits are still to come."""
        counts = (len(window_anchors(side, self._window, self._stride)) for side in size)
        shape = (n * patches for n, patches in zip(counts, self._grid, strict=True))
        return Version(size, flipped, np.empty((*shape, self._num_classes), np.float32))

    def collect(self, places: Sequence[tuple[Version, int, int]], logits: np.ndarray) -> None:
        """Takes in the logits of a batch of windows.

        Args:
          places: of each window, its version, and its row and column among the windows of that.
          logits: float32 (B, h, w, K); what is beyond the places is padding.
        """
        h, w = self._grid
        for (version, i, j), values in zip(places, logits, strict=False):
            version.logits[i * h : (i + 1) * h, j * w : (j + 1) * w] = values

    def __call__(
        self,
        versions: Sequence[Version],
        size: tuple[int, int],
        outputs: tuple[str, ...],
        top_k: int,
    ) -> dict[str, np.ndarray]:
        """Resamples, averages and summarises all tiles of an image.

        Args:
          versions: the scaled and flipped versions of the image, at least one.
          size: (H, W) of the image, in pixels.
          outputs: of `OUTPUTS`.
          top_k: classes of the outputs "top_ids" and "top_probs".

        Returns:
          The outputs, (H, W) or (H, W, K) or (H, W, top_k).
        """
        axes = [
            axis_tiles(
                tuple((v.size[axis], v.flipped and axis == 1) for v in versions),
                size[axis],
                self._axes[axis],
            )
            for axis in (0, 1)
        ]
        tiles = itertools.product(*(range(len(axis.spans)) for axis in axes))
        chunks = iter(lambda: list(itertools.islice(tiles, self._tiles_per_call)), [])
        options = outputs, top_k, self._on_cpu

        def start(chunk: list[tuple[int, int]]) -> Callable[[], dict[str, np.ndarray]]:
            operands = self._operands(versions, axes, chunk)
            call = functools.partial(_tile_maps, *operands, *options)
            return self._calls.start((_tile_maps, len(versions), *options), call)

        started = ((chunk, start(chunk)) for chunk in chunks)
        maps: dict[str, np.ndarray] = {}
        # Bounds the memory that a large image takes.
        for chunk, wait in read_ahead(started, self._calls.ahead):
            _write_tiles(maps, size, axes, chunk, wait())
        return maps

    def _operands(
        self, versions: Sequence[Version], axes: list[AxisTiles], chunk: list[tuple[int, int]]
    ) -> tuple[jax.Array, ...]:
        """Matrices and logits of some tiles, on the devices."""
        padded = chunk + chunk[-1:] * (self._tiles_per_call - len(chunk))
        ys, xs = (list(indices) for indices in zip(*padded, strict=True))
        shape = (len(versions), len(padded), *(a.index.shape[-1] for a in axes))
        logits = np.empty((*shape, versions[0].logits.shape[-1]), np.float32)
        for v, version in enumerate(versions):
            for t, (y, x) in enumerate(padded):
                logits[v, t] = version.logits[np.ix_(axes[0].index[v, y], axes[1].index[v, x])]
        operands = axes[0].weights[:, ys], axes[1].weights[:, xs], logits
        return jax.device_put(operands, self._split)


def _write_tiles(
    maps: dict[str, np.ndarray],
    size: tuple[int, int],
    axes: list[AxisTiles],
    chunk: list[tuple[int, int]],
    computed: dict[str, np.ndarray],
) -> None:
    """Copies computed tiles to their places in the image-sized maps, made with the first tile."""
    for name, tiles in computed.items():
        if name not in maps:
            maps[name] = np.empty((*size, *tiles.shape[3:]), tiles.dtype)
        for tile, (y, x) in zip(tiles, chunk, strict=False):
            (top, bottom), (left, right) = axes[0].spans[y], axes[1].spans[x]
            maps[name][top:bottom, left:right] = tile[: bottom - top, : right - left]
