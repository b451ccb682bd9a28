"""Normalisation of images, on the device."""

import jax
import jax.numpy as jnp


def normalize(
    image: jax.Array,
    valid_size: jax.Array | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Normalises images and zeroes their padding.

    Args:
      image: (B, H, W, C) in [0, 255], uint8 or float.
      valid_size: int32 (B, 2), height and width of the part that is not padding; None if all is.
      mean: C means in [0, 1].
      std: C standard deviations in the same unit.

    Returns:
      float32 (B, H, W, C); exactly 0 in the padding.

    Raises:
      ValueError: the lengths of `mean` and `std` are not C.
    """
    channels = image.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"images have {channels} channels, but there are {len(mean)} means and "
            f"{len(std)} standard deviations"
        )
    scale = jnp.array([1.0 / (255.0 * s) for s in std], jnp.float32)
    offset = jnp.array([m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    image = image.astype(jnp.float32) * scale - offset
    if valid_size is None:
        return image
    rows = jnp.arange(image.shape[1]) < valid_size[:, 0, None]
    columns = jnp.arange(image.shape[2]) < valid_size[:, 1, None]
    valid = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(valid, image, 0.0)
