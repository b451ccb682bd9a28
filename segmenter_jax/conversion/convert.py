"""Any source of weights as a Segmenter: its description, its parameters, what happened to each."""

import dataclasses
import os
from typing import Any

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.conversion.adapt import (
    ENCODER_FIELDS,
    ENCODER_NUMERICS,
    Report,
    adapt,
    differences,
    own_positions,
)
from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.class_names import agree, placeholder_names
from segmenter_jax.conversion.download import sha256_of
from segmenter_jax.conversion.locate import Place
from segmenter_jax.conversion.opening import Hints, Opened, SourceNetwork, normalized_as
from segmenter_jax.conversion.sources import MODEL_DIRECTORY, open_source
from segmenter_jax.data.specs import spread_colors
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.choices import NORMALIZATION, Method
from segmenter_jax.models.config import with_patches
from segmenter_jax.models.params import Params


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """What to make of a source; None keeps what the source has.

    Attributes:
      variant: for example "L/16"; the source must be that.
      image_size: (height, width) in pixels of the training crop, which position embeddings are
        resized for where the source's do not stay.
      num_classes: of the decoder; needed where the source has none.
      decoder: see `SegmenterConfig`; "mask" where the source has none.
      in_channels: image channels.
      patch_size: side of a patch in pixels; the patch embedding is resized for another one.
      num_heads: heads of the encoder, where the source does not tell.
      layer_norm_eps, gelu: how the model computes.
      normalization: a name of `choices.NORMALIZATION`; needed where the source does not tell.
      position_method: how position embeddings are resized; None: "bilinear".
      window, stride, base_size: see `ModelDescription`, in pixels.
      seed: of newly initialised parameters.
      entry: which of several sets of weights in one file.
      base: source of the weights that this one holds differences from (EoMT on DINOv3).
    """

    variant: str | None = None
    image_size: tuple[int, int] | None = None
    num_classes: int | None = None
    decoder: str | None = None
    in_channels: int | None = None
    patch_size: int | None = None
    num_heads: int | None = None
    layer_norm_eps: float | None = None
    gelu: str | None = None
    normalization: str | None = None
    position_method: Method | None = None
    window: int | None = None
    stride: int | None = None
    base_size: int | None = None
    seed: int = 0
    entry: str | None = None
    base: os.PathLike | str | None = None


def convert(
    source: os.PathLike | str | Place, options: ConvertOptions
) -> tuple[ModelDescription, Params, Report]:
    """Reads any source of weights as a Segmenter.

    Args:
      source: see `locate.locate`, or what that gave.
      options: what to make of it.

    Returns:
      Description, parameters (float32), and what happened to each parameter.

    Raises:
      ValueError: the source cannot be read or explained, or lacks what the options must give.
    """
    if options.base is not None:
        options = dataclasses.replace(options, base=os.fspath(options.base))
    base = open_source(options.base, Hints(options.num_heads)) if options.base else None
    opened = open_source(source, Hints(options.num_heads, options.image_size, base), options.entry)
    config = _target_config(opened, options)
    description = _describe(opened, config, options)
    params, report = adapt(opened, config, options.seed, options.position_method)
    if options.image_size is not None and (own := own_positions(opened.config)):
        report.warnings.append(f"image_size={options.image_size} resizes no positions: {own}")
    given = {k: v for k, v in dataclasses.asdict(options).items() if v is not None}
    provenance = _provenance(opened, given, report)
    return dataclasses.replace(description, provenance=provenance), params, report


def source_network(
    source: os.PathLike | str, hints: Hints, entry: str | None = None
) -> SourceNetwork:
    """The encoder of a source; arrays of files of others are not read.

    Args:
      source, entry: see `load_init`.
      hints: what the source may not say.

    Raises:
      ValueError: the source cannot be read or explained.
    """
    return _network(open_source(source, hints, entry))


def _network(opened: Opened) -> SourceNetwork:
    config = opened.config
    names = ("patch_size", *ENCODER_FIELDS, *ENCODER_NUMERICS)
    fields = {name: getattr(config, name) for name in names}
    if config.position == "learned":
        # Positions stay as they are, and are resized once, at run time.
        fields["position_size"] = config.position_size or config.image_size
    said = opened.description
    return SourceNetwork(fields, {name: said[name] for name in ("mean", "std") if name in said})


