"""Pictures of attention, training curves and datasets.

python -m segmenter_jax.visualize attention MODEL photo.jpg --class sky -o attention.png
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from PIL import Image

from segmenter_jax.data.datasets import DATA_DIR, build_dataset
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.inference.attention_maps import attention_maps
from segmenter_jax.inference.predictor import load
from segmenter_jax.pictures import legend, overlay
from segmenter_jax.pictures.figures import attention_figure, curves_figure
from segmenter_jax.pictures.overlays import as_rgb
from segmenter_jax.pictures.sheets import SheetEntry, contact_sheet, stack
from segmenter_jax.runtime.command import run_command
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.files import write_whole
from segmenter_jax.training.run_log import read_metrics


def _pixel(text: str) -> tuple[int, int]:
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pixel such as 120,80") from None
    return x, y


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


def _command(arguments: argparse.Namespace) -> None:
    picture = arguments.draw(arguments)
    with write_whole(arguments.output) as part:
        picture.save(part)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segmenter_jax.visualize", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    attention = commands.add_parser(
        "attention",
        help="what a model attends to in a picture",
        description="Heat maps of what the encoder's class token, a patch, or a class embedding of "
        "the decoder attends to; every panel has its own scale.",
    )
    attention.add_argument(
        "model", help="model directory, workdir of a run, checkpoint, or hf://OWNER/NAME"
    )
    attention.add_argument("image", help="a picture")
    attention.add_argument(
        "--layer", type=int, default=-1, help="from 0, or -1 for the last; default: %(default)s"
    )
    attention.add_argument("--head", type=int, help="from 0; default: all heads and their mean")
    who = attention.add_mutually_exclusive_group()
    who.add_argument(
        "--patch", type=_pixel, metavar="X,Y", help="attention of the patch around this pixel"
    )
    who.add_argument("--cls", action="store_true", help="attention of the class token; the default")
    who.add_argument(
        "--class", dest="class_name", metavar="NAME", help="attention of this class's embedding"
    )
    attention.add_argument("--decoder", action="store_true", help="layers of the mask decoder")
    attention.add_argument("--rollout", action="store_true", help="follow all layers up to LAYER")
    attention.set_defaults(draw=_attention)

    curves = commands.add_parser(
        "curves", help="loss, learning rate and mean IoU of runs against steps"
    )
    curves.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a run")
    curves.set_defaults(draw=_curves)

    dataset = commands.add_parser("dataset", help="images of a dataset with their labels")
    dataset.add_argument("dataset", help="name of the dataset")
    dataset.add_argument("--data_dir", default=DATA_DIR, help="folder of built datasets")
    dataset.add_argument("--source", help="folder to build the dataset from, if it is not built")
    dataset.add_argument("--split", default="train", help="default: %(default)s")
    dataset.add_argument("--first", type=int, default=0, help="record to begin with, from 0")
    dataset.add_argument("--count", type=int, default=12, help="records; default: %(default)s")
    dataset.set_defaults(draw=_dataset)

    for command in (attention, curves, dataset):
        command.add_argument("-o", "--output", required=True, help="file of the picture (.png)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
