"""A model on the Hugging Face hub, with a model card."""

import argparse
import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image, ImageOps

from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.checkpoints.model_dir import save_portable
from segmenter_jax.conversion import hub
from segmenter_jax.conversion.model_card import Facts, lineage, model_card
from segmenter_jax.evaluation.report_file import REPORT_FILE
from segmenter_jax.inference.predictor import read_model
from segmenter_jax.pictures import legend
from segmenter_jax.runtime.files import absolute
from segmenter_jax.runtime.ownership import sole_owner
from segmenter_jax.training.validation import PREDICTIONS_FOLDER
from segmenter_jax.training.workdir import workdir_of

_CARD, _LEGEND = "README.md", "legend.png"

# In pixels.
_PICTURE_SIDE = 1600


def run(arguments: argparse.Namespace) -> None:
    """Uploads the model, or writes the folder only."""
    hub.split_address(f"{hub.SCHEME}{arguments.repo}")
    with _place(arguments.output) as folder:
        _write(folder, arguments)
        if arguments.output is not None:
            print(f"written: {folder}")
            return
        address = hub.upload(
            folder,
            arguments.repo,
            private=arguments.private,
            revision=arguments.revision,
            message="Upload model by segmenter_jax",
        )
        print(f"published: {address}")


@contextlib.contextmanager
def _place(output: str | None) -> Iterator[epath.Path]:
    if output is None:
        with tempfile.TemporaryDirectory() as folder:
            yield epath.Path(folder) / "model"
        return
    folder = absolute(output)
    with sole_owner(folder, beside=True):
        if folder.exists():
            raise ValueError(f"{folder}: exists; choose another name")
        yield folder


def _write(folder: epath.Path, arguments: argparse.Namespace) -> None:
    """Writes all that is to be uploaded."""
    files = {f"picture_{i}.png": _picture(name) for i, name in enumerate(arguments.picture, 1)}
    description, params = read_model(arguments.model)
    license_fields = _license(arguments.license, description.provenance)
    workdir = workdir_of(arguments.model)
    if workdir is not None and not files:
        shown = next(iter(sorted((workdir / PREDICTIONS_FOLDER).glob("*.png"))), None)
        if shown is not None:
            print(f"no picture in the card; to show one: --picture {shown}", file=sys.stderr)
    facts = Facts(
        repo=arguments.repo,
        description=description,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(params)),
        digest=weights_digest(params),
        license=license_fields,
        report=_report(workdir, description.provenance),
        legend=_LEGEND,
        pictures=tuple(files),
    )
    classes = description.classes
    swatches = legend(range(len(classes)), classes, description.colors, -(-len(classes) // 25))
    files |= {_CARD: model_card(facts).encode(), _LEGEND: _png(swatches)}
    save_portable(folder, description, params, files)


def _license(given: str | None, provenance: Mapping[str, Any]) -> dict[str, str]:
    if given is not None:
        return {"license": given}
    steps = lineage(provenance)
    found = next((step for step in steps if "license" in step), None)
    if found is None:
        raise ValueError(
            "--license is missing: the model does not say under which licence the weights are that "
            "it began with"
        )
    return {name: found[name] for name in hub.LICENSE_FIELDS if name in found}


def _report(workdir: epath.Path | None, provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of a run, if it is of this model and not of a later step."""
    if workdir is None or not (workdir / REPORT_FILE).exists():
        return None
    report = json.loads((workdir / REPORT_FILE).read_text())
    return report if report["mean_iou"] == provenance.get("mean_iou") else None


def _picture(path: str) -> bytes:
    """A picture without what else its file says, such as where it was taken."""
    try:
        with Image.open(pathlib.Path(path).expanduser()) as image:
            shown = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{os.fspath(path)}: no picture that can be read: {error}") from error
    shown.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return _png(Image.fromarray(np.asarray(shown)))


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
