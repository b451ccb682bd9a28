"""Converts weights: any supported checkpoint to a model directory, and back to the reference's.

From the command line:
  python -m segmenter_jax.convert SOURCE OUTPUT [--num_classes=150 --image_size=640 ...]
"""

import argparse
import colorsys
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax.traverse_util import unflatten_dict

from segmenter_jax.checkpoints import export
from segmenter_jax.checkpoints.adapt import Report, adapt
from segmenter_jax.checkpoints.arrays import CheckpointError
from segmenter_jax.checkpoints.atomic import absolute
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.download import sha256_of
from segmenter_jax.checkpoints.foreign import MODEL_DIRECTORY, Checkpoint, open_checkpoint
from segmenter_jax.checkpoints.model_dir import save_model
from segmenter_jax.command import run_command
from segmenter_jax.data.augment import NORMALIZATION
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.initial import Params, init_some_params
from segmenter_jax.resampling import Method

_DESCRIPTION = """\
Converts weights to a model directory, which every other command takes.

SOURCE is one of: Google's ViT .npz (released or newer names, big_vision); timm's or DeiT's ViT
(.pth, .safetensors); the authors' Segmenter (.pth or .safetensors beside its variant.yml, or the
folder of both); mmsegmentation's Segmenter (.pth); a model directory or workdir of this package;
a published name: augreg/Ti_16, augreg/S_16, augreg/B_16, augreg/B_8, augreg/L_16 (downloaded once);
an https:// address or another remote path. The format is told from the content.

Pretrained encoders get a new, randomly initialised decoder and need --num_classes. The report says
which parameters were mapped, resized, newly initialised and dropped; an array without an
explanation is an error, and then nothing is written."""


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """What to make of a source; None keeps what the source has.

    Attributes:
      variant: for example "L/16"; the source must be that.
      image_size: (height, width) in pixels the position embeddings are resized for.
      num_classes: of the decoder; needed where the source has none.
      decoder: "mask" or "linear"; "mask" where the source has none.
      in_channels: image channels.
      num_heads: heads of the encoder, where the source does not tell.
      layer_norm_eps, gelu: how the model computes.
      normalization: "vit" or "deit"; needed where the source does not tell.
      position_method: how position embeddings are resized.
      window, stride, base_size: see `ModelDescription`, in pixels.
      seed: of newly initialised parameters.
    """

    variant: str | None = None
    image_size: tuple[int, int] | None = None
    num_classes: int | None = None
    decoder: str | None = None
    in_channels: int | None = None
    num_heads: int | None = None
    layer_norm_eps: float | None = None
    gelu: str | None = None
    normalization: str | None = None
    position_method: Method = "bicubic"
    window: int | None = None
    stride: int | None = None
    base_size: int | None = None
    seed: int = 0


def convert(
    source: os.PathLike | str, options: ConvertOptions
) -> tuple[ModelDescription, Params, Report]:
    """Reads any source of weights as a Segmenter.

    Args:
      source: see `checkpoints.foreign.open_checkpoint`.
      options: what to make of it.

    Returns:
      Description, parameters (float32), and what happened to each parameter.

    Raises:
      ValueError: the source cannot be read or explained, or lacks what the options must give.
    """
    checkpoint = open_checkpoint(source, options.num_heads, options.image_size)
    config = _target_config(checkpoint, options)
    describe = _describe(checkpoint, config, options)

    def initial(names: list[str]) -> Mapping[str, Any]:
        return init_some_params(config, names, options.seed)

    flat, report = adapt(checkpoint, config, initial, options.position_method)
    params = unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})
    return describe(report), params, report


def load_any(source: os.PathLike | str, **options: Any) -> tuple[ModelDescription, Params]:
    """Reads a model directory, a workdir, or foreign weights, converted on the fly.

    Args:
      source: see `checkpoints.foreign.open_checkpoint`.
      **options: fields of `ConvertOptions`.

    Returns:
      Description and float32 parameters.

    Raises:
      ValueError: see `convert`.
    """
    description, params, _ = convert(source, ConvertOptions(**options))
    return description, params


def load_init(
    source: os.PathLike | str,
    target: ModelDescription,
    seed: int,
) -> tuple[Params, dict[str, Any], Report]:
    """Starts training from a source of weights.

    Everything that fits is taken: the encoder always, the decoder where it is of the same kind.
    Parameters that depend on the number of classes are newly initialised if it differs. `target`
    decides how the model computes; if the source was trained with another `layer_norm_eps`, `gelu`
    or normalisation, the report warns. Position embeddings are resized as in `convert` by default;
    for another way, convert first and start from the model directory.

    Args:
      source: see `checkpoints.foreign.open_checkpoint`.
      target: the network to train, and how its images are normalised.
      seed: of newly initialised parameters.

    Returns:
      Parameters on the host, where they come from (JSON values, with the sha256 of the source), and
      what happened to each.

    Raises:
      ValueError: the source cannot be read or explained, or its encoder is another one.
    """
    config = target.model
    checkpoint = open_checkpoint(source, config.num_heads, config.image_size)

    def initial(names: list[str]) -> Mapping[str, Any]:
        return init_some_params(config, names, seed)

    given = {"position_method": ConvertOptions.position_method, "seed": seed}
    flat, report = adapt(checkpoint, config, initial, given["position_method"])
    report.warnings += _normalization_warnings(checkpoint, target)
    params = unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})
    return params, _provenance(checkpoint, given, report), report


def _normalization_warnings(checkpoint: Checkpoint, target: ModelDescription) -> list[str]:
    known = {k: v for k, v in checkpoint.description.items() if k in ("mean", "std")}
    theirs = dataclasses.replace(target, **known)
    return [
        f"the source was trained with {name}={getattr(theirs, name)}; images are normalised with "
        f"{getattr(target, name)} here (augment.normalization)"
        for name in known
        if getattr(theirs, name) != getattr(target, name)
    ]


