"""What results show: sizes, shares of classes, mean confidence."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from segmenter_jax.inference.merging import Maps


class Facts:
    """Counts what is seen in pictures, or in the frames of a video.

    Attributes:
      pixels: int64 (K,), of each class.
      sources: int64 (K,), sources in which a class was seen.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        """Starts with nothing.

        Args:
          classes: their names.
        """
        self._classes = classes
        self.pixels = np.zeros(len(classes), np.int64)
        self.sources = np.zeros(len(classes), np.int64)
        self._size: tuple[int, int] | None = None
        self._frames = 0
        self._confidence: float | None = None

    def add(self, maps: Maps, is_frame: bool = False) -> None:
        """Adds the maps of a picture, or of the next frame of a video."""
        ids = maps["ids"]
        self._size, self._frames = ids.shape, self._frames + is_frame
        self.pixels += np.bincount(ids.ravel(), minlength=len(self.pixels))
        self.sources = np.minimum(self.pixels, 1)
        if "confidence" in maps:
            total = float(maps["confidence"].sum(dtype=np.float64))
            self._confidence = (self._confidence or 0.0) + total

    def counts(self) -> list[list[int]]:
        """`pixels` and `sources`, for `include`."""
        return [self.pixels.tolist(), self.sources.tolist()]

    def include(self, counts: Sequence[Sequence[int]]) -> None:
        """Adds the counts of others."""
        pixels, sources = counts
        self.pixels += pixels
        self.sources += sources

    def record(self) -> dict[str, Any]:
        """Fields for the records of one source; see `records.manifest`."""
        if self._size is None:
            return {}
        total = max(int(self.pixels.sum()), 1)
        record: dict[str, Any] = {"height": self._size[0], "width": self._size[1]}
        if self._frames:
            record["frames"] = self._frames
        record["classes"] = self.shares()
        if self._confidence is not None:
            record["confidence"] = round(self._confidence / total, 6)
        return record

    def shares(self) -> dict[str, float]:
        """Share of the pixels by name of the class, largest first, of those that were seen."""
        order = np.argsort(-self.pixels, kind="stable")
        total = max(int(self.pixels.sum()), 1)
        return {
            self._classes[k]: round(int(self.pixels[k]) / total, 6) for k in order if self.pixels[k]
        }

    def table(self) -> list[list[str]]:
        """Rows of text: classes that were seen, shares of the pixels, numbers of files."""
        files = dict(zip(self._classes, self.sources.tolist(), strict=True))
        rows = [[name, f"{100 * s:.2f} %", str(files[name])] for name, s in self.shares().items()]
        return [["class", "pixels", "files"], *rows]
