"""The language of the mapping tables: rows of (our name, their name, layout).

A layout says how their array becomes ours and back, so that one table serves reading and writing.
Shapes of the other side follow from ours, which lets a whole file be checked before any of it is
read.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

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
# One vector for each position, (N, D) and (1, N, D).
POSITIONS = Layout(lambda theirs, shape: theirs.reshape(shape), lambda ours: ours[0])
# Position embeddings of patches only, and with a class token that has none.
WITHOUT_CLASS_TOKEN = Layout(
    lambda theirs, shape: np.concatenate([np.zeros_like(theirs[:, :1]), theirs], axis=1),
    lambda ours: ours[:, 1:],
)
# The same as a table (N, D).
TABLE_WITHOUT_CLASS_TOKEN = Layout(
    lambda theirs, shape: WITHOUT_CLASS_TOKEN.read(theirs[None], shape), lambda ours: ours[0, 1:]
)


def linear(ours: str, theirs: str, layout: Layout = LINEAR) -> list[Row]:
    """Rows of one of PyTorch's dense layers or convolutions."""
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", layout),
        Row(f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


def norm(ours: str, theirs: str) -> list[Row]:
    """Rows of one of PyTorch's layer norms."""
    return [
        Row(f"{ours}/scale", f"{theirs}.weight", SAME),
        Row(f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


def fused_qkv(ours: str, theirs: str) -> list[Row]:
    """Rows of query, key and value (D, heads, head_dim) in one weight (3 D, D) and one bias (3 D,).

    Args:
      ours: name of the attention layer.
      theirs: what stands before "weight" and "bias".
    """
    rows = []
    for part, name in enumerate(("query", "key", "value")):
        kernel = Layout(LINEAR.read, lambda ours: ours.reshape(ours.shape[0], -1).T, part, parts=3)
        bias = Layout(
            lambda theirs, shape: theirs.reshape(shape), lambda ours: ours.reshape(-1), part, 3
        )
        rows.append(Row(f"{ours}/{name}/kernel", f"{theirs}weight", kernel))
        rows.append(Row(f"{ours}/{name}/bias", f"{theirs}bias", bias))
    return rows


def split_qkv(ours: str, names: tuple[str, str, str]) -> list[Row]:
    """Rows of query, key and value (D, heads, head_dim) in dense layers of their own.

    Args:
      ours: name of the attention layer.
      names: of their layers for query, key and value.
    """
    kernel = Layout(LINEAR.read, lambda ours: ours.reshape(ours.shape[0], -1).T)
    bias = Layout(lambda theirs, shape: theirs.reshape(shape), lambda ours: ours.reshape(-1))
    rows = []
    for name, theirs in zip(("query", "key", "value"), names, strict=True):
        rows.append(Row(f"{ours}/{name}/kernel", f"{theirs}.weight", kernel))
        rows.append(Row(f"{ours}/{name}/bias", f"{theirs}.bias", bias))
    return rows


def packed(ours: tuple[str, ...], theirs: str) -> list[Row]:
    """Rows of several dense layers of one input in one of theirs, one after the other."""
    rows = []
    for part, name in enumerate(ours):
        kernel = dataclasses.replace(LINEAR, part=part, parts=len(ours))
        bias = dataclasses.replace(SAME, part=part, parts=len(ours))
        rows.append(Row(f"{name}/kernel", f"{theirs}.weight", kernel))
        rows.append(Row(f"{name}/bias", f"{theirs}.bias", bias))
    return rows


def prefixed(rows: Iterable[Row], ours: str, theirs: str) -> list[Row]:
    """Rows with a prefix before each side's name."""
    return [Row(ours + row.ours, theirs + row.theirs, row.layout) for row in rows]


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
