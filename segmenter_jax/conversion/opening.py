"""What every format's own file offers, and the parts that those files are made of.

A format is a module with the names of `Format`, listed in `sources.FORMATS`. Its `open` sees what
network a file holds by the shapes in it (and by files beside it: `ArrayFile.sidecar`), makes the
network's configuration with `network`, and finds the rows of its mapping table with `bind`.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import numpy as np
from flax.traverse_util import flatten_dict

from segmenter_jax.conversion.arrays import ArrayFile, SourceError
from segmenter_jax.conversion.mapping import Row, Shape, their_shape, to_ours
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.models.config import patch_grid
from segmenter_jax.models.params import abstract_params
from segmenter_jax.models.variants import PLAIN
from segmenter_jax.runtime.errors import first_few

# In pixels, of a network that was made for none.
_ANY_SIZE = 256

# (their name, shape, why it has no place in a Segmenter).
Dropped = tuple[str, Shape, str]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of ours in a source: its name and shape there, and how to read it."""

    theirs: str
    shape: Shape
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source of weights: what network it is, and its parameters, unread, under our names.

    Attributes:
      format: name of the format, as recorded in `model.json`.
      source: the file or directory, or the address that it was fetched from.
      files: of the source, those whose content matters.
      config: the network they belong to. Without a decoder, its decoder means nothing.
      entries: parameters by our flat name.
      dropped: arrays that have no place in a Segmenter.
      description: fields of `ModelDescription` that the source says, but `model`.
      notes: remarks for the report.
      license: see `locate.Place`.
    """

    format: str
    source: str
    files: list[os.PathLike]
    config: SegmenterConfig
    entries: dict[str, Entry]
    dropped: list[Dropped] = dataclasses.field(default_factory=list)
    description: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    license: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def has_decoder(self) -> bool:
        """Whether there is a decoder in the source."""
        return any(name.startswith("decoder/") for name in self.entries)


@dataclasses.dataclass(frozen=True)
class SourceNetwork:
    """The encoder of a source of weights, for a network that takes it as it is.

    Attributes:
      fields: of `SegmenterConfig`.
      images: `mean` and `std`; empty where the source does not say them.
    """

    fields: dict[str, Any]
    images: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Hints:
    """What a user says for sources that do not.

    Attributes:
      num_heads: of the encoder, where neither the source nor its width tells.
      image_size: (height, width) in pixels that helps to see a grid of patches that is not square.
      base: weights that the source may hold differences from.
    """

    num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    base: Opened | None = None


class Format(Protocol):
    """The module of a format."""

    NAME: str

    def detect(self, names: Collection[str]) -> bool:
        """Whether the names of a file's arrays are those of this format."""

    def open(self, file: ArrayFile, hints: Hints) -> Opened:
        """Opens a file of this format and checks every name and shape in it.

        Raises:
          SourceError: something is missing, or has no explanation.
        """


def count_blocks(file: ArrayFile, pattern: str) -> int:
    """Number of blocks, from names that match `pattern` with the index in its group.

    Raises:
      SourceError: one is missing.
    """
    found = {int(m[1]) for name in file.arrays if (m := re.match(pattern, name))}
    if missing := sorted(set(range(max(found, default=0) + 1)) - found):
        raise SourceError(
            f"{file.path}: block {missing[0]} is missing (no array matches {pattern!r})"
        )
    return len(found)


def encoder_fields(
    file: ArrayFile, kernel: str, axes: str, hidden: str, blocks: str
) -> dict[str, Any]:
    """Fields of `SegmenterConfig` that show in any ViT.

    Args:
      file: the file.
      kernel: name of the patch embedding's kernel.
      axes: its axes: "o" for the width, "i" for the image's channels, "h" and "w" for the patch.
      hidden: name of the bias of the first block's hidden layer.
      blocks: pattern of the blocks' names, see `count_blocks`.

    Raises:
      SourceError: one of them is missing or has other axes.
    """
    size = dict(zip(axes, file.shape(kernel, 4), strict=True))
    if size["h"] != size["w"]:
        raise SourceError(f"{file.path}: array {kernel} has patches that are not square")
    depth = count_blocks(file, blocks)
    (mlp_dim,) = file.shape(hidden, 1)
    return {
        "width": size["o"],
        "depth": depth,
        "patch_size": size["h"],
        "in_channels": size["i"],
        "mlp_dim": None if mlp_dim == 4 * size["o"] else mlp_dim,
    }


def is_square(number: int) -> bool:
    """Whether a number of patches makes a square grid."""
    return math.isqrt(number) ** 2 == number


