"""Inference on accelerators, and on several devices: what was computed stays there.

Windows go to the devices as bytes, the maps asked for come back. Between them the patch logits of
all windows stay in a pool on the devices (`pool`): the forward program writes those of a batch into
it, the tile program reads what many tiles of several images see. The host cuts the next batch while
the devices compute.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.stages import Lowered

from segmenter_jax.inference.calls import QUEUED
from segmenter_jax.inference.geometry import TAP_TYPES, InferenceSettings, Taps, round_up
from segmenter_jax.inference.merging import ImageTiles, Maps, Tiling, output_bytes
from segmenter_jax.inference.pool import SPLIT, SPLIT_TILES, LogitsPool, forward, merge_tiles
from segmenter_jax.inference.windows import CutImage, Version, Window, stacked
from segmenter_jax.models import Segmenter
from segmenter_jax.models.config import patch_grid
from segmenter_jax.models.layers import to_compute_type
from segmenter_jax.models.params import abstract_params
from segmenter_jax.models.placement import platform_of
from segmenter_jax.runtime.lookahead import read_ahead

# Windows at a time on each device, where the settings leave it open. Simulated devices share cores.
WINDOWS, _CPU_WINDOWS = 8, 1

# Slots that the pool begins with, on each device. Six scales and flips of 2048 x 1024 pixels, in
# windows of 768 with stride 512, are 126 windows.
_SLOTS = 128

# What it begins with at most, on each device: where there are outputs for every pixel, windows are
# large.
_POOL_BYTES = 2**31

# On each device, bounds of the maps of one call, and of the logits of the tiles made at a time.
_CALL_BYTES = 2**28


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
    """Tiles of an image that one call makes; the logits are in the pool.

    Attributes:
      image: that they belong to.
      tiles: all of the image.
      numbers: of the slots of each version's windows, int32 (rows, columns).
      span: first of the tiles, and the one after the last.
    """

    image: CutImage
    tiles: ImageTiles
    numbers: list[np.ndarray]
    span: tuple[int, int]

    @property
    def last(self) -> bool:
        """Whether the image is finished with it."""
        return self.span[1] == len(self.tiles)

    def operands(self, grid: tuple[int, int]) -> tuple[np.ndarray, Taps, Taps]:
        """Index, rows and columns for `merge_tiles`; `grid` is that of a window's patches."""
        rows, columns, *taps = self.tiles.operands(np.arange(*self.span))
        window_rows, rows = np.divmod(rows, grid[0])
        window_columns, columns = np.divmod(columns, grid[1])
        seen = zip(self.numbers, window_rows[..., None], window_columns[:, :, None], strict=True)
        windows = np.stack([numbers[row, column] for numbers, row, column in seen])
        return (windows * grid[0] + rows[..., None]) * grid[1] + columns[:, :, None], *taps


def _filled(num_tiles: int, *parts: np.ndarray) -> np.ndarray:
    """Joins (V, T, ...) along T, and fills up with zeros."""
    whole = np.zeros((len(parts[0]), num_tiles, *parts[0].shape[2:]), parts[0].dtype)
    np.concatenate(parts, axis=1, out=whole[:, : sum(part.shape[1] for part in parts)])
    return whole


