"""Arrays on disk that grow row by row and survive what kills their writer."""

import dataclasses
import functools
import io
import math
from pathlib import Path

import numpy as np

from segmenter_jax.runtime.files import naming


@dataclasses.dataclass(frozen=True)
class RowsFile:
    """A `.npy` file of a known shape that is written from its first row to its last.

    Written and not mapped: a full disk is an error then, and not the end of the process.

    Attributes:
      path: of the file.
      shape: of the whole array, rows first.
      dtype: of its elements.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @functools.cached_property
    def _header(self) -> bytes:
        description = np.lib.format.dtype_to_descr(np.dtype(self.dtype))
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": description, "fortran_order": False, "shape": self.shape}
        )
        return header.getvalue()

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def full_bytes(self) -> int:
        """Size of the whole file."""
        return len(self._header) + self.shape[0] * self._row_bytes

    @property
    def bytes(self) -> int:
        """Size of what is there of it."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def rows(self) -> int:
        """Whole rows that are there."""
        return max(self.bytes - len(self._header), 0) // self._row_bytes

    def cut(self, rows: int) -> None:
        """Leaves the first rows only, of those that are there; makes the file if it is missing."""
        with naming(self.path), open(self.path, "r+b" if self.bytes else "wb") as file:
            file.write(self._header)
            file.truncate(len(self._header) + rows * self._row_bytes)

    def append(self, rows: np.ndarray) -> None:
        """Adds rows of an array (rows, ...)."""
        with naming(self.path), open(self.path, "ab") as file:
            file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
