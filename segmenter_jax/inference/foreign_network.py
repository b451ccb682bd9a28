"""The engine of inference with a network that runs elsewhere."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.host_way import HostWay
from segmenter_jax.inference.pool import AXIS
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.inference.windows import Window, stacked
from segmenter_jax.models import Segmenter


def cpu() -> list[jax.Device]:
    """A device on which networks are float32, whatever the other devices are."""
    return jax.local_devices(backend="cpu")[:1]


class _ForeignWay(HostWay):
    """Merges on the host what a function makes of windows."""

    def __init__(self, network: Callable[[np.ndarray], np.ndarray], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._foreign = network

    def _start(self, params: Any, windows: list[Window]) -> Callable[[], np.ndarray]:
        # Windows of enlarged images are float.
        pixels = np.rint(stacked(windows, self.batch_size)).astype(np.uint8)
        return self._calls.start(_ForeignWay, lambda: self._foreign(pixels))


def foreign_engine(
    description: ModelDescription, network: Callable[[np.ndarray], np.ndarray]
) -> SlidingWindow:
    """An engine with a model's own settings; the parameters it is called with are not used.

    Args:
      description: of the model.
      network: uint8 pixels (B, window, window, C) to patch logits (B, h, w, K), on the host.
    """
    settings, devices = InferenceSettings.of(description), cpu()
    model, mean, std = Segmenter(description.model), description.mean, description.std
    engine = SlidingWindow(model, settings, mean=mean, std=std, devices=devices)
    mesh = Mesh(np.array(devices), (AXIS,))
    engine.way = _ForeignWay(network, model, settings, mean, std, mesh)
    return engine