class DeviceWay:
    """Keeps the patch logits of windows on the devices, and makes maps of many tiles at a time.

    Attributes:
      config: of the network.
      network: what `forward` must know of it.
      mesh: the devices.
      split, split_tiles: places of what counts windows or slots first, and of what tiles take.
      grid: (rows, columns) of patches of a window.
      tiling: of images into tiles.
      batch_size: windows at a time, over all devices.
      slots: of the pool, on each device; grows with what images need.
    """

    def __init__(
        self,
        model: Segmenter,
        settings: InferenceSettings,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        mesh: Mesh,
    ) -> None:
        """Chooses batch, tiles and pool; see `SlidingWindow`. Nothing is put on the devices yet.

        Args:
          model, settings, mean, std: see `SlidingWindow`.
          mesh: of one axis, `pool.AXIS`.
        """
        c, on_cpu = model.config, platform_of(mesh) == "cpu"
        self.config, self.mesh = c, mesh
        self.network = {"mesh": mesh, "model": model, "mean": mean, "std": std}
        self.split, self.split_tiles = (NamedSharding(mesh, s) for s in (SPLIT, SPLIT_TILES))
        self.grid = patch_grid((settings.window, settings.window), c.cell_size)
        self.tiling = Tiling(settings.window, settings.stride, c.cell_size, on_cpu)
        windows = mesh.size * (_CPU_WINDOWS if on_cpu else WINDOWS)
        self.batch_size = round_up(settings.batch_size or windows, mesh.size)
        share = self.batch_size // mesh.size
        most = _POOL_BYTES // (4 * c.num_classes * math.prod(self.grid))
        self.slots = max(min(max(_SLOTS, 4 * share), most), 2 * share)
        self._settings, self._on_cpu = settings, on_cpu

    def results(
        self, params: Any, batches: Iterable[list[Window]], outputs: tuple[str, ...], top_k: int
    ) -> Iterator[tuple[CutImage, Maps]]:
        """See `HostWay.results`; parameters are on all devices of the mesh."""
        run = _Run(self, params, outputs, top_k)
        # The devices compute, and send, while more is cut.
        for pieces, maps in read_ahead(run.calls(batches), QUEUED):
            computed = jax.device_get(maps)
            tiles = ((piece, tile) for piece in pieces for tile in range(*piece.span))
            for t, (piece, tile) in enumerate(tiles):
                piece.tiles.write(tile, {name: values[t] for name, values in computed.items()})
                if piece.last and tile + 1 == piece.span[1]:
                    yield piece.image, piece.tiles.maps

    def tiles_per_call(self, outputs: tuple[str, ...], top_k: int) -> tuple[int, dict[str, Any]]:
        """Tiles of a call, over all devices, and the options of `merge_tiles`."""
        versions = len(self._settings.scales) * (1 + self._settings.flip)
        pixels, num_classes = math.prod(self.tiling.tile), self.config.num_classes
        # As many as a batch of windows makes at scale 1.
        share = self.batch_size // self.mesh.size * self.tiling.tiles_of_a_window // versions
        most = _CALL_BYTES // (pixels * output_bytes(outputs, top_k, num_classes))
        share = max(min(share, most), 1)
        gathered = versions * self.mesh.size * math.prod(self.tiling.capacity)
        most = _CALL_BYTES // (4 * num_classes * (2 * pixels + gathered))
        group = max(min(share, most), 1)
        # Whole groups only.
        share -= share % group
        return share * self.mesh.size, {
            "mesh": self.mesh,
            "group": group,
            "outputs": outputs,
            "top_k": top_k,
            "on_cpu": self._on_cpu,
            "scores": self.config.gives_scores,
        }

    def lower_programs(
        self, outputs: tuple[str, ...] = ("ids",), top_k: int = 1
    ) -> dict[str, Lowered]:
        """Both programs, "forward" and "tiles", lowered for devices that need not be there.

        Args:
          outputs, top_k: see `SlidingWindow.predict`.
        """
        c, s = self.config, self._settings

        def arrays(sharding: NamedSharding, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        whole = functools.partial(arrays, NamedSharding(self.mesh, jax.P()))
        split = functools.partial(arrays, self.split)
        cast = functools.partial(to_compute_type, dtype=c.compute_dtype(self.mesh))
        params = jax.eval_shape(cast, abstract_params(c))
        params = jax.tree.map(lambda leaf: whole(leaf.dtype, *leaf.shape), params)
        patches = math.prod(self.grid)
        pool = split(np.float32, self.slots * self.mesh.size, patches, c.num_classes)
        windows = split(np.uint8, self.batch_size, s.window, s.window, c.in_channels)
        slots = split(np.int32, self.batch_size)

        num_tiles, options = self.tiles_per_call(outputs, top_k)
        count = len(s.scales) * (1 + s.flip), num_tiles
        index = arrays(self.split_tiles, np.int32, *count, *self.tiling.capacity)
        rows, columns = (
            Taps(*(arrays(self.split_tiles, t, *count, n, self.tiling.taps) for t in TAP_TYPES))
            for n in self.tiling.tile
        )
        return {
            "forward": forward.lower(pool, params, windows, slots, **self.network),
            "tiles": merge_tiles.lower(pool, index, rows, columns, **options),
        }


class _Run:
    """One pass over images: the pool, and what waits for the next call."""

    def __init__(self, way: DeviceWay, params: Any, outputs: tuple[str, ...], top_k: int) -> None:
        self._way, self._params = way, params
        shape = math.prod(way.grid), way.config.num_classes
        self._pool = LogitsPool(way.split, way.slots, shape)
        self._num_tiles, self._options = way.tiles_per_call(outputs, top_k)
        # Of the slots of each version's windows, until its image is complete.
        self._numbers: dict[Version, np.ndarray] = {}
        # For the next call of `merge_tiles`, and how many tiles more it takes.
        self._waiting: list[_Piece] = []
        self._room = self._num_tiles

    def calls(
        self, batches: Iterable[list[Window]]
    ) -> Iterator[tuple[list[_Piece], dict[str, jax.Array]]]:
        """Starts all programs; yields the tiles of a call with their maps, on the devices."""
        running = collections.deque()
        for batch in batches:
            while not self._pool.has_room(len(batch), self._way.batch_size):
                if self._waiting:
                    # Gives slots back.
                    yield self._merge()
                else:
                    self._pool.grow()
                    # Images that need as much are likely to come again.
                    self._way.slots = self._pool.slots
            running.append(self._forward(batch))
            if len(running) > QUEUED:
                # Bounds the batches that wait on the devices.
                running.popleft().block_until_ready()
            for image in (window.image for window in batch if window.completes):
                yield from self._queue(image)
        if self._waiting:
            yield self._merge()

    def _forward(self, batch: list[Window]) -> jax.Array:
        """Starts the forward pass of a batch; returns what is there once it was done."""
        way, pool = self._way, self._pool
        slots, numbers = pool.take(len(batch), way.batch_size)
        for window, number in zip(batch, numbers, strict=True):
            if window.version not in self._numbers:
                self._numbers[window.version] = np.empty(window.version.windows, np.int32)
            self._numbers[window.version][window.place] = number
        placed = jax.device_put((stacked(batch, way.batch_size), slots), way.split)
        pool.logits, done = forward(pool.logits, self._params, *placed, **way.network)
        return done

    def _queue(self, image: CutImage) -> Iterator[tuple[list[_Piece], dict[str, jax.Array]]]:
        """Lets all tiles of an image wait; starts the calls that are full."""
        versions = [(version.size, version.flipped) for version in image.versions]
        tiles = self._way.tiling.cut(versions, image.size)
        numbers = [self._numbers.pop(version) for version in image.versions]
        start = 0
        while start < len(tiles):
            stop = min(start + self._room, len(tiles))
            self._waiting.append(_Piece(image, tiles, numbers, (start, stop)))
            self._room -= stop - start
            start = stop
            if not self._room:
                yield self._merge()

    def _merge(self) -> tuple[list[_Piece], dict[str, jax.Array]]:
        """Starts a call for what waits, and frees the slots that no other tile needs."""
        pieces, self._waiting, self._room = self._waiting, [], self._num_tiles
        operands = [piece.operands(self._way.grid) for piece in pieces]
        filled = jax.tree.map(functools.partial(_filled, self._num_tiles), *operands)
        placed = jax.device_put(filled, self._way.split_tiles)
        maps = merge_tiles(self._pool.logits, *placed, **self._options)
        # Asked for, as by `device_get`; newer releases of JAX guard the method all the same.
        with jax.transfer_guard_device_to_host("allow"):
            for values in maps.values():
                values.copy_to_host_async()
        for piece in pieces:
            if piece.last:
                self._pool.give_back(np.concatenate([n.ravel() for n in piece.numbers]).tolist())
        return pieces, maps
