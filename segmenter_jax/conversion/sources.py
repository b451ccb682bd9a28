"""Opens any source of weights: finds it, and leaves the rest to the format that its names show."""

import dataclasses
import functools
import os
from collections.abc import Collection

from etils import epath
from flax.traverse_util import flatten_dict

from segmenter_jax.checkpoints.model_dir import MODEL_FILE, load_model, params_place
from segmenter_jax.conversion import (
    dinov2,
    dinov3,
    eomt,
    google,
    loca,
    mae,
    mmseg,
    reference,
    siglip,
    timm,
    timm_scaled,
)
from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.entries import read_arrays
from segmenter_jax.conversion.huggingface import SHARDS, shards
from segmenter_jax.conversion.locate import Place, locate
from segmenter_jax.conversion.opening import Entry, Format, Hints, Opened

# In the order of detection; all but the last, whose names are the least, exclude each other.
FORMATS: tuple[Format, ...] = (
    *(google, loca, reference, mmseg, eomt, dinov2, dinov3, siglip, mae, timm_scaled),
    timm,
)
MODEL_DIRECTORY = "segmenter_jax"


def open_source(
    source: os.PathLike | str | Place, hints: Hints, entry: str | None = None
) -> Opened:
    """Opens a source of weights and checks every name and shape in it.

    Args:
      source: see `locate.locate`, or what that gave.
      hints: what the source may not say.
      entry: which of several sets of weights in one file; None takes the only one.

    Raises:
      ValueError: nothing readable is there, or something in it has no explanation.
    """
    place = source if isinstance(source, Place) else locate(source)
    if place.is_model:
        if entry is not None:
            raise SourceError(f"{place.path}: a model directory has one set of weights, no entries")
        _check_no_base(place.path, MODEL_DIRECTORY, hints)
    opened = _open_model(place.path) if place.is_model else _open_file(place.path, hints, entry)
    return dataclasses.replace(
        opened, source=place.source or opened.source, license=dict(place.license)
    )


def _open_file(path: epath.Path, hints: Hints, entry: str | None) -> Opened:
    file = read_arrays(path, _known, entry)
    for form in FORMATS:
        if form.detect(file.arrays):
            if form is not eomt:
                _check_no_base(file.path, form.NAME, hints)
            opened = form.open(file, hints)
            beside = "beside the model's own arrays"
            outside = [(name, shape, beside) for name, shape in file.outside.items()]
            notes = (*opened.notes, *(f"not read: entry {other!r}" for other in file.others))
            files = list(opened.files)
            if path.name.endswith(SHARDS):
                files += shards(file.path)
            return dataclasses.replace(
                opened, files=files, dropped=outside + opened.dropped, notes=notes
            )
    raise SourceError(
        f"{file.path}: its arrays follow none of the known naming schemes "
        f"({', '.join(form.NAME for form in FORMATS)}); it begins with "
        f"{', '.join(sorted(file.arrays)[:3])}"
    )


def _check_no_base(path: os.PathLike, format: str, hints: Hints) -> None:
    if hints.base is not None:
        raise SourceError(f"{path}: {format} holds whole weights, so there is no base for them")


def _known(names: Collection[str]) -> bool:
    return any(form.detect(names) for form in FORMATS)


def _open_model(folder: epath.Path) -> Opened:
    description, params = load_model(folder)
    entries = {
        name: Entry(name, leaf.shape, functools.partial(lambda value: value, leaf))
        for name, leaf in flatten_dict(params, sep="/").items()
    }
    known = {f.name: getattr(description, f.name) for f in dataclasses.fields(description)}
    return Opened(
        format=MODEL_DIRECTORY,
        source=os.fspath(folder),
        files=[folder / MODEL_FILE, *_files_of(params_place(folder))],
        config=known.pop("model"),
        entries=entries,
        description=known,
    )


def _files_of(path: epath.Path) -> list[epath.Path]:
    if not path.is_dir():
        return [path]
    return [file for child in sorted(path.iterdir()) for file in _files_of(child)]
