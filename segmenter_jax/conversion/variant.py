"""`variant.yml`, in which the authors' Segmenter describes a network, read and written."""

import dataclasses
import json
import pathlib
from collections.abc import Collection
from typing import Any

import yaml

from segmenter_jax.checkpoints.description import ModelDescription, check_types
from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.opening import normalized_as
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.models.variants import PLAIN
from segmenter_jax.runtime.errors import first_line

VARIANT_FILE = "variant.yml"

# How the reference computes, always.
REFERENCE_NUMERICS = {"layer_norm_eps": 1e-5, "gelu": "exact"}

# Their name and ours, within `net_kwargs`, its group `decoder`, and `inference_kwargs`.
_NET = {
    "d_model": "width",
    "n_layers": "depth",
    "n_heads": "num_heads",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "n_cls": "num_classes",
    "channels": "in_channels",
    "distilled": "distilled",
    "dropout": "dropout_rate",
    "drop_path_rate": "drop_path_rate",
}
_DECODER = {
    "n_layers": "decoder_depth",
    "dropout": "decoder_dropout_rate",
    "drop_path_rate": "decoder_drop_path_rate",
}
# One rate there, of tokens and of attention weights.
_ATTENTION_RATES = {
    "dropout_rate": "attention_dropout_rate",
    "decoder_dropout_rate": "decoder_attention_dropout_rate",
}
_INFERENCE = {"im_size": "base_size", "window_size": "window", "window_stride": "stride"}
_DECODERS = {"linear": "linear", "mask_transformer": "mask"}

# Long side over short side of the box that images are resized into, by dataset.
_ASPECT_BOUND = {"ade20k": 4.0, "pascal_context": 8.0, "cityscapes": 2.0}

# What variant.yml has no place for; the reference ignores this group.
_OWN_GROUP = "segmenter_jax"
_OWN_FIELDS = ("classes", "colors", "mean", "std", "ignore_label", "base_size", "aspect_bound")

_NORMALIZATIONS = ("vit", "deit")

# Fields that have one value in the reference: the default.
_NOT_THERE = (
    *("class_token", "num_registers", "position", "position_size", "position_resize"),
    *("mlp", "layer_scale", "decoder_layer_norm_eps"),
)

_BACKBONES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}


