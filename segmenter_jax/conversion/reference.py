"""Checkpoints of the authors' PyTorch Segmenter: a state dict beside a `variant.yml`."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import yaml

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.conversion.arrays import CheckpointError
from segmenter_jax.conversion.mapping import (
    LINEAR,
    SAME,
    Format,
    Row,
    Shapes,
    prefixed,
    to_theirs,
)
from segmenter_jax.conversion.timm import HEADS, block_rows, describe_encoder, encoder_rows
from segmenter_jax.models import VARIANTS, SegmenterConfig
from segmenter_jax.models.normalization import NORMALIZATION
from segmenter_jax.runtime.errors import first_line

VARIANT_FILE = "variant.yml"

_MASK_DECODER_FIRST = (
    ("class_embedding", "cls_emb", SAME),
    ("proj_patch", "proj_patch", SAME),
    ("proj_classes", "proj_classes", SAME),
)
_MASK_DECODER_LAST = (
    ("proj_dec/kernel", "proj_dec.weight", LINEAR),
    ("proj_dec/bias", "proj_dec.bias", SAME),
    ("decoder_norm/scale", "decoder_norm.weight", SAME),
    ("decoder_norm/bias", "decoder_norm.bias", SAME),
    ("mask_norm/scale", "mask_norm.weight", SAME),
    ("mask_norm/bias", "mask_norm.bias", SAME),
)
_LINEAR_DECODER = (("head/kernel", "head.weight", LINEAR), ("head/bias", "head.bias", SAME))

# The reference's encoder keeps ImageNet heads that nothing uses; its strict loading wants them.
_UNUSED_HEAD_CLASSES = 1000

_EPS, _GELU = 1e-5, "exact"

# Long side over short side of the box that images are resized into, by dataset.
_ASPECT_BOUND = {"ade20k": 4.0, "pascal_context": 8.0, "cityscapes": 2.0}

# What variant.yml has no place for; the reference ignores this group.
_OWN_GROUP = "segmenter_jax"
_OWN_FIELDS = ("classes", "colors", "mean", "std", "ignore_label", "base_size", "aspect_bound")

_DECODERS = {"linear": "linear", "mask_transformer": "mask"}
_BACKBONES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}


def _describe(shapes: Shapes) -> dict[str, Any]:
    fields = describe_encoder(shapes, "encoder.")
    if "decoder.head.weight" in shapes:
        num_classes = shapes.get("decoder.head.weight", 2)[0]
        return fields | {"decoder": "linear", "num_classes": num_classes}
    return fields | {
        "decoder": "mask",
        "num_classes": shapes.get("decoder.cls_emb", 3)[1],
        "decoder_depth": shapes.count(r"decoder\.blocks\.(\d+)\."),
    }


def table(config: SegmenterConfig) -> list[Row]:
    """Mapping table of a network, in the order of the reference's state dict."""
    rows = encoder_rows(config, "encoder.")
    if config.decoder == "linear":
        return rows + prefixed(_LINEAR_DECODER, "decoder/", "decoder.")
    rows += prefixed(_MASK_DECODER_FIRST, "decoder/", "decoder.")
    for i in range(config.decoder_depth):
        rows += block_rows(f"decoder/block_{i}/", f"decoder.blocks.{i}.")
    return rows + prefixed(_MASK_DECODER_LAST, "decoder/", "decoder.")


REFERENCE = Format(
    name="reference",
    detect=lambda names: any(name.startswith("encoder.blocks.") for name in names),
    describe=_describe,
    table=lambda config, shapes: table(config),
    dropped=tuple((rf"encoder\.{pattern}", reason) for pattern, reason in HEADS),
    layer_norm_eps=_EPS,
    gelu=_GELU,
    normalization=lambda fields: None,
)