def normalized_as(name: str) -> dict[str, Any]:
    """Fields of `ModelDescription` for a known way to normalise images, such as "vit"."""
    mean, std = NORMALIZATION[name]
    return {"mean": mean, "std": std}


def network(
    path: pathlib.Path, fields: dict[str, Any], patches: int | None, hints: Hints
) -> SegmenterConfig:
    """The network that a file holds.

    Args:
      path: the file, for messages.
      fields: of `SegmenterConfig`; `num_heads` and `image_size` only where the source says them,
        `decoder` and `num_classes` only where it has a decoder.
      patches: number of position embeddings of patches; None where there are none.
      hints: see `Hints`.

    Raises:
      SourceError: there is no such network, or something is not said anywhere.
    """
    num_heads = fields.get("num_heads", hints.num_heads)
    if num_heads is None:
        by_width = {size["width"]: size["num_heads"] for size in PLAIN.values()}
        num_heads = by_width.get(fields["width"])
    if num_heads is None:
        raise SourceError(
            f"{path}: the number of heads is not in the file and width {fields['width']} "
            "is not a standard one; give num_heads"
        )
    if patches is None:
        size = fields.get("image_size") or hints.image_size or (_ANY_SIZE, _ANY_SIZE)
    else:
        size = _image_size(path, patches, fields["patch_size"], fields.get("image_size"), hints)
    try:
        return SegmenterConfig(
            **{"decoder": "linear", "num_classes": 1}
            | fields
            | {"num_heads": num_heads, "image_size": size}
        )
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from None


def _image_size(
    path: pathlib.Path,
    patches: int,
    patch_size: int,
    stated: tuple[int, int] | None,
    hints: Hints,
) -> tuple[int, int]:
    wanted = stated or hints.image_size
    fits = wanted is not None and math.prod(patch_grid(wanted, patch_size)) == patches
    # A square grid is what it seems, even if the size wanted happens to have as many patches.
    if fits and (stated or not is_square(patches)):
        return wanted
    if not is_square(patches):
        raise SourceError(
            f"{path}: {patches} position embeddings make no square grid; give image_size"
        )
    if stated:
        raise SourceError(
            f"{path}: {patches} position embeddings do not fit image_size={stated} at {patch_size=}"
        )
    return (math.isqrt(patches) * patch_size,) * 2


def bind(
    file: ArrayFile,
    format: str,
    config: SegmenterConfig,
    table: Iterable[Row],
    dropped: Iterable[tuple[str, str]],
    description: dict[str, Any] | None = None,
) -> Opened:
    """Finds every row of a mapping table in a file, with the shape it must have.

    Args:
      file: the file.
      format: name of the format.
      config: the network.
      table: its mapping table, of the encoder alone where there is no decoder.
      dropped: (regular expression, reason) of arrays that have no place in a Segmenter.
      description: see `Opened`.

    Raises:
      SourceError: an array is missing, of another shape, or without an explanation.
    """
    expected = flatten_dict(abstract_params(config), sep="/")
    entries, used = {}, set()
    for row in table:
        array = file.arrays.get(row.theirs)
        if array is None:
            raise SourceError(f"{file.path}: array {row.theirs} is missing")
        ours = expected[row.ours].shape
        if array.shape != (theirs := their_shape(row, ours)):
            raise SourceError(
                f"{file.path}: array {row.theirs} has shape {array.shape}, expected {theirs}"
            )
        entries[row.ours] = Entry(row.theirs, ours, functools.partial(_read, file, row, ours))
        used.add(row.theirs)
    rest = {name: array.shape for name, array in file.arrays.items() if name not in used}
    return Opened(
        format=format,
        source=os.fspath(file.path),
        files=[file.path],
        config=config,
        entries=entries,
        dropped=_explain(os.fspath(file.path), format, rest, tuple(dropped)),
        description=description or {},
    )


def _read(file: ArrayFile, row: Row, shape: Shape) -> np.ndarray:
    return to_ours(row, file.read(row.theirs), shape)


def _explain(
    where: str, format: str, rest: dict[str, Shape], reasons: tuple[tuple[str, str], ...]
) -> list[Dropped]:
    why = {
        name: next((reason for pattern, reason in reasons if re.match(pattern, name)), None)
        for name in rest
    }
    if unknown := sorted(name for name in rest if why[name] is None):
        raise SourceError(
            f"{where}: {len(unknown)} arrays have no explanation as {format}: "
            f"{first_few(unknown, 5)}"
        )
    return [(name, shape, why[name]) for name, shape in rest.items()]
