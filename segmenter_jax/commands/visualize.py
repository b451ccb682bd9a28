"""Pictures of attention, training curves and datasets."""

import argparse
import pathlib

from PIL import Image

from segmenter_jax.data.datasets import build_dataset
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.inference.attention_maps import attention_maps
from segmenter_jax.inference.predictor import load
from segmenter_jax.pictures import legend, overlay
from segmenter_jax.pictures.figures import attention_figure, curves_figure
from segmenter_jax.pictures.overlays import as_rgb
from segmenter_jax.pictures.sheets import SheetEntry, contact_sheet, stack
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.files import write_whole
from segmenter_jax.training.run_log import read_metrics


def _attention(arguments: argparse.Namespace) -> Image.Image:
    prepare_compilation()
    predictor = load(arguments.model)
    shown = attention_maps(
        predictor,
        arguments.image,
        part="decoder" if arguments.decoder or arguments.class_name else "encoder",
        layer=arguments.layer,
        patch=arguments.patch,
        class_name=arguments.class_name,
        rollout=arguments.rollout,
    )
    heads = {f"head {i}": m for i, m in enumerate(shown.maps)}
    if arguments.head is not None:
        if not 0 <= arguments.head < len(shown.maps) or arguments.rollout:
            raise ValueError(
                f"head must be in 0..{len(shown.maps) - 1} and not with a rollout, "
                f"got {arguments.head}"
            )
        name = f"head {arguments.head}"
        maps = {name: heads[name]}
    elif len(heads) == 1:
        maps = {"attention": shown.maps[0]}
    else:
        maps = {"mean of the heads": shown.maps.mean(axis=0)} | heads
    if shown.mask is not None:
        maps = {"probability of the class": shown.mask} | maps
    return attention_figure(shown.image, maps, shown.patch_size, shown.title, shown.patch)


def _curves(arguments: argparse.Namespace) -> Image.Image:
    paths = [pathlib.Path(run) for run in arguments.runs]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return curves_figure(dict(zip(names, map(read_metrics, paths), strict=True)))


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


_DRAW = {"attention": _attention, "curves": _curves, "dataset": _dataset}


def run(arguments: argparse.Namespace) -> None:
    """Draws the picture of the subcommand."""
    picture = _DRAW[arguments.command](arguments)
    with write_whole(arguments.output) as part:
        picture.save(part)
