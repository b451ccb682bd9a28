"""Folders of the Hugging Face hub: weights in several files, and what lies beside them."""

import json
import math
import pathlib
from typing import Any

from segmenter_jax.conversion.arrays import ArrayFile, Content, SourceError
from segmenter_jax.conversion.files import read_groups
from segmenter_jax.runtime.errors import first_few, first_line

_ACTIVATIONS = {"gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
# Of gates, where a configuration decides it (DINOv3's); DINOv2's are these whatever it says.
_GATES = ("silu", "swish")

# Ends the name of an index of several files.
SHARDS = ".index.json"


def shards(path: pathlib.Path) -> list[pathlib.Path]:
    """Files that an index of the Hugging Face hub names, sorted.

    Raises:
      SourceError: it is no such index, or a file is missing.
    """
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        files = [path.with_name(name) for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: no index of files of weights: {first_line(error)}") from None
    if missing := [file.name for file in files if not file.is_file()]:
        raise SourceError(f"{path}: names {first_few(missing, 3)}, which is not beside it")
    return files


def read_shards(path: pathlib.Path) -> Content:
    """As `files.read_groups`, of all files that an index names."""
    arrays: dict[str, Any] = {}
    for file in shards(path):
        groups, _ = read_groups(file)
        arrays |= {name: value for group in groups.values() for name, value in group.items()}
    return {"": arrays}, {}


def read_config(file: ArrayFile) -> dict[str, Any]:
    """Content of `config.json`, of the vision tower where there are two; empty if there is none.

    Raises:
      SourceError: it cannot be read, or is no configuration.
    """
    said = _read(file, "config.json")
    inner = said.get("vision_config", said)
    if not isinstance(inner, dict):
        raise SourceError(f"{file.path}: config.json: 'vision_config' is no object")
    return inner


def positive_number(file: ArrayFile, said: dict[str, Any], name: str, default: float) -> float:
    """A field of the configuration that is a number; `default` where it is not said.

    Raises:
      SourceError: it is none.
    """
    value = said.get(name, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise SourceError(f"{file.path}: config.json: {name}={value!r} is no positive number")
    return float(value)


def whole_number(file: ArrayFile, said: dict[str, Any], name: str) -> int | None:
    """A field of the configuration that counts something; None where it is not said.

    Raises:
      SourceError: it is no number.
    """
    value = said.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise SourceError(f"{file.path}: config.json: {name}={value!r} is no whole number")
    return value


def numerics(file: ArrayFile, said: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """`layer_norm_eps` and `gelu` as a configuration says; empty where it does not.

    Args:
      file: with the weights.
      said: see `read_config`.
      found: fields of `SegmenterConfig` that the arrays show.

    Raises:
      SourceError: the configuration is of another network, or has an activation that is none here.
    """
    for name, field in (
        ("hidden_size", "width"),
        ("num_hidden_layers", "depth"),
        ("num_register_tokens", "num_registers"),
    ):
        if said.get(name, found[field]) != found[field]:
            raise SourceError(
                f"{file.path}: config.json is of another network: {name}={said[name]!r}, the "
                f"arrays have {found[field]}"
            )
    fields: dict[str, Any] = {}
    if "layer_norm_eps" in said:
        fields["layer_norm_eps"] = positive_number(file, said, "layer_norm_eps", math.nan)
    plain = found["mlp"] == "gelu"
    if (name := said.get("hidden_act")) is None or not (plain or said.get("use_gated_mlp")):
        return fields
    known = tuple(_ACTIVATIONS) if plain else _GATES
    if name not in known:
        raise SourceError(f"{file.path}: config.json: hidden_act={name!r}; known are {known}")
    return fields | ({"gelu": _ACTIVATIONS[name]} if plain else {})


def normalization(file: ArrayFile) -> dict[str, Any]:
    """`mean` and `std` as files beside the weights say; empty where they do not.

    The hub's libraries write them to `preprocessor_config.json`, timm to its own `config.json`.

    Raises:
      SourceError: one cannot be read, or these are no numbers.
    """
    said = _read(file, "preprocessor_config.json")
    where, found = (
        "preprocessor_config.json: image_",
        (said.get("image_mean"), said.get("image_std")),
    )
    if None in found:
        group = _read(file, "config.json").get("pretrained_cfg")
        timms = group if isinstance(group, dict) else {}
        where, found = "config.json: pretrained_cfg.", (timms.get("mean"), timms.get("std"))
    if None in found:
        return {}
    for name, values in zip(("mean", "std"), found, strict=True):
        if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
            raise SourceError(f"{file.path}: {where}{name}={values!r}")
    return {n: tuple(map(float, v)) for n, v in zip(("mean", "std"), found, strict=True)}


def _read(file: ArrayFile, name: str) -> dict[str, Any]:
    path = file.sidecar(name)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{path}: found {type(content).__name__}, expected an object")
    return content
