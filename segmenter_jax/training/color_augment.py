"""Colour augmentation, on the device."""

import dataclasses

import jax
import jax.numpy as jnp

_BRIGHTNESS = 32.0
_CONTRAST = (0.5, 1.5)
_SATURATION = (0.5, 1.5)
# In OpenCV's 8-bit hue, where the circle has 180 steps; the upper end is exclusive.
_HUE = 18


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ColorDraw:
    """One draw of the photometric distortion per sample; all arrays float32 (B,) but two.

    Attributes:
      brightness: added to every channel.
      contrast: factor on every channel.
      contrast_first: bool (B,), contrast before saturation and hue instead of after.
      saturation: factor on HSV saturation.
      hue: int32 (B,), added to the hue in steps of 2 degrees.
    """

    brightness: jax.Array
    contrast: jax.Array
    contrast_first: jax.Array
    saturation: jax.Array
    hue: jax.Array


def draw_colors(key: jax.Array, batch_size: int) -> ColorDraw:
    """Draws the parameters of the photometric distortion, each active with probability 0.5.

    Args:
      key: PRNG key.
      batch_size: B.

    Returns:
      An independent draw for each sample.
    """
    keys = jax.random.split(key, 6)
    shape = (batch_size,)
    active = jax.random.bernoulli(keys[0], 0.5, (5, batch_size))
    brightness = jax.random.uniform(keys[1], shape, minval=-_BRIGHTNESS, maxval=_BRIGHTNESS)
    contrast = jax.random.uniform(keys[2], shape, minval=_CONTRAST[0], maxval=_CONTRAST[1])
    saturation = jax.random.uniform(keys[3], shape, minval=_SATURATION[0], maxval=_SATURATION[1])
    hue = jax.random.randint(keys[4], shape, -_HUE, _HUE)
    return ColorDraw(
        brightness=jnp.where(active[0], brightness, 0.0),
        contrast=jnp.where(active[1], contrast, 1.0),
        contrast_first=active[4],
        saturation=jnp.where(active[2], saturation, 1.0),
        hue=jnp.where(active[3], hue, 0),
    )


def apply_colors(image: jax.Array, draw: ColorDraw) -> jax.Array:
    """Applies a drawn photometric distortion.

    Args:
      image: float32 (B, H, W, 3) RGB in [0, 255].
      draw: parameters of each sample.

    Returns:
      float32 (B, H, W, 3) in [0, 255].
    """
    per_sample = jax.tree.map(lambda value: value[:, None, None, None], draw)
    one = jnp.ones_like(per_sample.contrast)
    before = jnp.where(per_sample.contrast_first, per_sample.contrast, one)
    after = jnp.where(per_sample.contrast_first, one, per_sample.contrast)
    image = _levels(image + per_sample.brightness)
    image = _levels(image * before)
    image = _shift_hsv(image, per_sample.saturation[..., 0], per_sample.hue[..., 0])
    return _levels(image * after)


def _levels(image: jax.Array) -> jax.Array:
    return jnp.floor(jnp.clip(image, 0.0, 255.0))


def photometric_distortion(key: jax.Array, image: jax.Array) -> jax.Array:
    """Random brightness, contrast, saturation and hue, independently for each sample.

    As in the reference an image has whole levels after each operation, which are cut off after
    brightness and contrast and rounded after OpenCV's trip through HSV, whose hue and saturation
    have whole steps as well. The reference makes that trip once for saturation and once for hue;
    here it is one.

    Args:
      key: PRNG key.
      image: float32 (B, H, W, C) in [0, 255], C >= 3, RGB first.

    Returns:
      float32 (B, H, W, C) in [0, 255]; channels beyond the third are unchanged.

    Source: `PhotoMetricDistortion` of mmsegmentation, which the reference trains with.
    """
    if image.shape[-1] < 3:
        raise ValueError(f"photometric distortion needs RGB, got {image.shape[-1]} channels")
    colors = apply_colors(image[..., :3], draw_colors(key, image.shape[0]))
    return jnp.concatenate([colors, image[..., 3:]], axis=-1)


def _shift_hsv(image: jax.Array, saturation: jax.Array, hue: jax.Array) -> jax.Array:
    """Scales saturation and turns hue in one round trip through 8-bit HSV.

    Args:
      image: (B, H, W, 3) RGB in [0, 255], whole levels.
      saturation: factors (B, 1, 1).
      hue: steps of 2 degrees (B, 1, 1).

    Returns:
      (B, H, W, 3) RGB in [0, 255], whole levels.
    """
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(axis=-1)
    chroma = value - image.min(axis=-1)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    # Hue in sextants of the circle; the order of the cases is OpenCV's where channels are equal.
    sextant = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sextant = (jnp.round(sextant * 30.0) + hue.astype(image.dtype)) / 30.0
    # Saturation is chroma / value in 255 steps: rounded, scaled, and what is over cut off.
    steps = jnp.round(255.0 * chroma / jnp.maximum(value, 1.0))
    chroma = value * jnp.minimum(jnp.floor(steps * saturation), 255.0) / 255.0
    position = jnp.array([5.0, 3.0, 1.0], image.dtype) + sextant[..., None]
    position = position % 6.0
    ramp = jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)
    shifted = jnp.round(value[..., None] - chroma[..., None] * ramp)
    changes = (saturation != 1.0) | (hue != 0)
    return jnp.where(changes[..., None], shifted, image)
