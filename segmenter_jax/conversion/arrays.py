"""Arrays of a file of foreign weights, unread: what `files` finds, and every format is given."""

import dataclasses
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from segmenter_jax.runtime.errors import first_line

# What a damaged archive raises; RuntimeError stands for an encrypted one.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


class SourceError(ValueError):
    """A source of weights is missing, damaged, hostile or not understood; the message names it."""


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a file: its shape and type, and how to read it.

    `dtype` is None for what is no floating-point array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    load: Callable[[], np.ndarray]


Values = Mapping[str, Any]
# See `files.read_groups`.
Content = tuple[dict[str, Values], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """One set of weights in a file.

    Attributes:
      path: of the file.
      arrays: by name, without what stands before all of the names.
      extra: top-level values of a PyTorch file that hold no arrays.
      others: names of the other sets of weights in the file.
      outside: shapes of arrays beside the set in its group.
    """

    path: pathlib.Path
    arrays: dict[str, LazyArray]
    extra: dict[str, Any]
    others: tuple[str, ...] = ()
    outside: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def sidecar(self, name: str) -> pathlib.Path | None:
        """A file beside this one: STEM.name, which is this one's alone, else name; None if absent.

        Args:
          name: for example "config.json".
        """
        stem = self.path.stem
        candidates = (self.path.with_name(f"{stem}.{name}"), self.path.with_name(name))
        return next((path for path in candidates if path.exists()), None)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of an array that must be there and have `rank` axes, none empty."""
        if name not in self.arrays:
            raise SourceError(f"{self.path}: array {name} is missing")
        shape = self.arrays[name].shape
        if len(shape) != rank or min(shape, default=1) < 1:
            raise SourceError(
                f"{self.path}: array {name} has shape {shape}, expected {rank} axes, none empty"
            )
        return shape

    def read(self, name: str) -> np.ndarray:
        """Reads one array as float32.

        Raises:
          SourceError: unreadable, not floating point, or not finite.
        """
        where, array = f"{self.path}: array {name}", self.arrays[name]
        if array.dtype is None:
            raise SourceError(f"{where} is not floating point")
        try:
            values = array.load()
        except (*ZIP_ERRORS, OSError, ValueError) as error:
            raise SourceError(f"{where} is damaged: {first_line(error)}") from error
        if tuple(values.shape) != array.shape:
            raise SourceError(f"{where} has shape {values.shape}, not {array.shape}")
        with np.errstate(over="ignore"):
            values = np.asarray(values, np.float32)
        if count := np.count_nonzero(~np.isfinite(values)):
            raise SourceError(f"{where} holds {count} values that are not finite")
        return values
