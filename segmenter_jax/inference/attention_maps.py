"""Attention weights of encoder and decoder, and maps of them, from the same forward pass."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segmenter_jax.inference.geometry import InferenceSettings, check_image, scaled_image
from segmenter_jax.inference.predictor import Picture, Predictor
from segmenter_jax.models import Segmenter
from segmenter_jax.models.config import patch_grid
from segmenter_jax.models.normalization import normalize
from segmenter_jax.models.transformer import ATTENTION_MAPS

PARTS = ("encoder", "decoder")

# Weights of one layer; what is larger is refused with a message instead of a kill.
MAX_LAYER_BYTES = 2**31


def _layer_weights(collection: Any, part: str, layer: int) -> jax.Array:
    name = f"encoderblock_{layer}" if part == "encoder" else f"block_{layer}"
    return collection[part][name]["attention"]["weights"][0]


@functools.partial(jax.jit, static_argnames=("model", "part", "layer"))
def attention_weights(
    model: Segmenter, params: Any, image: jax.Array, part: str, layer: int
) -> tuple[jax.Array, jax.Array]:
    """Runs the network and keeps the attention weights of one layer.

    Args:
      model: the network.
      params: the tree under "params".
      image: normalised float (B, H, W, C).
      part: "encoder", or "decoder" of a network with the mask decoder.
      layer: from 0.

    Returns:
      The low-resolution logits, see `Segmenter`, and float32 (B, heads, T, T), rows summing to 1:
      row = token that attends, column = token attended to. Tokens of the encoder are the extra
      ones and then the patches, after the queries in those layers that have some; of the decoder
      the patches and then the classes.
    """
    logits, state = model.apply({"params": params}, image, mutable=[ATTENTION_MAPS])
    return logits, _layer_weights(state[ATTENTION_MAPS], part, layer)


@functools.partial(jax.jit, static_argnames=("model", "layer"))
def attention_rollout(
    model: Segmenter, params: Any, image: jax.Array, layer: int
) -> tuple[jax.Array, jax.Array]:
    """Attention of the encoder followed through all layers up to one.

    Args:
      model, params, image: see `attention_weights`.
      layer: the last to follow, from 0.

    Returns:
      The logits, and float32 (B, T, T): how much of each input token (column) reaches each token
      (row), if every layer passes on half of its input and half of what its heads attend to.

    Source: Abnar, Zuidema, "Quantifying Attention Flow in Transformers", 2020.
    """
    logits, state = model.apply({"params": params}, image, mutable=[ATTENTION_MAPS])
    flow = None
    for i in range(layer + 1):
        weights = _layer_weights(state[ATTENTION_MAPS], "encoder", i).mean(axis=1)
        step = 0.5 * (weights + jnp.eye(weights.shape[-1]))
        if flow is not None and (queries := step.shape[-1] - flow.shape[-1]):
            # They enter here, each from itself.
            whole = jnp.pad(flow, ((0, 0), (queries, 0), (queries, 0)))
            flow = whole.at[:, :queries, :queries].set(jnp.eye(queries))
        highest = jax.lax.Precision.HIGHEST
        flow = step if flow is None else jnp.einsum("bij,bjk->bik", step, flow, precision=highest)
    return logits, flow


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention of one token to the patches of a picture.

    Attributes:
      image: uint8 (h, w, C), the picture as the network saw it.
      maps: float32 (heads, rows, columns), attention paid to every patch; one head for a rollout.
      patch_size: side of a patch, in pixels.
      title: what is shown, in words.
      patch: (row, column) of the patch whose attention it is; None where it is no patch's.
      mask: float32 (rows, columns), the probability of the class whose attention it is; None where
        it is no class's.
    """

    image: np.ndarray
    maps: np.ndarray
    patch_size: int
    title: str
    patch: tuple[int, int] | None = None
    mask: np.ndarray | None = None


