"""The language of the mapping tables: rows of (our name, their name, layout).

A layout says how their array becomes ours and back, so that one table serves reading and writing.
Shapes of the other side follow from ours, which lets a whole file be checked before any of it is
read.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from segmenter_jax.conversion.arrays import CheckpointError
from segmenter_jax.models import SegmenterConfig

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array of theirs becomes one of ours, and back.

    Attributes:
      read: from (their array, our shape) to our array.
      write: from our array to theirs.
      part, parts: their array holds `parts` of ours stacked on the first axis; this is one of them.
    """

    read: Callable[[np.ndarray, Shape], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]
    part: int = 0
    parts: int = 1


class Row(NamedTuple):
    """One line of a mapping table."""

    ours: str
    theirs: str
    layout: Layout


SAME = Layout(lambda theirs, shape: theirs, lambda ours: ours)
# PyTorch's (out, in) and ours, (in, out); several axes of "in" are merged.
LINEAR = Layout(
    lambda theirs, shape: theirs.T.reshape(shape),
    lambda ours: ours.reshape(-1, ours.shape[-1]).T,
)
# (out, in, height, width) and (height, width, in, out).
CONV = Layout(
    lambda theirs, shape: theirs.transpose(2, 3, 1, 0),
    lambda ours: ours.transpose(3, 2, 0, 1),
)
# A 1 x 1 convolution that is a dense layer.
POINTWISE = Layout(
    lambda theirs, shape: theirs[:, :, 0, 0].T, lambda ours: ours.T[:, :, None, None]
)
# Position embeddings of patches only, and with a class token that has none.
WITHOUT_CLASS_TOKEN = Layout(
    lambda theirs, shape: np.concatenate([np.zeros_like(theirs[:, :1]), theirs], axis=1),
    lambda ours: ours[:, 1:],
)


def fused_kernel(part: int) -> Layout:
    """One of query, key, value (D, heads, head_dim) in a fused weight (3 D, D)."""
    return Layout(
        lambda theirs, shape: theirs.T.reshape(shape),
        lambda ours: ours.reshape(ours.shape[0], -1).T,
        part,
        3,
    )


def fused_bias(part: int) -> Layout:
    """One of query, key, value (heads, head_dim) in a fused bias (3 D,)."""
    return Layout(
        lambda theirs, shape: theirs.reshape(shape), lambda ours: ours.reshape(-1), part, 3
    )


def prefixed(rows: Iterable[tuple[str, str, Layout]], ours: str, theirs: str) -> list[Row]:
    """Rows with a prefix before each side's name."""
    return [Row(ours + a, theirs + b, layout) for a, b, layout in rows]


def their_shape(row: Row, ours: Shape) -> Shape:
    """Shape that their array must have for ours to have shape `ours`."""
    first, *rest = row.layout.write(np.broadcast_to(np.float32(0), ours)).shape
    return (first * row.layout.parts, *rest)


def to_ours(row: Row, theirs: np.ndarray, shape: Shape) -> np.ndarray:
    """Reads one row: our array, in C order and with memory of its own."""
    layout = row.layout
    part = theirs if layout.parts == 1 else np.split(theirs, layout.parts)[layout.part]
    return np.require(layout.read(part, shape), np.float32, ["C", "O"])


def to_theirs(rows: Iterable[Row], params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Writes a table: their arrays, in its order.

    Args:
      rows: the table; the parts of a stacked array are in order.
      params: our flat parameters.
    """
    pieces: dict[str, list[np.ndarray]] = {}
    for row in rows:
        pieces.setdefault(row.theirs, []).append(row.layout.write(params[row.ours]))
    return {
        name: np.ascontiguousarray(np.concatenate(parts) if len(parts) > 1 else parts[0])
        for name, parts in pieces.items()
    }


@dataclasses.dataclass(frozen=True)
class Format:
    """A naming scheme of checkpoints.

    Attributes:
      name: as recorded in `model.json`.
      detect: whether a collection of array names follows this scheme.
      describe: from a `Shapes` to fields of `SegmenterConfig`, without `image_size` but with
        `patches`, the number of position embeddings of patches; `num_heads` only where it shows.
        There are `decoder` and `num_classes` if there is a decoder.
      table: mapping table of a network, given also the shapes in the file.
      dropped: (regular expression, reason) of arrays that have no place in a Segmenter.
      layer_norm_eps, gelu: what such weights were trained with.
      normalization: "vit", "deit", or None where the format does not imply it.
      notes: remarks for the report.
    """

    name: str
    detect: Callable[[Collection[str]], bool]
    describe: Callable[["Shapes"], dict[str, Any]]
    table: Callable[[SegmenterConfig, "Shapes"], list[Row]]
    dropped: tuple[tuple[str, str], ...]
    layer_norm_eps: float
    gelu: str
    normalization: Callable[[dict[str, Any]], str | None]
    notes: tuple[str, ...] = ()


class Shapes:
    """Shapes by array name, of a file; asking for an absent one is an error that says so."""

    def __init__(self, source: str, shapes: Mapping[str, Shape]):
        self.source = source
        self._shapes = shapes

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def get(self, name: str, rank: int) -> Shape:
        """Shape of an array that must be there and have `rank` axes, none empty."""
        if name not in self._shapes:
            raise CheckpointError(f"{self.source}: array {name} is missing")
        shape = self._shapes[name]
        if len(shape) != rank or min(shape, default=1) < 1:
            raise CheckpointError(
                f"{self.source}: array {name} has shape {shape}, expected {rank} axes"
            )
        return shape

    def count(self, pattern: str) -> int:
        """Number of blocks, from names that match `pattern` with the index in its group."""
        found = {int(m[1]) for name in self._shapes if (m := re.match(pattern, name))}
        if missing := sorted(set(range(max(found, default=0) + 1)) - found):
            raise CheckpointError(
                f"{self.source}: block {missing[0]} is missing (no array matches {pattern!r})"
            )
        return len(found)

    def patch_size(self, kernel: Shape, name: str, height: int, width: int) -> int:
        """Patch size from the shape of the patch embedding's kernel, which must be square."""
        if kernel[height] != kernel[width]:
            raise CheckpointError(f"{self.source}: array {name} has patches that are not square")
        return kernel[height]


def mlp_dim(width: int, hidden: int) -> int | None:
    """`SegmenterConfig.mlp_dim` of an MLP's hidden width."""
    return None if hidden == 4 * width else hidden


def is_square(number: int) -> bool:
    """Whether a number of patches makes a square grid."""
    return math.isqrt(number) ** 2 == number
