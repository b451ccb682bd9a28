"""Converts weights: any supported checkpoint to a model directory, and back to the reference's.

From the command line:
  python -m segmenter_jax.convert augreg/L_16 weights/vitl16 --num_classes=150 --image_size=640
"""

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from segmenter_jax.models.choices import NORMALIZATION, Decoder, Gelu, Method
from segmenter_jax.runtime.command import image_size, run_command

_DESCRIPTION = """\
Converts weights to a model directory, which every other command takes.

SOURCE is one of: Google's ViT .npz (released or newer names, big_vision); timm's or DeiT's ViT
(.pth, .safetensors); DINOv2, DINOv3, SigLIP, MAE and other ViTs as folders of the Hugging Face hub,
the first two also as their original files or timm's; LOCA's training states; EoMT on DINOv2 or
DINOv3, as folders of the hub or original files; the authors' Segmenter (.pth or .safetensors beside
its variant.yml, or the folder of both); mmsegmentation's Segmenter (.pth); a model directory or
workdir of this package; a published name such as augreg/B_16 or dinov2_S/14 (downloaded once); a
repository of the hub, hf://OWNER/NAME or hf://OWNER/NAME@REVISION; an https:// address or another
remote path. The content tells the format.

Pretrained encoders get a new, randomly initialised decoder and need --num_classes. The report says
which parameters were mapped, resized, newly initialised and dropped; an array without an
explanation is an error, and then nothing is written."""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m segmenter_jax.convert",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="weights to read, see above")
    add("output", metavar="OUTPUT", help="directory to write")
    add(
        "--to",
        choices=("model", "reference", "safetensors"),
        default="model",
        help="what to write: a model directory (default); the authors' PyTorch layout, "
        "checkpoint.pth and variant.yml; the same with model.safetensors",
    )
    add("--overwrite", action="store_true", help="replace OUTPUT if it is a directory of this kind")
    add("--entry", metavar="NAME", help="which of several sets of weights in SOURCE, say model_ema")
    add("--base", metavar="SOURCE", help="DINOv3's weights, where SOURCE is EoMT's change of them")
    add("--variant", help="insist on a size, for example L/16")
    add("--image_size", type=image_size, help="training size in pixels: 640, or HEIGHTxWIDTH")
    add("--num_classes", type=int, help="classes; another number re-initialises what depends on it")
    add("--decoder", choices=get_args(Decoder), help="another kind is newly initialised")
    add("--in_channels", type=int, help="image channels; patch kernels are inflated")
    add("--patch_size", type=int, help="in pixels; for another one the patch embedding is resized")
    add("--num_heads", type=int, help="of the encoder, where neither file nor width tells")
    add("--layer_norm_eps", type=float, help="default: what the format was trained with")
    add("--gelu", choices=get_args(Gelu), help="default: what the format was trained with")
    add("--normalization", choices=tuple(NORMALIZATION), help="mean and std of the images")
    add(
        "--position_method",
        choices=get_args(Method),
        help="how position embeddings are resized (default: bilinear, as the reference; "
        "corner_linear is the original Google code's)",
    )
    add("--window", type=int, help="side of sliding windows, in pixels")
    add("--stride", type=int, help="stride of sliding windows, in pixels")
    add("--base_size", type=int, help="short side that images are resized to, in pixels")
    add("--seed", type=int, default=0, help="of newly initialised parameters")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from segmenter_jax.commands.convert import run

    run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(make_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