def read_variant(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a `variant.yml`.

    Returns:
      Fields of `SegmenterConfig`, and of `ModelDescription`, as far as the file says.

    Raises:
      SourceError: not such a file.
    """
    try:
        variant = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read: {first_line(error)}") from None
    net = _group(path, variant, "net_kwargs")
    decoder = _group(path, net, "decoder")
    fields = _renamed(net, _NET) | _renamed(decoder, _DECODER)
    fields |= {both: fields[own] for own, both in _ATTENTION_RATES.items() if own in fields}
    fields["decoder"] = _DECODERS[_choice(path, decoder, "name", _DECODERS)]
    if isinstance(size := fields.get("image_size"), int):
        fields["image_size"] = (size, size)
    own = _group(path, variant, _OWN_GROUP, optional=True)
    fields |= {name: own[name] for name in REFERENCE_NUMERICS if name in own}
    described = _described(path, variant, net) | {n: own[n] for n in _OWN_FIELDS if n in own}
    try:
        check_types(SegmenterConfig, fields)
        check_types(ModelDescription, described)
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from None
    return fields, described


def _described(path: pathlib.Path, variant: dict[str, Any], net: dict[str, Any]) -> dict[str, Any]:
    dataset = _group(path, variant, "dataset_kwargs", optional=True)
    described = _renamed(_group(path, variant, "inference_kwargs", optional=True), _INFERENCE)
    for group in (dataset, net):
        if group.get("normalization") is not None:
            described |= normalized_as(_choice(path, group, "normalization", _NORMALIZATIONS))
    # Other datasets than the published ones keep the default.
    for name, bound in _ASPECT_BOUND.items():
        if dataset.get("dataset") == name:
            described["aspect_bound"] = bound
    return described


def _renamed(group: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {ours: group[name] for name, ours in names.items() if group.get(name) is not None}


def _group(path: pathlib.Path, parent: Any, name: str, optional: bool = False) -> dict[str, Any]:
    group = parent.get(name) if isinstance(parent, dict) else None
    if group is None and optional:
        return {}
    if not isinstance(group, dict):
        raise SourceError(f"{path}: no group {name!r}; expected the reference's variant.yml")
    return group


def _choice(path: pathlib.Path, group: dict[str, Any], field: str, choices: Collection[str]) -> str:
    value = group.get(field)
    if not isinstance(value, str) or value not in choices:
        raise SourceError(f"{path}: {field} is {value!r}; known are {tuple(choices)}")
    return value


def make_variant(description: ModelDescription) -> tuple[str, list[str]]:
    """Text of `variant.yml` for a model, and what the reference cannot honour.

    Raises:
      ValueError: the reference has no such network.
    """
    config = description.model
    plain = SegmenterConfig(1, (16, 16), config.width, config.depth, config.num_heads)
    for field in _NOT_THERE:
        if (value := getattr(config, field)) != getattr(plain, field):
            raise ValueError(f"the reference has no {field}={value!r}")
    if config.decoder not in _DECODERS.values():
        raise ValueError(f"the reference has no decoder {config.decoder!r}")
    if config.mlp_dim not in (None, 4 * config.width):
        raise ValueError(f"the reference has no mlp_dim={config.mlp_dim} at width {config.width}")
    normalization = _normalization_name(description)
    numerics = {name: getattr(config, name) for name in REFERENCE_NUMERICS}
    notes = []
    if numerics != REFERENCE_NUMERICS:
        notes.append(
            f"the reference always computes with {_spell(REFERENCE_NUMERICS)}; this model has "
            f"{_spell(numerics)}, so its outputs will differ"
        )
    if normalization is None:
        notes.append(
            "the reference has no such mean and std; its 'vit' is written, so normalise as "
            "the model expects before calling it"
        )
    net = {name: getattr(config, ours) for name, ours in _NET.items()}
    if config.in_channels == 3:
        del net["channels"]
    decoder = {"name": "linear"}
    if config.decoder == "mask":
        decoder = {name: getattr(config, ours) for name, ours in _DECODER.items()}
        decoder["name"] = "mask_transformer"
    variant = {
        "net_kwargs": net
        | {"backbone": _backbone(config), "decoder": decoder}
        | {"normalization": normalization or "vit"},
        "dataset_kwargs": {"normalization": normalization or "vit"},
        "inference_kwargs": {
            "im_size": description.base_size or min(config.image_size),
            "window_size": description.window,
            "window_stride": description.stride,
        },
        _OWN_GROUP: {name: getattr(description, name) for name in _OWN_FIELDS} | numerics,
    }
    # Safe YAML has no tuples; JSON makes them lists.
    return yaml.safe_dump(json.loads(json.dumps(variant))), notes


def _spell(numerics: dict[str, Any]) -> str:
    return " and ".join(f"{name}={value!r}" for name, value in numerics.items())


def _backbone(config: SegmenterConfig) -> str:
    # The reference only looks up pretrained weights by it; the sizes are beside it.
    sizes = {fields["width"]: name for name, fields in PLAIN.items()}
    size = _BACKBONES[sizes.get(config.width, "Ti")]
    if config.distilled:
        return f"deit_{size}_distilled_patch{config.patch_size}_224"
    return f"vit_{size}_patch{config.patch_size}_384"


def _normalization_name(description: ModelDescription) -> str | None:
    for name in _NORMALIZATIONS:
        mean, std = NORMALIZATION[name]
        same = dataclasses.replace(description, mean=mean, std=std)
        if (same.mean, same.std) == (description.mean, description.std):
            return name
    return None
