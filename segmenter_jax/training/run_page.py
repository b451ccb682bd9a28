"""A run as one web page: what its workdir holds, without its network."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import find_model_dir, load_description
from segmenter_jax.evaluation.metrics import SegmentationReport
from segmenter_jax.evaluation.report_file import REPORT_FILE, read_report
from segmenter_jax.pictures import page
from segmenter_jax.pictures.figures import curves_figure
from segmenter_jax.runtime.files import absolute
from segmenter_jax.training.run_log import read_metrics
from segmenter_jax.training.validation import PREDICTIONS_FOLDER, WORST_FILE
from segmenter_jax.training.workdir import CONFIG_FILE, ORIGIN_FILE


def run_page(run: os.PathLike | str, more: Mapping[str, str] | None = None) -> str:
    """The page of a run, finished or not.

    Args:
      run: its workdir.
      more: further sections, HTML by heading.

    Raises:
      ValueError: it is no workdir of a run, or a file in it is damaged; names the file.
    """
    workdir = absolute(run)
    if not (workdir / CONFIG_FILE).exists():
        raise ValueError(f"{run}: not the workdir of a run (it has no {CONFIG_FILE})")
    written = _read_object(workdir / CONFIG_FILE)
    series = read_metrics(workdir)
    report = read_report(workdir) if (workdir / REPORT_FILE).exists() else None
    description = load_description(workdir) if find_model_dir(workdir) else None
    sections = {
        "Learning curves": page.picture_html(curves_figure({workdir.name: series}), "", "PNG")
    }
    if report:
        sections |= _results(report, description)
    legend = page.legend_html(description.classes, description.colors) if description else ""
    predictions = sorted((workdir / PREDICTIONS_FOLDER).glob("*.png"))
    sections["Predictions"] = legend * bool(predictions) + "".join(
        page.picture_html(_open(path), f"{path.stem}: picture, label, prediction")
        for path in predictions
    )
    if (workdir / WORST_FILE).exists():
        caption = "picture, label, prediction; smallest mean IoU first"
        sections["Worst pictures"] = page.picture_html(_open(workdir / WORST_FILE), caption)
    sections |= more or {}
    sections["Model"] = page.groups_html(_model(description)) if description else ""
    if (workdir / ORIGIN_FILE).exists():
        origin = _read_object(workdir / ORIGIN_FILE)
        # The network is that of the model, but for its decoder.
        sections["Where it began"] = page.facts_html(_without(origin, "network"))
    sections["Config"] = page.groups_html(written)
    return page.page_html(
        f"Run {workdir.name}", _lead(written, series, report, description), sections
    )


def _lead(
    written: Mapping[str, Any],
    series: Mapping[str, tuple[list[int], list[float]]],
    report: SegmentationReport | None,
    description: ModelDescription | None,
) -> str:
    """The numbers to see first, and of what they are."""
    step = max(steps[-1] for steps, _ in series.values())
    tiles = (
        {}
        if report is None
        else {
            name.replace("_", " ").replace("iou", "IoU"): f"{100 * value:.2f} %"
            for name, value in report.totals().items()
        }
    )
    tiles["steps"] = f"{step} of {written.get('total_steps', '?')}"
    group = written.get("dataset")
    dataset = group if isinstance(group, Mapping) else {}
    notes = [f"Dataset {dataset.get('name', '?')}, evaluated on {dataset.get('eval_split', '?')}."]
    if report is None:
        notes.append("It was not evaluated yet.")
    else:
        counted = f"{report.num_images} images, {report.num_pixels} pixels"
        notes.append(f"Latest evaluation: {report.protocol}; {counted}.")
    best = description.provenance if description else {}
    if isinstance(best.get("mean_iou"), float) and "step" in best:
        notes.append(f"Best model: step {best['step']}, mean IoU {100 * best['mean_iou']:.2f} %.")
    return page.tiles_html(tiles) + page.note_html(" ".join(notes))


def _results(report: SegmentationReport, description: ModelDescription | None) -> dict[str, str]:
    """Sections of the latest evaluation."""
    known = description is not None and description.classes == report.classes
    rows = page.classes_html(report.rows(), report.matrix, description.colors if known else ())
    remark = page.note_html(
        "Percent of each class's labelled pixels, where they have 0.05 % or more; blue is right, "
        "orange is wrong. Point at a cell to read its classes."
    )
    return {
        "Classes": rows,
        "Confusion matrix": remark + page.confusion_html(report.matrix, report.classes),
    }


def _model(description: ModelDescription) -> dict[str, Any]:
    """What `model.json` says, but for what the page shows elsewhere."""
    fields = json.loads(json.dumps(dataclasses.asdict(description)))
    fields["provenance"] = _without(fields["provenance"], "init_from")
    return _without(fields, "classes", "colors")


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _read_object(path: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value


def _open(path: epath.Path) -> Image.Image:
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            return Image.fromarray(np.asarray(picture.convert("RGB")))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path}: no picture that can be read: {error}") from None
