"""Pictures that strangers send: bounded work, or a reason why not."""

import dataclasses
import math
import os
import pathlib

import numpy as np

from segmenter_jax.data.images import decode_image
from segmenter_jax.inference.geometry import InferenceSettings, scaled_size, window_anchors
from segmenter_jax.inference.predictor import Predictor

MULTI_SCALE = {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one picture may cost.

    Attributes:
      size: bytes of the file.
      pixels: of the picture, once it is decoded.
      windows: that the network sees, of all scales.
    """

    size: int = 20 * 2**20
    pixels: int = 20_000_000
    windows: int = 500


@dataclasses.dataclass(frozen=True, eq=False)
class Segmented:
    """A picture uint8 (H, W, C), its class ids int32 (H, W), and their probabilities (H, W)."""

    image: np.ndarray
    ids: np.ndarray
    confidence: np.ndarray


def read_upload(predictor: Predictor, path: os.PathLike | str, limits: Limits) -> np.ndarray:
    """Decodes a file as `Predictor.read` does, within limits.

    Args:
      predictor: the model that the picture is for.
      path: of the file; errors name it without its folder.
      limits: of bytes and pixels.

    Raises:
      ValueError: the file is over a limit, or no picture, or a damaged one.
      OSError: there is no such file.
    """
    path = pathlib.Path(path)
    if (size := path.stat().st_size) > limits.size:
        raise ValueError(f"{path.name}: {size} bytes, over the limit of {limits.size}")
    channels = predictor.description.model.in_channels
    return decode_image(path.read_bytes(), path.name, channels=channels, max_pixels=limits.pixels)


def segment_upload(
    predictor: Predictor, path: os.PathLike | str, limits: Limits, multi_scale: bool = False
) -> Segmented:
    """Segments a file, within limits.

    Args:
      predictor: the model.
      path: of the file.
      limits: of bytes, pixels and windows.
      multi_scale: averages the scales and flips of `MULTI_SCALE`.

    Raises:
      ValueError, OSError: see `read_upload`.
    """
    image = read_upload(predictor, path, limits)
    overrides = MULTI_SCALE if multi_scale else {}
    engine = predictor.engine(**overrides)
    engine.check(image)
    if (count := num_windows(image.shape[:2], engine.settings)) > limits.windows:
        raise ValueError(
            f"{pathlib.Path(path).name}: {image.shape[1]} x {image.shape[0]} pixels take {count} "
            f"windows of {engine.settings.window} pixels, over the limit of {limits.windows}"
        )
    maps = predictor.predict_maps(image, ("ids", "confidence"), **overrides)
    return Segmented(image, maps["ids"], maps["confidence"])


def num_windows(size: tuple[int, int], settings: InferenceSettings) -> int:
    """How many windows an image of (H, W) pixels is cut into, at all scales and flips."""
    cuts = (scaled_size(*size, settings, factor)[1] for factor in settings.scales)
    window, stride = settings.window, settings.stride
    counts = (math.prod(len(window_anchors(side, window, stride)) for side in cut) for cut in cuts)
    return sum(counts) * (1 + settings.flip)
