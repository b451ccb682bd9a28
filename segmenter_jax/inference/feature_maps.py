"""Features of patches as colours: alike in colour is alike to the encoder."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from segmenter_jax.inference.attention_maps import check_memory, scaled_picture
from segmenter_jax.inference.predictor import Picture, Predictor
from segmenter_jax.models import Segmenter
from segmenter_jax.models.config import patch_grid
from segmenter_jax.models.normalization import normalize

# Shares of the patches that are darkest and brightest in a colour.
_CUT_PERCENT = 2.0


@functools.partial(jax.jit, static_argnames=("model",))
def _tokens(model: Segmenter, params: Any, image: jax.Array) -> jax.Array:
    return model.apply({"params": params}, image, method="encode")[0]


def patch_features(predictor: Predictor, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder gives for each patch of a whole picture, scaled as for prediction.

    Args:
      predictor: the model.
      picture: as for `Predictor.predict`.

    Returns:
      The picture as the network saw it, uint8 (h, w, C), and float32 (rows, columns, width).

    Raises:
      ValueError: the picture is too large to go through the network at once.
    """
    image = scaled_picture(predictor, predictor.read(picture))
    config, d = predictor.model.config, predictor.description
    grid = patch_grid(image.shape[:2], config.patch_size)
    before = config.num_extra_tokens + (config.num_queries if config.decoder == "eomt" else 0)
    check_memory(grid, config.num_heads, before)
    inputs = normalize(image[None], None, d.mean, d.std)
    tokens = np.asarray(_tokens(predictor.model, predictor.params, inputs), np.float32)[before:]
    shown = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return shown, tokens[: math.prod(grid)].reshape(*grid, -1)


def principal_colors(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The three directions in which features differ most, as red, green and blue.

    The same features always give the same colours: a direction's largest weight is positive.

    Args:
      features: float (rows, columns, D) of each picture; all pictures share the directions.

    Returns:
      uint8 (rows, columns, 3) of each picture.
    """
    flat = np.concatenate([x.reshape(-1, x.shape[-1]) for x in features]).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1][:, :3]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    values = centred @ (directions * np.sign(largest))
    low, high = np.percentile(values, [_CUT_PERCENT, 100 - _CUT_PERCENT], axis=0)
    scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.rint(255 * scaled).astype(np.uint8)
    ends = np.cumsum([math.prod(x.shape[:2]) for x in features])[:-1]
    parts = np.split(colors, ends)
    return [c.reshape(*x.shape[:2], 3) for c, x in zip(parts, features, strict=True)]