def attention_maps(
    predictor: Predictor,
    picture: Picture,
    *,
    part: str = "encoder",
    layer: int = -1,
    patch: tuple[int, int] | None = None,
    class_name: str | None = None,
    rollout: bool = False,
) -> AttentionMaps:
    """Attention of the class token, of one patch or of one class embedding to a picture.

    The whole picture goes through the network at once, scaled as for prediction.

    Args:
      predictor: the model.
      picture: as for `Predictor.predict`.
      part: "encoder" or "decoder".
      layer: from 0; negative numbers count from the last.
      patch: (x, y) of a pixel of the picture: attention of the patch around it.
      class_name: attention of this class's embedding; decoder only.
      rollout: follows the attention through all layers up to `layer`; encoder only.

    Returns:
      The maps; without `patch` and `class_name` those of the encoder's class token.

    Raises:
      ValueError: the layer, the class or the pixel does not exist, or the choices do not go
        together, or the picture is too large.
    """
    layer = _check_choices(predictor, part, layer, patch, class_name, rollout)
    picture = predictor.read(picture)
    image = scaled_picture(predictor, picture)
    config = predictor.model.config
    grid = patch_grid(image.shape[:2], config.patch_size)
    queries = config.num_queries if config.decoder == "eomt" else 0
    check_memory(grid, config.num_heads, max(config.num_classes, queries))

    if patch is None and class_name is None and not config.class_token:
        raise ValueError("the encoder has no class token; choose a patch")
    logits, weights = _run(predictor, image, part, layer, rollout)
    # Tokens before the class token.
    before = queries if layer >= config.depth - config.decoder_depth else 0
    first = config.num_extra_tokens + before if part == "encoder" else 0
    num_patches = math.prod(grid)
    cell = mask = None
    token, name = before, "class token"
    if class_name is not None:
        class_id = predictor.classes.index(class_name)
        token, name = num_patches + class_id, f"class {class_name}"
        mask = np.asarray(jax.nn.softmax(logits, axis=-1)[..., class_id])
    elif patch is not None:
        cell = _patch_at(patch, picture.shape[:2], image.shape[:2], config.patch_size)
        token, name = first + cell[0] * grid[1] + cell[1], f"patch at {patch[0]}, {patch[1]}"
    maps = np.asarray(weights[:, token, first : first + num_patches]).reshape(-1, *grid)
    kind = f"rollout to layer {layer}" if rollout else f"layer {layer}"
    return AttentionMaps(
        np.clip(np.rint(image), 0, 255).astype(np.uint8),
        maps,
        config.patch_size,
        f"{part} {kind}, {name}",
        cell,
        mask,
    )


def _check_choices(
    predictor: Predictor,
    part: str,
    layer: int,
    patch: tuple[int, int] | None,
    class_name: str | None,
    rollout: bool,
) -> int:
    """Raises ValueError, or returns the layer counted from 0."""
    config = predictor.model.config
    if part not in PARTS:
        raise ValueError(f"{part=} is unknown; choose from {PARTS}")
    if part == "decoder" and config.decoder != "mask":
        raise ValueError(f"the decoder of this model is {config.decoder!r} and has no attention")
    if part == "decoder" and rollout:
        raise ValueError("a rollout follows the encoder, and part is 'decoder'")
    if part == "decoder" and (patch is None) == (class_name is None):
        raise ValueError("the decoder has patches and classes: choose a patch or a class")
    if part == "encoder" and class_name is not None:
        raise ValueError("classes are embedded in the decoder only, and part is 'encoder'")
    if class_name is not None and class_name not in predictor.classes:
        raise ValueError(f"class {class_name!r} is unknown; choose from {predictor.classes}")
    depth = config.depth if part == "encoder" else config.decoder_depth
    if not -depth <= layer < depth:
        raise ValueError(f"layer must be in {-depth}..{depth - 1} for this {part}, got {layer}")
    return layer % depth


def check_memory(grid: tuple[int, int], num_heads: int, others: int) -> None:
    """Refuses a grid of patches, beside other tokens, whose attention weights are too large."""
    tokens = math.prod(grid) + others
    if (size := 4 * num_heads * tokens**2) > MAX_LAYER_BYTES:
        raise ValueError(
            f"{grid[0]} x {grid[1]} patches give {size >> 20} MB of attention weights in a layer, "
            f"over the limit of {MAX_LAYER_BYTES >> 20} MB; take a smaller picture"
        )


def scaled_picture(predictor: Predictor, picture: np.ndarray) -> np.ndarray:
    """A picture, as `Predictor.read` gives it, at the size at which the model predicts it."""
    settings = InferenceSettings.of(predictor.description)
    check_image(picture.shape, settings, predictor.model.config.in_channels)
    return scaled_image(picture, settings, 1.0)


def _run(
    predictor: Predictor, image: np.ndarray, part: str, layer: int, rollout: bool
) -> tuple[jax.Array, jax.Array]:
    """Low-resolution logits (h, w, K), and weights (heads, T, T); a rollout has one head."""
    d = predictor.description
    # The weights are written down anyway, so no kernel computes without them.
    model = Segmenter(dataclasses.replace(predictor.model.config, attention="xla"))
    inputs = model, predictor.params, normalize(image[None], None, d.mean, d.std)
    if rollout:
        logits, flow = attention_rollout(*inputs, layer)
        return logits[0], flow
    logits, weights = attention_weights(*inputs, part, layer)
    return logits[0], weights[0]


def _patch_at(
    pixel: tuple[int, int], size: tuple[int, int], scaled: tuple[int, int], patch_size: int
) -> tuple[int, int]:
    """(row, column) of the patch around pixel (x, y) of a picture of `size`, once it is scaled."""
    x, y = pixel
    if not (0 <= x < size[1] and 0 <= y < size[0]):
        raise ValueError(
            f"pixel x={x}, y={y} is outside the picture of {size[1]} x {size[0]} (width x height)"
        )
    return tuple(
        int((p + 0.5) * new / old) // patch_size
        for p, new, old in zip((y, x), scaled, size, strict=True)
    )
