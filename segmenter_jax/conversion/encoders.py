"""What the readers of pretrained encoders share: one way of naming, from its tables to `Opened`."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from segmenter_jax.conversion import huggingface
from segmenter_jax.conversion.arrays import ArrayFile, SourceError
from segmenter_jax.conversion.mapping import (
    TABLE_WITHOUT_CLASS_TOKEN,
    WITHOUT_CLASS_TOKEN,
    Row,
    prefixed,
)
from segmenter_jax.conversion.opening import Entry, Hints, Opened, bind, encoder_fields, network
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.params import abstract_params

# Heads of the sizes that are published, where no file says them.
Heads = Mapping[int, int]


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one project names the arrays of an encoder, as tables of rows.

    Attributes:
      stem: tokens, positions, patch embedding and last norm; registers may be absent.
      block: what stands before the names of a block, with {} for its number.
      rows: of a block, without its MLP.
      mlps: kind of MLP -> its rows.
      hub: files of the Hugging Face hub, which come with a `config.json`.
    """

    stem: tuple[Row, ...]
    block: str
    rows: tuple[Row, ...]
    mlps: Mapping[str, tuple[Row, ...]]
    hub: bool = False

    @property
    def marks(self) -> frozenset[str]:
        """Names that every file of this naming has."""
        rows = prefixed(self.rows, "", self.block.format(0))
        return frozenset(row.theirs for row in rows if not row.theirs.endswith("bias"))

    def theirs(self, ours: str) -> str:
        """Their name of an array of the stem."""
        return next(row.theirs for row in self.stem if row.ours == ours)


def open_encoder(
    file: ArrayFile,
    format: str,
    naming: Naming,
    fields: Mapping[str, Any],
    hints: Hints,
    dropped: Iterable[tuple[str, str]],
    description: Mapping[str, Any],
    heads: Heads | None = None,
    zeros: tuple[str, ...] = (),
    decoder: Callable[[SegmenterConfig], Iterable[Row]] = lambda config: (),
) -> Opened:
    """Opens a file that holds one encoder, and maybe a decoder; see `opening.Format`.

    Args:
      file: the file.
      format: name of the format.
      naming: that it has.
      fields: of `SegmenterConfig` that the format says; heads and eps are those of a `config.json`
        beside the file, where there is one.
      hints: see `Hints`.
      dropped: see `opening.bind`.
      description: of `ModelDescription`, as far as no `preprocessor_config.json` says it.
      heads: by width.
      zeros: ends of our names of arrays that are zero in this format and may be absent.
      decoder: rows of a network's decoder, by our whole names.

    Raises:
      SourceError: something is missing, or has no explanation.
    """
    stem = [r for r in naming.stem if r.ours != "registers" or r.theirs in file.arrays]
    kind, mlp = _mlp(file, naming)
    said = huggingface.read_config(file) if naming.hub else {}
    found = _fields(file, naming, stem, mlp) | {"mlp": kind} | dict(fields)
    stated = huggingface.whole_number(file, said, "num_attention_heads")
    if known := stated or hints.num_heads or (heads or {}).get(found["width"]):
        found["num_heads"] = known
    found |= huggingface.numerics(file, said, found)
    made = network(file.path, found, _patches(file, stem, found), hints)
    if made.position == "learned":
        # They stay as they are, and are resized once, at run time, by the format's own rule.
        made = dataclasses.replace(made, position_size=made.image_size)
    rows = prefixed(stem, "encoder/", "")
    for i in range(made.depth):
        rows += prefixed((*naming.rows, *mlp), f"encoder/encoderblock_{i}/", naming.block.format(i))
    rows += decoder(made)
    # An empty tuple ends no name.
    absent = [row for row in rows if row.ours.endswith(zeros)]
    bound = [row for row in rows if row not in absent]
    described = dict(description) | huggingface.normalization(file)
    opened = bind(file, format, made, bound, dropped, described)
    expected = flatten_dict(abstract_params(made), sep="/")
    for row in absent:
        shape = expected[row.ours].shape
        read = functools.partial(np.zeros, shape, np.float32)
        opened.entries[row.ours] = Entry("0 in this format", shape, read)
    return opened


def _mlp(file: ArrayFile, naming: Naming) -> tuple[str, tuple[Row, ...]]:
    """Kind and rows of the MLP that a file has; the first of the naming where it has none whole."""
    first = naming.block.format(0)
    whole = (
        (kind, rows)
        for kind, rows in naming.mlps.items()
        if all(first + row.theirs in file.arrays for row in rows) and _fits(file, first, rows)
    )
    return next(whole, next(iter(naming.mlps.items())))


def _fits(file: ArrayFile, first: str, rows: tuple[Row, ...]) -> bool:
    """Whether the first layer is as wide as the last one needs: a gate may be in it, or not."""
    by_name = {row.ours: row for row in rows}
    into, out = (by_name[f"mlp/Dense_{i}/kernel"] for i in (0, 1))
    width = file.shape(first + into.theirs, 2)[0]
    return width == into.layout.parts * file.shape(first + out.theirs, 2)[1]


def _fields(
    file: ArrayFile, naming: Naming, stem: list[Row], mlp: tuple[Row, ...]
) -> dict[str, Any]:
    """Fields of `SegmenterConfig` that the arrays show."""
    first = naming.block.format(0)
    names = {row.ours: first + row.theirs for row in mlp} | {r.ours: r.theirs for r in stem}
    found = encoder_fields(
        file,
        kernel=names["embedding/kernel"],
        axes="oihw",
        hidden=names["mlp/Dense_0/bias"],
        blocks=re.escape(naming.block).replace(r"\{\}", r"(\d+)"),
    )
    # Where the gate is in one array with the first layer, only the last one has the hidden width.
    hidden, registers = file.shape(names["mlp/Dense_1/kernel"], 2)[1], names.get("registers")
    return found | {
        "mlp_dim": None if hidden == 4 * found["width"] else hidden,
        "class_token": "cls" in names,
        "num_registers": file.shape(registers, 3)[1] if registers else 0,
    }


def _patches(file: ArrayFile, stem: list[Row], fields: Mapping[str, Any]) -> int | None:
    """Number of position embeddings of patches; None where positions are rotations."""
    if fields.get("position") == "rope":
        return None
    (row,) = (row for row in stem if row.ours == "pos_embedding")
    if row.theirs not in file.arrays or len(shape := file.arrays[row.theirs].shape) < 2:
        raise SourceError(f"{file.path}: array {row.theirs} is missing, or no table of positions")
    only_patches = row.layout in (WITHOUT_CLASS_TOKEN, TABLE_WITHOUT_CLASS_TOKEN)
    return shape[-2] - (0 if only_patches else fields["class_token"])
