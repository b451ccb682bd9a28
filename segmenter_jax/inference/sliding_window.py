"""Sliding-window, multi-scale inference without canvases.

Placing the upsampled logits of overlapping windows, dividing by their count, resizing to the
original image and un-flipping are all linear and separable. So one matrix per axis does them at
once: with the low-resolution logits of all windows of an image laid side by side as L, the class
probabilities are `softmax(R_y @ L @ R_x.T)`, averaged over the scaled and flipped versions of the
image. `merge_matrix` makes R; it is nearly empty, so `merging` applies it tile by tile to the few
patches that a tile sees. Windows of different images share batches of one size, tiles have one
size: whatever the images, a handful of programs is compiled.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segmenter_jax.inference.calls import Calls
from segmenter_jax.inference.geometry import (
    InferenceSettings,
    check_image,
    image_versions,
    round_up,
    window_anchors,
)
from segmenter_jax.inference.merging import Merger, Version, check_outputs, read_ahead
from segmenter_jax.models import Segmenter
from segmenter_jax.models.normalization import normalize

Example = Mapping[str, Any]
Maps = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class _Image:
    """An example, and its versions that were cut so far."""

    example: Example
    versions: list[Version] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class _Window:
    """The pixels of a window, and its place: row and column among the windows of its version.

    The last window of an image names it: batches come back in order, so the image is complete then.
    """

    pixels: np.ndarray
    place: tuple[Version, int, int]
    completes: _Image | None = None


@functools.partial(jax.jit, static_argnames=("model", "mean", "std"))
def _forward(
    params: Any,
    windows: jax.Array,
    model: Segmenter,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    return model.apply({"params": params}, normalize(windows, None, mean, std))


class SlidingWindow:
    """Segments images of any size with one compiled forward pass.

    Parameters are given with each call, so that training evaluates without compiling again.
    """

    def __init__(
        self,
        model: Segmenter,
        settings: InferenceSettings,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Sets the engine up; nothing is compiled yet.

        Args:
          model: the network.
          settings: how images are scaled, cut and averaged.
          mean, std: of the channels, for pixel values in 0..1.
          devices: of this process, shared by the batches; None takes all of them.
        """
        self.model = model
        self.settings = settings
        self._mean, self._std = tuple(map(float, mean)), tuple(map(float, std))
        devices = list(devices or jax.local_devices())
        mesh = Mesh(np.array(devices), ("batch",))
        self._split = NamedSharding(mesh, PartitionSpec("batch"))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._calls = Calls(devices, settings.batch_size)
        batch_size = settings.batch_size or (
            1 if devices[0].platform == "cpu" else 8 * len(devices)
        )
        # Windows at a time are shared between the calls that run at a time.
        self._batch_size = round_up(-(-batch_size // self._calls.at_a_time), len(devices))
        self.merge = Merger(
            settings.window, settings.stride, model.config, self._split, self._calls
        )

    def predict(
        self,
        params: Any,
        examples: Iterable[Example],
        outputs: tuple[str, ...] = ("ids",),
        top_k: int = 1,
    ) -> Iterator[tuple[Example, Maps]]:
        """Segments images, in order, reading them as they are needed.

        Args:
          params: the tree under "params", on the host or on devices of this process.
          examples: mappings with an "image" uint8 or float32 (H, W, C), values in 0..255.
          outputs: what to compute, of `OUTPUTS`: "ids", uint8 (int32 above 256 classes) (H, W),
            the most probable class; "probs", float32 (H, W, K); "confidence", float32 (H, W), the
            probability of that class; "entropy", float32 (H, W), of the probabilities, in nats,
            0..log(K); "top_ids" and "top_probs", (H, W, top_k), the most probable classes first.
          top_k: see `outputs`.

        Yields:
          The example and its outputs, at the size of its image.

        Raises:
          ValueError: an output is unknown, or an image has a wrong shape or size.
        """
        check_outputs(outputs, top_k, self.model.config.num_classes)
        return self._results(self.place(params), examples, outputs, top_k)

    def _results(
        self, params: Any, examples: Iterable[Example], outputs: tuple[str, ...], top_k: int
    ) -> Iterator[tuple[Example, Maps]]:
        windows = itertools.chain.from_iterable(map(self._cut, examples))
        batches = iter(lambda: list(itertools.islice(windows, self._batch_size)), [])
        started = ((batch, self._start(params, batch)) for batch in batches)
        for batch, wait in read_ahead(started, self._calls.ahead):
            self.merge.collect([window.place for window in batch], wait())
            for image in (window.completes for window in batch if window.completes):
                size = image.example["image"].shape[:2]
                yield image.example, self.merge(image.versions, size, outputs, top_k)

    def check(self, image: np.ndarray) -> None:
        """Raises ValueError for an image of a wrong shape, or that would become too large."""
        check_image(image.shape, self.settings, self.model.config.in_channels)

    def place(self, params: Any) -> Any:
        """Copies parameters to the engine's devices; costs nothing where they are there already."""

        def local(leaf: Any) -> Any:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                # Replicated over several processes: this one's copy.
                return leaf.addressable_data(0)
            return leaf

        return jax.device_put(jax.tree.map(local, params), self._replicated)

    def versions(self, example: Example) -> Iterator[tuple[np.ndarray, bool]]:
        """The scaled and flipped versions of an example's image; see `image_versions`."""
        self.check(example["image"])
        return image_versions(example["image"], self.settings)

    def _cut(self, example: Example) -> Iterator[_Window]:
        """All windows of all versions of an image, each version scaled when its turn comes."""
        image, side, stride = _Image(example), self.settings.window, self.settings.stride
        previous = None
        for pixels, flipped in self.versions(example):
            tops, lefts = (window_anchors(n, side, stride) for n in pixels.shape[:2])
            version = self.merge.version(pixels.shape[:2], flipped)
            image.versions.append(version)
            for (row, top), (column, left) in itertools.product(enumerate(tops), enumerate(lefts)):
                if previous is not None:
                    yield previous
                window = pixels[top : top + side, left : left + side]
                previous = _Window(window, (version, row, column))
        yield dataclasses.replace(previous, completes=image)

    def _start(self, params: Any, windows: list[_Window]) -> Callable[[], np.ndarray]:
        """Starts the forward pass of a batch, filled up with zeros, to logits (B, h, w, K)."""
        # Enlarged images are float; all others travel as bytes.
        dtype = np.result_type(*(window.pixels for window in windows))
        batch = np.zeros((self._batch_size, *windows[0].pixels.shape), dtype)
        for slot, window in zip(batch, windows, strict=False):
            slot[:] = window.pixels

        def forward() -> jax.Array:
            placed = jax.device_put(batch, self._split)
            return _forward(params, placed, self.model, self._mean, self._std)

        return self._calls.start((_forward, dtype), forward)
