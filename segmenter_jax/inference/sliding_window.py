"""Sliding-window, multi-scale inference without canvases.

Placing the upsampled logits of overlapping windows, dividing by their count, resizing to the
original image and un-flipping are all linear and separable. So one matrix per axis does them at
once: with the low-resolution logits of all windows of an image laid side by side as L, the class
probabilities are `softmax(R_y @ L @ R_x.T)`, averaged over the scaled and flipped versions of the
image. `merge_matrix` makes R; it is nearly empty, so `merging` applies it tile by tile to the few
patches that a tile sees. Windows of different images share batches of one size, tiles have one
size: whatever the images, a handful of programs is compiled.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segmenter_jax.inference.geometry import (
    InferenceSettings,
    check_image,
    round_up,
    scaled_image,
    window_anchors,
)
from segmenter_jax.inference.lanes import Call, Lanes
from segmenter_jax.inference.merging import Merger, Version, check_outputs
from segmenter_jax.models import Segmenter
from segmenter_jax.models.config import patch_grid
from segmenter_jax.models.normalization import normalize


@dataclasses.dataclass(frozen=True)
class Request:
    """One image to segment, as versions that are made when their turn comes.

    Attributes:
      example: anything; handed back with the result.
      size: (H, W) of the output, in pixels.
      versions: pairs of an image uint8 or float32 (h, w, C) with values in 0..255, no side shorter
        than the window, and whether it is flipped left to right.
    """

    example: Any
    size: tuple[int, int]
    versions: Iterable[tuple[np.ndarray, bool]]


def make_request(example: Mapping[str, Any], settings: InferenceSettings, channels: int) -> Request:
    """The request for one example.

    Args:
      example: has an "image" uint8 or float32 (H, W, C), values in 0..255.
      settings: how the image is scaled.
      channels: that the model takes.

    Raises:
      ValueError: the image has a wrong shape, or would become too large.
    """
    image = example["image"]
    check_image(image.shape, settings, channels)

    def versions() -> Iterator[tuple[np.ndarray, bool]]:
        for factor in settings.scales:
            scaled = scaled_image(image, settings, factor)
            yield scaled, False
            if settings.flip:
                yield scaled[:, ::-1], True

    return Request(example, image.shape[:2], versions())


@dataclasses.dataclass
class _Job:
    """A request whose windows are on their way."""

    request: Request
    versions: list[Version] = dataclasses.field(default_factory=list)
    pending: int = 0
    all_cut: bool = False

    @property
    def ready(self) -> bool:
        return self.all_cut and not self.pending


@dataclasses.dataclass(frozen=True)
class _Window:
    """A window's pixels, and the part of its version's logits that it fills."""

    image: np.ndarray
    job: _Job
    target: np.ndarray


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
        self._lanes = Lanes(devices, settings.batch_size)
        on_cpu = devices[0].platform == "cpu"
        batch_size = settings.batch_size or (1 if on_cpu else 8 * len(devices))
        self._batch_size = round_up(-(-batch_size // self._lanes.count), len(devices))
        patch_size = model.config.patch_size
        self.merge = Merger(settings.window, settings.stride, patch_size, self._split, self._lanes)
        self._grid = patch_grid((settings.window, settings.window), patch_size)

    def predict(
        self,
        params: Any,
        examples: Iterable[Mapping[str, Any]],
        outputs: tuple[str, ...] = ("ids",),
        top_k: int = 1,
    ) -> Iterator[tuple[Mapping[str, Any], dict[str, np.ndarray]]]:
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
        channels = self.model.config.in_channels
        requests = (make_request(example, self.settings, channels) for example in examples)
        return self.run(params, requests, outputs, top_k)

    def run(
        self,
        params: Any,
        requests: Iterable[Request],
        outputs: tuple[str, ...] = ("ids",),
        top_k: int = 1,
    ) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """As `predict`, for images that were scaled by the caller."""
        check_outputs(outputs, top_k, self.model.config.num_classes)

        def finish(job: _Job) -> tuple[Any, dict[str, np.ndarray]]:
            maps = self.merge(job.versions, job.request.size, outputs, top_k)
            return job.request.example, maps

        return self._run(self.place(params), requests, finish)

    def _run(
        self,
        params: Any,
        requests: Iterable[Request],
        finish: Callable[[_Job], tuple[Any, dict[str, np.ndarray]]],
    ) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        jobs: collections.deque[_Job] = collections.deque()
        in_flight: collections.deque[tuple[Call, list[_Window]]] = collections.deque()
        try:
            for windows in self._batches(requests, jobs):
                in_flight.append((self._start(params, windows), windows))
                if len(in_flight) > self._lanes.in_flight:
                    _collect(*in_flight.popleft())
                while jobs and jobs[0].ready:
                    yield finish(jobs.popleft())
            while in_flight:
                _collect(*in_flight.popleft())
                while jobs and jobs[0].ready:
                    yield finish(jobs.popleft())
        finally:
            for call, _ in in_flight:
                call.cancel()

    def place(self, params: Any) -> Any:
        """Copies parameters to the engine's devices; costs nothing where they are there already."""

        def local(leaf: Any) -> Any:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                # Replicated over several processes: this one's copy.
                return leaf.addressable_data(0)
            return leaf

        return jax.device_put(jax.tree.map(local, params), self._replicated)

    def _batches(
        self, requests: Iterable[Request], jobs: collections.deque[_Job]
    ) -> Iterator[list[_Window]]:
        batch = []
        for request in requests:
            job = _Job(request)
            jobs.append(job)
            for window in self._cut(job):
                batch.append(window)
                if len(batch) == self._batch_size:
                    yield batch
                    batch = []
            job.all_cut = True
        if batch:
            yield batch

    def _cut(self, job: _Job) -> Iterator[_Window]:
        config, window, stride = self.model.config, self.settings.window, self.settings.stride
        grid = self._grid
        for image, flipped in job.request.versions:
            anchors = [window_anchors(side, window, stride) for side in image.shape[:2]]
            shape = [len(a) * n for a, n in zip(anchors, grid, strict=True)]
            logits = np.empty((*shape, config.num_classes), np.float32)
            job.versions.append(Version(image.shape[:2], flipped, logits))
            # Counted before the first is handed out: the job must not look ready in between.
            job.pending += len(anchors[0]) * len(anchors[1])
            for i, top in enumerate(anchors[0]):
                for j, left in enumerate(anchors[1]):
                    yield _Window(
                        image[top : top + window, left : left + window],
                        job,
                        logits[i * grid[0] : (i + 1) * grid[0], j * grid[1] : (j + 1) * grid[1]],
                    )

    def _start(self, params: Any, windows: list[_Window]) -> Call:
        # Enlarged images are float; all others travel as bytes.
        dtype = np.result_type(*(w.image for w in windows))
        batch = np.zeros((self._batch_size, *windows[0].image.shape), dtype)
        for slot, window in zip(batch, windows, strict=False):
            slot[:] = window.image

        def forward() -> jax.Array:
            placed = jax.device_put(batch, self._split)
            return _forward(params, placed, self.model, self._mean, self._std)

        return self._lanes.start((_forward, dtype), forward)


def _collect(call: Call, windows: list[_Window]) -> None:
    for window, values in zip(windows, call.result(), strict=False):
        window.target[:] = values
        window.job.pending -= 1