def load_init(
    source: os.PathLike | str,
    target: ModelDescription,
    seed: int,
    position_method: Method | None = None,
    entry: str | None = None,
) -> tuple[Params, dict[str, Any], Report]:
    """Starts training from a source of weights.

    Everything that fits is taken: the encoder always, the decoder where it is of the same kind; of
    its parameters for single classes, those of classes of the same names. `target` decides how the
    model computes; if the source was trained with another `layer_norm_eps`, `gelu` or
    normalisation, the report warns.

    Args:
      source: see `locate.locate`.
      target: the network to train, and how its images are normalised.
      seed: of newly initialised parameters.
      position_method: how position embeddings are resized; None: "bilinear".
      entry: which of several sets of weights in one file; None takes the only one.

    Returns:
      Parameters on the host; where they come from (JSON values: the sha256 of the source, and as
      "network" the fields of its `SourceNetwork`); and what happened to each.

    Raises:
      ValueError: the source cannot be read or explained, or its encoder is another one.
    """
    config = target.model
    opened = open_source(source, Hints(config.num_heads, config.image_size), entry)
    given = {"position_method": position_method or "bilinear", "seed": seed}
    classes = agree(opened.description.get("classes"), target.classes)
    params, report = adapt(opened, config, seed, position_method, classes)
    if classes is None and opened.has_decoder and config.num_classes == opened.config.num_classes:
        report.warnings.append(
            "the source does not name its classes: they are taken for these, in this order"
        )
    report.warnings += _normalization_warnings(opened, target)
    origin = _provenance(opened, given | ({"entry": entry} if entry else {}), report)
    return params, origin | {"network": dataclasses.asdict(_network(opened))}, report


def _normalization_warnings(opened: Opened, target: ModelDescription) -> list[str]:
    known = {k: v for k, v in opened.description.items() if k in ("mean", "std")}
    theirs = dataclasses.replace(target, **known)
    return [
        f"the source was trained with {name}={getattr(theirs, name)}; images are normalised with "
        f"{getattr(target, name)} here (augment.normalization)"
        for name in known
        if getattr(theirs, name) != getattr(target, name)
    ]


def _target_config(opened: Opened, options: ConvertOptions) -> SegmenterConfig:
    source = opened.config
    if options.variant is not None:
        wanted = SegmenterConfig.from_variant(
            options.variant, num_classes=1, image_size=source.image_size
        )
        # A distilled network is of the same variant.
        fields = ("patch_size", *(field for field in ENCODER_FIELDS if field != "distilled"))
        if found := differences(source, wanted, fields):
            raise SourceError(
                f"{opened.source}: not a {options.variant}: has {found[0]}; expected {found[1]}"
            )
    if options.num_heads not in (None, source.num_heads):
        raise SourceError(
            f"{opened.source}: num_heads={options.num_heads} asked for, the source has "
            f"{source.num_heads}"
        )
    if not opened.has_decoder and options.num_classes is None:
        raise SourceError(
            f"{opened.source}: holds an encoder only; give num_classes (--num_classes of "
            "python -m segmenter_jax.convert) for a new decoder"
        )
    names = ("image_size", "num_classes", "decoder", "in_channels", "layer_norm_eps", "gelu")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.patch_size is not None:
        patches = {name: getattr(source, name) for name in ("patch_size", "position_size")}
        changes |= with_patches(patches, options.patch_size)
    if not opened.has_decoder:
        changes.setdefault("decoder", "mask")
    wanted = dataclasses.replace(source, **changes)
    kept = ("decoder", "num_classes", "num_upscales")
    if wanted.decoder == "eomt" and any(getattr(wanted, n) != getattr(source, n) for n in kept):
        raise SourceError(
            f"{opened.source}: a new decoder of the kind eomt would have to be trained, which is "
            "not offered here; that of a released model keeps its classes, and how often it "
            "doubles the grid of patches (patch_size)"
        )
    return wanted


def _describe(opened: Opened, config: SegmenterConfig, options: ConvertOptions) -> ModelDescription:
    """What the source and the options say of the model; all but its provenance."""
    known = dict(opened.description)
    if options.normalization is not None:
        if options.normalization not in NORMALIZATION:
            raise ValueError(
                f"normalization={options.normalization!r} is unknown; "
                f"choose from {tuple(NORMALIZATION)}"
            )
        known |= normalized_as(options.normalization)
    if "mean" not in known:
        raise SourceError(
            f"{opened.source}: does not say how images are normalised; give normalization, "
            f"one of {', '.join(NORMALIZATION)}"
        )
    num_classes = config.num_classes
    if not opened.has_decoder or num_classes != opened.config.num_classes:
        known.pop("classes", None)
        known.pop("colors", None)
    if config.image_size != opened.config.image_size:
        known.pop("window", None)
        known.pop("stride", None)
    known.setdefault("classes", placeholder_names(num_classes))
    known.setdefault("colors", spread_colors(num_classes))
    for field in ("window", "stride", "base_size"):
        if (value := getattr(options, field)) is not None:
            known[field] = value
    try:
        return ModelDescription(model=config, **known)
    except ValueError as error:
        raise SourceError(f"{opened.source}: wrong description: {error}") from None


def _provenance(opened: Opened, given: dict[str, Any], report: Report) -> dict[str, Any]:
    of_model = opened.format == MODEL_DIRECTORY
    return {
        "format": opened.format,
        "source": opened.source,
        "sha256": sha256_of(opened.files),
        **opened.license,
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()},
        "report": report.lines(with_mapped=False),
        **({"parent": opened.description["provenance"]} if of_model else {}),
    }