def _target_config(checkpoint: Checkpoint, options: ConvertOptions) -> SegmenterConfig:
    source = checkpoint.config
    if options.variant is not None:
        wanted = SegmenterConfig.from_variant(
            options.variant, num_classes=1, image_size=source.image_size
        )
        for field in ("width", "depth", "num_heads", "patch_size"):
            if getattr(wanted, field) != getattr(source, field):
                raise CheckpointError(
                    f"{checkpoint.source}: not a {options.variant}: {field} is "
                    f"{getattr(source, field)}, expected {getattr(wanted, field)}"
                )
    if not checkpoint.has_decoder and options.num_classes is None:
        raise CheckpointError(
            f"{checkpoint.source}: holds an encoder only; give num_classes (--num_classes of "
            "python -m segmenter_jax.convert) for a new decoder"
        )
    fields = dataclasses.asdict(source)
    if not checkpoint.has_decoder:
        fields["decoder"] = "mask"
    for field in ("image_size", "num_classes", "decoder", "in_channels", "layer_norm_eps", "gelu"):
        if (value := getattr(options, field)) is not None:
            fields[field] = value
    return SegmenterConfig(**fields)


def _describe(
    checkpoint: Checkpoint, config: SegmenterConfig, options: ConvertOptions
) -> Callable[[Report], ModelDescription]:
    """Checks all fields of the description; only the report is missing to complete it."""
    known = dict(checkpoint.description)
    if options.normalization is not None:
        if options.normalization not in NORMALIZATION:
            raise ValueError(
                f"normalization={options.normalization!r} is unknown; "
                f"choose from {tuple(NORMALIZATION)}"
            )
        known["mean"], known["std"] = NORMALIZATION[options.normalization]
    if "mean" not in known:
        raise CheckpointError(
            f"{checkpoint.source}: does not say how images are normalised; give normalization, "
            f"one of {', '.join(NORMALIZATION)}"
        )
    num_classes = config.num_classes
    if not checkpoint.has_decoder or num_classes != checkpoint.config.num_classes:
        known.pop("classes", None)
        known.pop("colors", None)
    if config.image_size != checkpoint.config.image_size:
        known.pop("window", None)
        known.pop("stride", None)
    known.setdefault("classes", tuple(f"class {i}" for i in range(num_classes)))
    known.setdefault("colors", spread_colors(num_classes))
    for field in ("window", "stride", "base_size"):
        if (value := getattr(options, field)) is not None:
            known[field] = value
    parent = known.pop("provenance", None)
    try:
        description = ModelDescription(model=config, **known)
        description = ModelDescription.from_json(description.to_json(), checkpoint.source)
    except (TypeError, ValueError) as error:
        message = str(error).removeprefix(f"{checkpoint.source}: ")
        raise CheckpointError(f"{checkpoint.source}: wrong description: {message}") from None

    def complete(report: Report) -> ModelDescription:
        given = {k: v for k, v in dataclasses.asdict(options).items() if v is not None}
        provenance = _provenance(checkpoint, given, report)
        if checkpoint.format == MODEL_DIRECTORY:
            provenance["parent"] = parent
        return dataclasses.replace(description, provenance=provenance)

    return complete


def _provenance(checkpoint: Checkpoint, given: dict[str, Any], report: Report) -> dict[str, Any]:
    return {
        "format": checkpoint.format,
        "source": checkpoint.source,
        "sha256": sha256_of(checkpoint.files),
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()},
        "report": report.lines(with_mapped=False),
    }


def spread_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours for classes that have none; hues advance by the golden ratio."""
    colors = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75 - 0.25 * (i // 8 % 2), 0.9 - 0.2 * (i % 3))
        colors.append(tuple(round(255 * value) for value in rgb))
    return tuple(colors)


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 640 or 512x1024")
    return int(parts[0]), int(parts[-1])


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
    add("--variant", help="insist on a size, for example L/16")
    add("--image_size", type=_size, help="training size in pixels: 640, or HEIGHTxWIDTH")
    add("--num_classes", type=int, help="classes; another number re-initialises what depends on it")
    add("--decoder", choices=("mask", "linear"), help="another kind is newly initialised")
    add("--in_channels", type=int, help="image channels; patch kernels are inflated")
    add("--num_heads", type=int, help="of the encoder, where neither file nor width tells")
    add("--layer_norm_eps", type=float, help="default: what the format was trained with")
    add("--gelu", choices=("exact", "tanh"), help="default: what the format was trained with")
    add("--normalization", choices=tuple(NORMALIZATION), help="mean and std of the images")
    add(
        "--position_method",
        choices=Method.__args__,
        default="bicubic",
        help="how position embeddings are resized (default: bicubic, as the reference; "
        "corner_linear is the original Google code's)",
    )
    add("--window", type=int, help="side of sliding windows, in pixels")
    add("--stride", type=int, help="stride of sliding windows, in pixels")
    add("--base_size", type=int, help="short side that images are resized to, in pixels")
    add("--seed", type=int, default=0, help="of newly initialised parameters")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    output = absolute(arguments.output)
    if output.exists() and not arguments.overwrite:
        raise CheckpointError(f"{output}: exists; choose another name or give --overwrite")
    names = [field.name for field in dataclasses.fields(ConvertOptions)]
    options = ConvertOptions(**{name: getattr(arguments, name) for name in names})
    description, params, report = convert(arguments.source, options)
    if arguments.to == "model":
        save_model(output, description, params)
    else:
        report.warnings += export.save_reference(output, description, params, arguments.to)
    print(report)
    print(f"written: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(make_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
