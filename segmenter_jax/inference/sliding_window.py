"""Sliding-window, multi-scale inference without canvases.

Placing the upsampled logits of overlapping windows, dividing by their count, resizing to the
original image and un-flipping are all linear and separable. So one matrix per axis does them at
once: with the low-resolution logits of all windows of an image laid side by side as L, the class
probabilities are `softmax(R_y @ L @ R_x.T)`, averaged over the scaled and flipped versions of the
image. `merge_matrix` makes R; it is nearly empty, so `merging` applies it tile by tile to the few
patches that a tile sees. Windows of different images share batches of one size, tiles have one
size: whatever the images, a handful of programs is compiled. Where L is kept, and how many tiles
are made at a time, depends on the devices: see `host_way` and `device_way`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from segmenter_jax.inference.device_way import DeviceWay
from segmenter_jax.inference.geometry import InferenceSettings, check_image, image_versions
from segmenter_jax.inference.host_way import HostWay
from segmenter_jax.inference.merging import Maps, check_outputs
from segmenter_jax.inference.pool import AXIS
from segmenter_jax.inference.windows import Example, batches
from segmenter_jax.models import Segmenter
from segmenter_jax.models.layers import to_compute_type
from segmenter_jax.models.placement import platform_of

_to_compute_type = jax.jit(to_compute_type, static_argnames="dtype")


def _way_for(mesh: Mesh) -> type[HostWay | DeviceWay]:
    return HostWay if mesh.size == 1 and platform_of(mesh) == "cpu" else DeviceWay


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
        self.settings = settings
        devices = list(devices or jax.local_devices())
        mesh = Mesh(np.array(devices), (AXIS,))
        self.model = model = model.clone(mesh=mesh)
        self._replicated = NamedSharding(mesh, jax.P())
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
        self.way = _way_for(mesh)(model, settings, mean, std, mesh)

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
        cut = batches(examples, self.versions, self.settings, self.way.batch_size)
        for image, maps in self.way.results(params, cut, outputs, top_k):
            yield image.example, maps

    def check(self, image: np.ndarray) -> None:
        """Raises ValueError for an image of a wrong shape, or that would become too large."""
        check_image(image.shape, self.settings, self.model.config.in_channels)

    def place(self, params: Any) -> Any:
        """Copies parameters to the engine's devices, in the type they are used in.

        Costs nothing where they are so already.
        """

        def local(leaf: Any) -> Any:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                # Replicated over several processes: this one's copy.
                return leaf.addressable_data(0)
            return leaf

        params = jax.tree.map(local, params)
        dtype = self.model.config.compute_dtype(self.model.mesh)
        # Cast before they are copied to several devices.
        params = params if dtype == "float32" else _to_compute_type(params, dtype)
        return jax.device_put(params, self._replicated)

    def versions(self, example: Example) -> Iterator[tuple[np.ndarray, bool]]:
        """The scaled and flipped versions of an example's image; see `image_versions`."""
        self.check(example["image"])
        return image_versions(example["image"], self.settings)
