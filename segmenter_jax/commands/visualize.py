"""Figures of runs, models and datasets, and the report of a run as a web page."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from PIL import Image

from segmenter_jax.data.datasets import build_dataset
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.evaluation.report_file import read_report
from segmenter_jax.inference.attention_maps import AttentionMaps, attention_maps
from segmenter_jax.inference.feature_maps import patch_features, principal_colors
from segmenter_jax.inference.predictor import Predictor, load
from segmenter_jax.pictures import legend, overlay
from segmenter_jax.pictures.figures import (
    attention_figure,
    classes_figure,
    confusion_figure,
    curves_figure,
)
from segmenter_jax.pictures.overlays import as_rgb
from segmenter_jax.pictures.page import picture_html
from segmenter_jax.pictures.sheets import SheetEntry, contact_sheet, stack
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.files import absolute, write_whole
from segmenter_jax.training.run_log import read_metrics
from segmenter_jax.training.run_page import run_page

# Longer side of a picture beside its features, in pixels.
_SIDE = 640


def _attention(arguments: argparse.Namespace) -> Image.Image:
    prepare_compilation()
    shown = attention_maps(
        load(arguments.model),
        arguments.image,
        part="decoder" if arguments.decoder or arguments.class_name else "encoder",
        layer=arguments.layer,
        patch=arguments.patch,
        class_name=arguments.class_name,
        rollout=arguments.rollout,
    )
    if arguments.head is None:
        return _heads_figure(shown)
    if not 0 <= arguments.head < len(shown.maps) or arguments.rollout:
        raise ValueError(
            f"head must be in 0..{len(shown.maps) - 1} and not with a rollout, got {arguments.head}"
        )
    return _heads_figure(shown, arguments.head)


def _heads_figure(shown: AttentionMaps, head: int | None = None) -> Image.Image:
    """One head, or all of them and their mean."""
    maps = {f"head {i}": m for i, m in enumerate(shown.maps) if head in (None, i)}
    if head is None:
        mean = {"mean of the heads": shown.maps.mean(axis=0)}
        maps = mean | maps if len(maps) > 1 else {"attention": shown.maps[0]}
    if shown.mask is not None:
        maps = {"probability of the class": shown.mask} | maps
    return attention_figure(shown.image, maps, shown.patch_size, shown.title, shown.patch)


def _names(paths: Sequence[str]) -> list[str]:
    """Short names of files or folders; their whole paths where these are not different."""
    names = [pathlib.Path(path).name for path in paths]
    return list(paths) if len(set(names)) < len(names) else names


def _curves(arguments: argparse.Namespace) -> Image.Image:
    series = map(read_metrics, arguments.runs)
    return curves_figure(dict(zip(_names(arguments.runs), series, strict=True)))


def _confusion(arguments: argparse.Namespace) -> Image.Image:
    report = read_report(arguments.report)
    title = f"mean IoU {100 * report.mean_iou:.2f} %, {report.num_images} images"
    return confusion_figure(report.matrix, report.classes, f"{title}\n{report.protocol}")


def _classes(arguments: argparse.Namespace) -> Image.Image:
    first, *others = reports = [read_report(path) for path in arguments.reports]
    for path, other in zip(arguments.reports[1:], others, strict=True):
        if other.classes != first.classes:
            raise ValueError(f"{path}: its classes are not those of {arguments.reports[0]}")
        if other.protocol != first.protocol:
            print(f"warning: {other.protocol!r} is not {first.protocol!r}", file=sys.stderr)
    iou = [report.iou for report in reports]
    return classes_figure(dict(zip(_names(arguments.reports), iou, strict=True)), first.classes)


def _features(arguments: argparse.Namespace) -> Image.Image:
    prepare_compilation()
    return _features_sheet(load(arguments.model), arguments.images)


def _features_sheet(predictor: Predictor, paths: Sequence[str]) -> Image.Image:
    shown, features = zip(*(patch_features(predictor, path) for path in paths), strict=True)
    side = predictor.model.config.patch_size
    entries = []
    for path, image, colors in zip(paths, shown, principal_colors(features), strict=True):
        # The last patches may lie in the padding.
        whole = colors.repeat(side, axis=0).repeat(side, axis=1)
        views = as_rgb(image), whole[: image.shape[0], : image.shape[1]]
        entries.append(SheetEntry(views, path))
    return contact_sheet(entries, columns=1, width=_SIDE)


def _report(arguments: argparse.Namespace) -> str:
    arguments.output = arguments.output or absolute(arguments.run) / "report.html"
    if arguments.picture is None:
        return run_page(arguments.run)
    prepare_compilation()
    predictor, name = load(arguments.run), pathlib.Path(arguments.picture).name
    sheet = _features_sheet(predictor, [arguments.picture])
    more = {"Features": picture_html(sheet, "principal components of the patches' features")}
    if predictor.model.config.class_token:
        figure = _heads_figure(attention_maps(predictor, arguments.picture))
        more["Attention"] = picture_html(figure, name, "PNG")
    return run_page(arguments.run, more)


def _dataset(arguments: argparse.Namespace) -> Image.Image:
    dataset = build_dataset(arguments.dataset, arguments.data_dir, arguments.source)
    spec, source = dataset.spec, dataset.source(arguments.split)
    if not 0 <= arguments.first < len(source):
        raise ValueError(
            f"first must be in 0..{len(source) - 1} for split {arguments.split!r}, "
            f"got {arguments.first}"
        )
    transform = EvalTransform(spec)
    entries, present = [], set()
    for index in range(arguments.first, min(arguments.first + arguments.count, len(source))):
        example = transform(source[index])
        image, label = example["image"], example["label"]
        present |= {*label.ravel().tolist()} - {spec.ignore_label}
        painted = overlay(image, label, spec.colors, 0.7)
        entries.append(SheetEntry((as_rgb(image), painted), example["name"]))
    sheet = contact_sheet(entries, columns=2)
    names = legend(sorted(present), spec.class_names, spec.colors, 1 + len(present) // 10)
    return stack([sheet, names])


_DRAW = {
    "attention": _attention,
    "classes": _classes,
    "confusion": _confusion,
    "curves": _curves,
    "dataset": _dataset,
    "features": _features,
    "report": _report,
}


def run(arguments: argparse.Namespace) -> None:
    """Draws the picture, or writes the page, of the subcommand."""
    drawn = _DRAW[arguments.command](arguments)
    with write_whole(arguments.output) as part:
        if isinstance(drawn, str):
            part.write_bytes(drawn.encode())
        else:
            drawn.save(part)
    print(arguments.output)
