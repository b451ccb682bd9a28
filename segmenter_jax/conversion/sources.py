"""Opens any source of weights as a `Checkpoint`: what network it is, and its parameters, unread."""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from segmenter_jax.checkpoints.model_dir import (
    MODEL_FILE,
    PARAMS_FOLDER,
    abstract_params,
    flatten,
    load_model,
    resolve_model_dir,
)
from segmenter_jax.conversion.arrays import ArrayFile, CheckpointError, read_arrays, read_float32
from segmenter_jax.conversion.download import resolve_source
from segmenter_jax.conversion.google import GOOGLE
from segmenter_jax.conversion.mapping import Format, Row, Shape, Shapes, their_shape, to_ours
from segmenter_jax.conversion.mmseg import MMSEG
from segmenter_jax.conversion.reference import REFERENCE, VARIANT_FILE, read_variant
from segmenter_jax.conversion.timm import TIMM
from segmenter_jax.models import VARIANTS, SegmenterConfig
from segmenter_jax.models.config import patch_grid
from segmenter_jax.models.normalization import NORMALIZATION
from segmenter_jax.runtime.files import is_local

# In the order of detection; the first three cannot be confused with each other.
FORMATS: tuple[Format, ...] = (GOOGLE, REFERENCE, MMSEG, TIMM)
MODEL_DIRECTORY = "segmenter_jax"

