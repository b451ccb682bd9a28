"""What SigLIP 2's NaFlex has in another shape: patches in one axis, positions in two.

It takes images of any shape; here it is a network whose 16 x 16 positions are resized to each grid
by its own rule. With its arrays in the usual shapes the readers of SigLIP read it.
"""

import dataclasses
import math

from segmenter_jax.conversion.arrays import ArrayFile, LazyArray, SourceError

_CHANNELS = 3

# The rule of both implementations.
RESIZE = "bilinear_antialias"


def unflattened(file: ArrayFile, kernel: str, position: str, axes: str) -> ArrayFile | None:
    """A file whose patch kernel has all of its axes; None where it has them already.

    Args:
      file: the file.
      kernel: name of its patch kernel. Its long axis is row, column, channel of a patch.
      position: name of its position embeddings, (rows, columns, D) or (N, D).
      axes: wanted: "oihw" or "hwio".

    Raises:
      SourceError: they are of no square patches of three channels.
    """
    if kernel not in file.arrays or len(shape := file.arrays[kernel].shape) != 2:
        return None
    width, length = shape if axes == "oihw" else shape[::-1]
    side = math.isqrt(length // _CHANNELS)
    if side**2 * _CHANNELS != length:
        raise SourceError(
            f"{file.path}: array {kernel} has shape {shape}; expected square patches of "
            f"{_CHANNELS} channels in one axis"
        )
    changed = {kernel: _kernel(file.arrays[kernel], width, side, axes)}
    places = file.arrays.get(position)
    if places is not None and len(places.shape) == 3 and places.shape[0] > 1:
        changed[position] = _reshaped(places, (1, math.prod(places.shape[:2]), places.shape[2]))
    return dataclasses.replace(file, arrays=file.arrays | changed)


def _kernel(array: LazyArray, width: int, side: int, axes: str) -> LazyArray:
    if axes == "hwio":
        return _reshaped(array, (side, side, _CHANNELS, width))
    return LazyArray(
        (width, _CHANNELS, side, side),
        array.dtype,
        lambda: array.load().reshape(width, side, side, _CHANNELS).transpose(0, 3, 1, 2),
    )


def _reshaped(array: LazyArray, shape: tuple[int, ...]) -> LazyArray:
    return LazyArray(shape, array.dtype, lambda: array.load().reshape(shape))
