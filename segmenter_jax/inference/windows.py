"""Images cut into windows, and batches of the windows of several images."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from segmenter_jax.inference.geometry import InferenceSettings, window_anchors

Example = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Version:
    """One scaled version of an image.

    Attributes:
      size: (h, w) in pixels.
      flipped: it was flipped left to right.
      windows: (rows, columns) of its windows.
    """

    size: tuple[int, int]
    flipped: bool
    windows: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class CutImage:
    """An example, and its versions that were cut so far."""

    example: Example
    versions: list[Version] = dataclasses.field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.example["image"].shape[:2]


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """The pixels of a window, and its place: row and column among the windows of its version.

    The last window of an image completes it: batches are computed in order.
    """

    pixels: np.ndarray
    image: CutImage
    version: Version
    place: tuple[int, int]
    completes: bool = False


def _cut(
    example: Example, versions: Iterable[tuple[np.ndarray, bool]], settings: InferenceSettings
) -> Iterator[Window]:
    """All windows of all versions of an image.

    Args:
      example: of the image.
      versions: (h, w, C) pixels, and whether they are flipped; each is made when its turn comes.
      settings: window and stride.
    """
    image, side = CutImage(example), settings.window
    previous = None
    for pixels, flipped in versions:
        tops, lefts = (window_anchors(n, side, settings.stride) for n in pixels.shape[:2])
        version = Version(pixels.shape[:2], flipped, (len(tops), len(lefts)))
        image.versions.append(version)
        for (row, top), (column, left) in itertools.product(enumerate(tops), enumerate(lefts)):
            if previous is not None:
                yield previous
            window = pixels[top : top + side, left : left + side]
            previous = Window(window, image, version, (row, column))
    yield dataclasses.replace(previous, completes=True)


def batches(
    examples: Iterable[Example],
    versions: Callable[[Example], Iterable[tuple[np.ndarray, bool]]],
    settings: InferenceSettings,
    batch_size: int,
) -> Iterator[list[Window]]:
    """Windows of all images, in order, read as they are needed.

    Args:
      examples: of the images.
      versions: gives those of an image, see `image_versions`.
      settings: window and stride.
      batch_size: windows of a batch; the last has what is left.
    """
    windows = itertools.chain.from_iterable(
        _cut(example, versions(example), settings) for example in examples
    )
    return iter(lambda: list(itertools.islice(windows, batch_size)), [])


def stacked(windows: list[Window], batch_size: int) -> np.ndarray:
    """Pixels of windows, filled up with zeros, (B, h, w, C)."""
    # Enlarged images are float; all others travel as bytes.
    dtype = np.result_type(*(window.pixels for window in windows))
    batch = np.zeros((batch_size, *windows[0].pixels.shape), dtype)
    for slot, window in zip(batch, windows, strict=False):
        slot[:] = window.pixels
    return batch