def state_dict(config: SegmenterConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A network's parameters under the reference's names; all of its keys and no other.

    Args:
      config: the network.
      params: its flat parameters.
    """
    arrays = to_theirs(table(config), params)
    for head in ("head", "head_dist") if config.distilled else ("head",):
        arrays[f"encoder.{head}.weight"] = np.zeros(
            (_UNUSED_HEAD_CLASSES, config.width), np.float32
        )
        arrays[f"encoder.{head}.bias"] = np.zeros(_UNUSED_HEAD_CLASSES, np.float32)
    return arrays


def read_variant(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a `variant.yml`.

    Returns:
      Fields of `SegmenterConfig`, and of `ModelDescription`, as far as the file says.

    Raises:
      CheckpointError: not such a file.
    """
    try:
        variant = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {first_line(error)}") from None
    net = _group(path, variant, "net_kwargs")
    decoder = _group(path, net, "decoder")
    known = {
        "width": net.get("d_model"),
        "depth": net.get("n_layers"),
        "num_heads": net.get("n_heads"),
        "patch_size": net.get("patch_size"),
        "num_classes": net.get("n_cls"),
        "in_channels": net.get("channels"),
        "distilled": net.get("distilled"),
        "dropout_rate": net.get("dropout"),
        "drop_path_rate": net.get("drop_path_rate"),
        "decoder": _DECODERS[_choice(path, "net_kwargs.decoder.name", decoder, _DECODERS)],
        "decoder_depth": decoder.get("n_layers"),
        "decoder_dropout_rate": decoder.get("dropout"),
        "decoder_drop_path_rate": decoder.get("drop_path_rate"),
    }
    for field, value in known.items():
        if field != "decoder" and value is not None:
            _number(path, field, value)
    fields = {name: value for name, value in known.items() if value is not None}
    if "image_size" in net:
        fields["image_size"] = _image_size(path, net["image_size"])
    return _own_fields(path, variant, net, fields)


def _own_fields(
    path: pathlib.Path, variant: dict[str, Any], net: dict[str, Any], fields: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    inference = _optional_group(path, variant, "inference_kwargs")
    dataset = _optional_group(path, variant, "dataset_kwargs")
    described: dict[str, Any] = {}
    for group in (dataset, net):
        if group.get("normalization") is not None:
            normalization = _choice(path, "normalization", group, NORMALIZATION)
            described["mean"], described["std"] = NORMALIZATION[normalization]
    for theirs, ours in (
        ("im_size", "base_size"),
        ("window_size", "window"),
        ("window_stride", "stride"),
    ):
        if isinstance(inference.get(theirs), int):
            described[ours] = inference[theirs]
    # Other datasets than the published ones keep the default.
    for name, bound in _ASPECT_BOUND.items():
        if dataset.get("dataset") == name:
            described["aspect_bound"] = bound
    own = _optional_group(path, variant, _OWN_GROUP)
    described |= {name: own[name] for name in _OWN_FIELDS if name in own}
    if "layer_norm_eps" in own:
        fields["layer_norm_eps"] = _number(path, "layer_norm_eps", own["layer_norm_eps"])
    if "gelu" in own:
        fields["gelu"] = _choice(path, "gelu", own, ("exact", "tanh"))
    return fields, described


def _optional_group(path: pathlib.Path, parent: dict[str, Any], name: str) -> dict[str, Any]:
    return _group(path, parent, name) if parent.get(name) is not None else {}


def _choice(path: pathlib.Path, field: str, group: dict[str, Any], choices: Collection[str]) -> str:
    value = group.get(field.rpartition(".")[2])
    if not isinstance(value, str) or value not in choices:
        raise CheckpointError(f"{path}: {field} is {value!r}; known are {tuple(choices)}")
    return value


def _number(path: pathlib.Path, field: str, value: Any) -> int | float:
    if not isinstance(value, int | float):
        raise CheckpointError(f"{path}: {field}: found {value!r}, expected a number")
    return value


def _group(path: pathlib.Path, parent: Any, name: str) -> dict[str, Any]:
    if not isinstance(parent, dict) or not isinstance(parent.get(name), dict):
        raise CheckpointError(f"{path}: no group {name!r}; expected the reference's variant.yml")
    return parent[name]


def _image_size(path: pathlib.Path, value: Any) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else value
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise CheckpointError(f"{path}: net_kwargs.image_size is {value!r}, expected two sizes")
    return tuple(pair)


def make_variant(description: ModelDescription) -> tuple[str, list[str]]:
    """Text of `variant.yml` for a model, and what the reference cannot honour.

    Raises:
      ValueError: the reference has no such network.
    """
    config = description.model
    if config.mlp_dim not in (None, 4 * config.width):
        raise ValueError(f"the reference has no mlp_dim={config.mlp_dim} at width {config.width}")
    normalization = _normalization_name(description)
    notes = []
    if (config.layer_norm_eps, config.gelu) != (_EPS, _GELU):
        notes.append(
            f"the reference always computes with layer_norm_eps={_EPS} and gelu={_GELU!r}; this "
            f"model has {config.layer_norm_eps} and {config.gelu!r}, so its outputs will differ"
        )
    if normalization is None:
        notes.append(
            "the reference has no such mean and std; its 'vit' is written, so normalise as "
            "the model expects before calling it"
        )
    net = {
        "backbone": _backbone(config),
        "d_model": config.width,
        "decoder": _decoder_kwargs(config),
        "distilled": config.distilled,
        "drop_path_rate": config.drop_path_rate,
        "dropout": config.dropout_rate,
        "image_size": list(config.image_size),
        "n_cls": config.num_classes,
        "n_heads": config.num_heads,
        "n_layers": config.depth,
        "normalization": normalization or "vit",
        "patch_size": config.patch_size,
    }
    if config.in_channels != 3:
        net["channels"] = config.in_channels
    own = {name: getattr(description, name) for name in _OWN_FIELDS}
    own |= {"layer_norm_eps": config.layer_norm_eps, "gelu": config.gelu}
    variant = {
        "net_kwargs": net,
        "dataset_kwargs": {"normalization": normalization or "vit"},
        "inference_kwargs": {
            "im_size": description.base_size or min(config.image_size),
            "window_size": description.window,
            "window_stride": description.stride,
        },
        _OWN_GROUP: _plain(own),
    }
    return yaml.safe_dump(variant), notes


def _decoder_kwargs(config: SegmenterConfig) -> dict[str, Any]:
    if config.decoder == "linear":
        return {"name": "linear"}
    return {
        "name": "mask_transformer",
        "n_layers": config.decoder_depth,
        "dropout": config.decoder_dropout_rate,
        "drop_path_rate": config.decoder_drop_path_rate,
    }


def _backbone(config: SegmenterConfig) -> str:
    # The reference only looks up pretrained weights by it; the sizes are beside it.
    sizes = {fields["width"]: name for name, fields in VARIANTS.items()}
    size = _BACKBONES[sizes.get(config.width, "Ti")]
    if config.distilled:
        return f"deit_{size}_distilled_patch{config.patch_size}_224"
    return f"vit_{size}_patch{config.patch_size}_384"


def _normalization_name(description: ModelDescription) -> str | None:
    for name, (mean, std) in NORMALIZATION.items():
        same = dataclasses.replace(description, mean=mean, std=std)
        if (same.mean, same.std) == (description.mean, description.std):
            return name
    return None


def _plain(value: Any) -> Any:
    """Tuples as lists: safe YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