# Names are looked for under these, which wrap whole checkpoints; what is beside them is no weight.
_WRAPPERS = ("params/", "module.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of ours in a source: its name and shape there, and how to read it."""

    theirs: str
    shape: Shape
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights in a source, under our names.

    Attributes:
      source: the file or directory.
      format: name of the format.
      config: the network they belong to. Without a decoder, its decoder means nothing.
      has_decoder: whether there is one in the source.
      entries: parameters by our flat name.
      dropped: (their name, shape, reason) of arrays that have no place in a Segmenter.
      description: fields of `ModelDescription` that the source says.
      notes: remarks for the report.
      files: of the source, those whose content matters.
    """

    source: str
    format: str
    config: SegmenterConfig
    has_decoder: bool
    entries: dict[str, Entry]
    dropped: list[tuple[str, Shape, str]]
    description: dict[str, Any]
    notes: list[str]
    files: list[os.PathLike]


def open_checkpoint(
    source: os.PathLike | str,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Checkpoint:
    """Opens a source of weights and checks every name and shape in it.

    Args:
      source: a model directory, a workdir, a file of any supported format, a folder with the
        reference's files, a published name such as "augreg/S_16", or a remote path.
      num_heads: of the encoder, where neither the file nor its width tells.
      image_size: (height, width) in pixels that helps to see a grid of patches that is not square.

    Raises:
      ValueError: nothing readable is there, or something in it has no explanation.
    """
    if not is_local(source) and epath.Path(source).is_dir():
        return _open_model(source)
    path = resolve_source(source)
    variant_file = None
    if path.is_dir():
        files = _reference_files(path)
        if files is None:
            return _open_model(path)
        path, variant_file = files
    file = read_arrays(path)
    for candidate in (path.with_name(f"{path.stem}.{VARIANT_FILE}"), path.with_name(VARIANT_FILE)):
        if variant_file is None and candidate.exists():
            variant_file = candidate
    return _open_foreign(file, variant_file, num_heads, image_size)


def _reference_files(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path] | None:
    variant = folder / VARIANT_FILE
    if not variant.exists():
        return None
    weights = sorted([*folder.glob("*.pth"), *folder.glob("*.safetensors")])
    if len(weights) != 1:
        raise CheckpointError(
            f"{folder}: expected one .pth or .safetensors file beside {VARIANT_FILE}, found "
            f"{[file.name for file in weights]}; name the file instead"
        )
    return weights[0], variant


def _open_model(path: os.PathLike | str) -> Checkpoint:
    folder = resolve_model_dir(path)
    description, params = load_model(folder)
    entries = {
        name: Entry(name, leaf.shape, functools.partial(lambda value: value, leaf))
        for name, leaf in flatten(params).items()
    }
    fields = {
        field.name: getattr(description, field.name)
        for field in dataclasses.fields(description)
        if field.name != "model"
    }
    return Checkpoint(
        source=os.fspath(folder),
        format=MODEL_DIRECTORY,
        config=description.model,
        has_decoder=True,
        entries=entries,
        dropped=[],
        description=fields,
        notes=[],
        files=[folder / MODEL_FILE, *_files_below(folder / PARAMS_FOLDER)],
    )


def _files_below(folder: epath.Path) -> list[epath.Path]:
    found = []
    for path in sorted(folder.iterdir()):
        found += _files_below(path) if path.is_dir() else [path]
    return found


def _open_foreign(
    file: ArrayFile,
    variant_file: pathlib.Path | None,
    num_heads: int | None,
    image_size: tuple[int, int] | None,
) -> Checkpoint:
    source = os.fspath(file.path)
    file, dropped = _unwrap(file)
    found = [scheme for scheme in FORMATS if scheme.detect(file.arrays.keys())]
    if not found:
        listed = ", ".join(sorted(file.arrays)[:3])
        raise CheckpointError(
            f"{source}: its arrays follow none of the known naming schemes "
            f"({', '.join(scheme.name for scheme in FORMATS)}); it begins with {listed}"
        )
    scheme = found[0]
    shapes = Shapes(source, {name: array.shape for name, array in file.arrays.items()})
    fields = {"layer_norm_eps": scheme.layer_norm_eps, "gelu": scheme.gelu}
    fields |= scheme.describe(shapes)
    described = _described(scheme, fields, file.extra)
    stated: dict[str, Any] = {}
    if scheme is REFERENCE and variant_file is not None:
        stated, own = read_variant(variant_file)
        described |= own
        _check_stated(variant_file, stated, fields)
    fields |= stated
    has_decoder = "decoder" in fields
    config = _network(source, fields, num_heads, stated.get("image_size") or image_size)
    entries, used = _bind(file, config, scheme.table(config, shapes), has_decoder)
    dropped += _explain_rest(file, scheme, used)
    return Checkpoint(
        source=source,
        format=scheme.name,
        config=config,
        has_decoder=has_decoder,
        entries=entries,
        dropped=dropped,
        description=described,
        notes=list(scheme.notes),
        files=[file.path],
    )


def _unwrap(file: ArrayFile) -> tuple[ArrayFile, list[tuple[str, Shape, str]]]:
    """Takes a wrapper's prefix off the names; what is beside it is optimizer state and the like."""
    for prefix in _WRAPPERS:
        inside = {k[len(prefix) :]: v for k, v in file.arrays.items() if k.startswith(prefix)}
        if inside:
            outside = [
                (name, array.shape, f"outside of {prefix!r}: no parameter")
                for name, array in file.arrays.items()
                if not name.startswith(prefix)
            ]
            return dataclasses.replace(file, arrays=inside), outside
    return file, []


def _described(scheme: Format, fields: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    normalization = scheme.normalization(fields)
    if normalization is not None:
        described["mean"], described["std"] = NORMALIZATION[normalization]
    # mmsegmentation's own metadata; its two generations differ in spelling.
    meta = extra.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    inner = meta.get("dataset_meta")
    meta = meta | (inner if isinstance(inner, dict) else {})
    for theirs, ours in (("classes", "classes"), ("palette", "colors")):
        values = meta.get(theirs.upper(), meta.get(theirs))
        if isinstance(values, list | tuple) and len(values) == fields.get("num_classes"):
            described[ours] = values
    return described


def _check_stated(path: pathlib.Path, stated: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in stated.items():
        if name in fields and name not in ("layer_norm_eps", "gelu") and fields[name] != value:
            raise CheckpointError(
                f"{path}: {name} is {value!r}, but the weights beside it have {fields[name]!r}"
            )


def _network(
    source: str,
    fields: dict[str, Any],
    num_heads: int | None,
    image_size: tuple[int, int] | None,
) -> SegmenterConfig:
    fields = dict(fields)
    patches, patch_size = fields.pop("patches"), fields["patch_size"]
    side = math.isqrt(patches)
    # A square grid is what it seems, even if the size wanted happens to have as many patches.
    given = fields.get("image_size", image_size)
    fits = given is not None and math.prod(patch_grid(given, patch_size)) == patches
    if fits and ("image_size" in fields or side * side != patches):
        image_size = given
    else:
        if side * side != patches:
            raise CheckpointError(
                f"{source}: {patches} position embeddings make no square grid; give image_size"
            )
        if "image_size" in fields:
            raise CheckpointError(
                f"{source}: {patches} position embeddings do not fit "
                f"image_size={fields['image_size']} at {patch_size=}"
            )
        image_size = (side * patch_size, side * patch_size)
    fields["image_size"] = image_size
    if (known := fields.get("num_heads")) is None:
        by_width = {size["width"]: size["num_heads"] for size in VARIANTS.values()}
        fields["num_heads"] = num_heads or by_width.get(fields["width"])
        if fields["num_heads"] is None:
            raise CheckpointError(
                f"{source}: the number of heads is not in the file and width {fields['width']} "
                "is not a standard one; give num_heads"
            )
    elif num_heads not in (None, known):
        raise CheckpointError(f"{source}: num_heads={num_heads} asked for, the source has {known}")
    fields.setdefault("decoder", "linear")
    fields.setdefault("num_classes", 1)
    try:
        return SegmenterConfig(**fields)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _bind(
    file: ArrayFile, config: SegmenterConfig, table: list[Row], has_decoder: bool
) -> tuple[dict[str, Entry], set[str]]:
    """Finds every row of a table in a file, with the shape it must have."""
    expected = {name: leaf.shape for name, leaf in flatten(abstract_params(config)).items()}
    entries = {}
    for row in table:
        if row.ours.startswith("decoder/") and not has_decoder:
            continue
        array = file.arrays.get(row.theirs)
        if array is None:
            raise CheckpointError(f"{file.path}: array {row.theirs} is missing")
        shape = their_shape(row, expected[row.ours])
        if array.shape != shape:
            raise CheckpointError(
                f"{file.path}: array {row.theirs} has shape {array.shape}, expected {shape}"
            )

        def read(row: Row = row, shape: Shape = expected[row.ours]) -> np.ndarray:
            return to_ours(row, read_float32(file.path, row.theirs, file.arrays[row.theirs]), shape)

        entries[row.ours] = Entry(row.theirs, expected[row.ours], read)
    return entries, {row.theirs for row in table}


def _explain_rest(file: ArrayFile, scheme: Format, used: set[str]) -> list[tuple[str, Shape, str]]:
    dropped, unknown = [], []
    for name, array in file.arrays.items():
        if name in used:
            continue
        reasons = [why for pattern, why in scheme.dropped if re.match(pattern, name)]
        if reasons:
            dropped.append((name, array.shape, reasons[0]))
        else:
            unknown.append(name)
    if unknown:
        listed = ", ".join(sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
        raise CheckpointError(
            f"{file.path}: {len(unknown)} arrays have no explanation as {scheme.name}: {listed}"
        )
    return dropped
