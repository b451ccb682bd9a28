"""Checkpoints of the authors' PyTorch Segmenter: a state dict beside a `variant.yml`."""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from segmenter_jax.checkpoints.atomic import abandon, publish, recover, staging
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.conversion.arrays import ArrayFile, SourceError
from segmenter_jax.conversion.mapping import SAME, Row, linear, norm, prefixed, to_theirs
from segmenter_jax.conversion.opening import Hints, Opened, bind, count_blocks, network
from segmenter_jax.conversion.timm import HEADS, block_rows, describe_encoder, encoder_rows
from segmenter_jax.conversion.variant import (
    REFERENCE_NUMERICS,
    VARIANT_FILE,
    make_variant,
    read_variant,
)
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.params import Params
from segmenter_jax.runtime.files import absolute, is_local

NAME = "reference"

# What `save` writes, by kind.
FILES = {"reference": "checkpoint.pth", "safetensors": "model.safetensors"}

_MASK_DECODER_FIRST = (
    Row("class_embedding", "cls_emb", SAME),
    Row("proj_patch", "proj_patch", SAME),
    Row("proj_classes", "proj_classes", SAME),
)
_MASK_DECODER_LAST = (
    *linear("proj_dec", "proj_dec"),
    *norm("decoder_norm", "decoder_norm"),
    *norm("mask_norm", "mask_norm"),
)
_LINEAR_DECODER = linear("head", "head")

# The reference's encoder keeps ImageNet heads that nothing uses; its strict loading wants them.
_UNUSED_CLASSES = 1000

_DROPPED = tuple((rf"encoder\.{pattern}", reason) for pattern, reason in HEADS)


def _describe_decoder(file: ArrayFile) -> dict[str, Any]:
    if "decoder.head.weight" in file.arrays:
        num_classes = file.shape("decoder.head.weight", 2)[0]
        return {"decoder": "linear", "num_classes": num_classes}
    return {
        "decoder": "mask",
        "num_classes": file.shape("decoder.cls_emb", 3)[1],
        "decoder_depth": count_blocks(file, r"decoder\.blocks\.(\d+)\."),
    }


def _table(config: SegmenterConfig) -> list[Row]:
    """Mapping table of a network, in the order of the reference's state dict."""
    rows = encoder_rows(config, "encoder.")
    if config.decoder == "linear":
        return rows + prefixed(_LINEAR_DECODER, "decoder/", "decoder.")
    rows += prefixed(_MASK_DECODER_FIRST, "decoder/", "decoder.")
    for i in range(config.decoder_depth):
        rows += block_rows(f"decoder/block_{i}/", f"decoder.blocks.{i}.")
    return rows + prefixed(_MASK_DECODER_LAST, "decoder/", "decoder.")


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    return any(name.startswith("encoder.blocks.") for name in names)


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    encoder, patches = describe_encoder(file, "encoder.")
    found = encoder | _describe_decoder(file)
    stated, described = {}, {}
    if (variant := file.sidecar(VARIANT_FILE)) is not None:
        stated, described = read_variant(variant)
        _check_stated(variant, stated, found)
    config = network(file.path, REFERENCE_NUMERICS | found | stated, patches, hints)
    return bind(file, NAME, config, _table(config), _DROPPED, described)


def _check_stated(path: pathlib.Path, stated: dict[str, Any], found: dict[str, Any]) -> None:
    for name in stated.keys() & found.keys():
        if stated[name] != found[name]:
            raise SourceError(
                f"{path}: {name} is {stated[name]!r}, but the weights beside it have "
                f"{found[name]!r}"
            )


def _state_dict(config: SegmenterConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A network's flat parameters under the reference's names; all of its keys and no other."""
    arrays = to_theirs(_table(config), params)
    for head in ("head", "head_dist") if config.distilled else ("head",):
        arrays[f"encoder.{head}.weight"] = np.zeros((_UNUSED_CLASSES, config.width), np.float32)
        arrays[f"encoder.{head}.bias"] = np.zeros(_UNUSED_CLASSES, np.float32)
    return arrays


def save(
    path: os.PathLike | str, description: ModelDescription, params: Params, kind: str
) -> list[str]:
    """Writes a folder with a state dict and `variant.yml`, whole or not at all.

    The encoder's ImageNet heads, which a Segmenter never uses, are written as zeros.

    Args:
      path: the folder; one of the same kind is replaced.
      description, params: the model.
      kind: one of `FILES`: "reference" for `checkpoint.pth` (needs PyTorch), "safetensors" for
        `model.safetensors`.

    Returns:
      Sentences on what the reference computes differently.

    Raises:
      ValueError: the reference has no such network, or `path` holds something else.
    """
    path = absolute(path)
    if not is_local(path):
        raise ValueError(f"{path}: the reference's layout is written to local folders only")
    recover(path, VARIANT_FILE)
    if path.exists() and not (path / VARIANT_FILE).exists():
        raise ValueError(f"{path}: exists and holds no {VARIANT_FILE}; it is left as it is")
    variant, notes = make_variant(description)
    flat = flatten_dict(params, sep="/")
    arrays = _state_dict(description.model, {k: np.asarray(v, np.float32) for k, v in flat.items()})
    target = staging(path)
    try:
        target.mkdir(parents=True)
        _write(target / FILES[kind], arrays, description.model.num_classes)
        publish(path, VARIANT_FILE, variant)
    except BaseException:
        abandon(path, VARIANT_FILE)
        raise
    return notes


def _write(file: epath.Path, arrays: dict[str, np.ndarray], num_classes: int) -> None:
    if file.suffix == ".safetensors":
        from safetensors.numpy import save

        # Its `save_file` makes a file that only its owner can read.
        file.write_bytes(save(arrays, metadata={"format": "pt"}))
        return
    try:
        import torch
    except ImportError:
        raise ValueError(f"{file}: writing it needs PyTorch: pip install torch") from None
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"model": tensors, "n_cls": num_classes}, file)
