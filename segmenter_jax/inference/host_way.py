"""Inference on one CPU device: patch logits in host memory, calls side by side.

One image after the other is finished, tile by tile: programs are small and several of them run at a
time (see `calls`).
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from segmenter_jax.inference.calls import Calls
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.merging import Maps, Tiling, tile_maps
from segmenter_jax.inference.windows import CutImage, Version, Window, stacked
from segmenter_jax.models import Segmenter
from segmenter_jax.models.config import patch_grid
from segmenter_jax.models.normalization import normalize
from segmenter_jax.runtime.lookahead import read_ahead


@functools.partial(jax.jit, static_argnames=("model", "mean", "std"))
def _forward(
    params: Any,
    windows: jax.Array,
    model: Segmenter,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    return model.apply({"params": params}, normalize(windows, None, mean, std))


_tile_maps = jax.jit(tile_maps, static_argnames=("outputs", "top_k", "on_cpu", "scores"))


class HostWay:
    """Keeps the patch logits of windows in host memory, side by side as the windows are."""

    def __init__(
        self,
        model: Segmenter,
        settings: InferenceSettings,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        mesh: Mesh,
    ) -> None:
        """Chooses batch and tiles; see `SlidingWindow`. The mesh has one device."""
        c = model.config
        self._network = {"model": model, "mean": mean, "std": std}
        self._num_classes = c.num_classes
        self._scores = c.gives_scores
        self._grid = patch_grid((settings.window, settings.window), c.cell_size)
        self._tiling = Tiling(settings.window, settings.stride, c.cell_size, on_cpu=True)
        self._device = NamedSharding(mesh, jax.P())
        self._calls = Calls(settings.batch_size)
        # Windows at a time are shared between the calls that run at a time.
        self.batch_size = -(-(settings.batch_size or 1) // self._calls.at_a_time)

    def results(
        self, params: Any, batches: Iterable[list[Window]], outputs: tuple[str, ...], top_k: int
    ) -> Iterator[tuple[CutImage, Maps]]:
        """Images and their maps, in order.

        Args:
          params: the tree under "params", on the device.
          batches: up to `batch_size` windows each, in the order of their images.
          outputs, top_k: see `SlidingWindow.predict`.
        """
        logits: dict[Version, np.ndarray] = {}
        started = ((batch, self._start(params, batch)) for batch in batches)
        for batch, wait in read_ahead(started, self._calls.ahead):
            for window, values in zip(batch, wait(), strict=False):
                self._collect(logits, window, values)
                if window.completes:
                    image = window.image
                    parts = [logits.pop(version) for version in image.versions]
                    yield image, self.merge(image, parts, outputs, top_k)

    def merge(
        self,
        image: CutImage,
        logits: Sequence[np.ndarray],
        outputs: tuple[str, ...],
        top_k: int,
    ) -> Maps:
        """Resamples, averages and summarises all tiles of an image.

        Args:
          image: with all its versions.
          logits: of each version float32 (rows, columns, K), the patches of all windows side by
            side.
          outputs, top_k: see `SlidingWindow.predict`.
        """
        tiles = self._tiling.cut([(v.size, v.flipped) for v in image.versions], image.size)
        options = {"outputs": outputs, "top_k": top_k, "on_cpu": True}
        options["scores"] = self._scores

        def start(tile: int) -> Callable[[], Maps]:
            rows, columns, *taps = tiles.operands(np.array([tile]))
            seen = zip(logits, rows[..., None], columns[:, :, None], strict=True)
            patches = np.stack([version[row, column] for version, row, column in seen])
            operands = jax.device_put((*taps, patches), self._device)
            call = functools.partial(_tile_maps, *operands, **options)
            return self._calls.start((_tile_maps, len(logits), outputs, top_k), call)

        started = ((tile, start(tile)) for tile in range(len(tiles)))
        # Bounds the memory that a large image takes.
        for tile, wait in read_ahead(started, self._calls.ahead):
            tiles.write(tile, {name: values[0] for name, values in wait().items()})
        return tiles.maps

    def _collect(
        self, logits: dict[Version, np.ndarray], window: Window, values: np.ndarray
    ) -> None:
        """Puts the logits of a window beside those of the others of its version."""
        version, (i, j), (h, w) = window.version, window.place, self._grid
        if version not in logits:
            rows, columns = version.windows
            logits[version] = np.empty((rows * h, columns * w, self._num_classes), np.float32)
        logits[version][i * h : (i + 1) * h, j * w : (j + 1) * w] = values

    def _start(self, params: Any, windows: list[Window]) -> Callable[[], np.ndarray]:
        """Starts the forward pass of a batch, to logits (B, h, w, K)."""
        batch = stacked(windows, self.batch_size)

        def forward() -> jax.Array:
            return _forward(params, jax.device_put(batch, self._device), **self._network)

        return self._calls.start((_forward, batch.dtype), forward)
