"""Google's ViT checkpoints: `vision_transformer` (two numberings of modules) and `big_vision`.

Those of big_vision may be the image tower of a SigLIP, have no class token, and hold the arrays of
all blocks stacked.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

from segmenter_jax.conversion import naflex
from segmenter_jax.conversion.arrays import ArrayFile, LazyArray
from segmenter_jax.conversion.mapping import SAME, WITHOUT_CLASS_TOKEN, Row, prefixed
from segmenter_jax.conversion.opening import (
    Dropped,
    Hints,
    Opened,
    bind,
    encoder_fields,
    is_square,
    network,
    normalized_as,
)

NAME = "google"


def _same(ours: str, theirs: str, leaves: tuple[str, ...]) -> list[Row]:
    return [Row(f"{ours}/{leaf}", f"{theirs}/{leaf}", SAME) for leaf in leaves]


# Numbers of a block's modules: all counted together in the released files, later each kind by
# itself. {norm2}, {attention} and {mlp} in the table below.
_RELEASED = {
    "norm2": "LayerNorm_2",
    "attention": "MultiHeadDotProductAttention_1",
    "mlp": "MlpBlock_3",
}
_NEWER = {
    "norm2": "LayerNorm_1",
    "attention": "MultiHeadDotProductAttention_0",
    "mlp": "MlpBlock_0",
}

_SCALE, _KERNEL = ("scale", "bias"), ("kernel", "bias")
_BLOCK = (
    *_same("LayerNorm_0", "LayerNorm_0", _SCALE),
    *_same("attention/query", "{attention}/query", _KERNEL),
    *_same("attention/key", "{attention}/key", _KERNEL),
    *_same("attention/value", "{attention}/value", _KERNEL),
    *_same("attention/out", "{attention}/out", _KERNEL),
    *_same("LayerNorm_1", "{norm2}", _SCALE),
    *_same("mlp/Dense_0", "{mlp}/Dense_0", _KERNEL),
    *_same("mlp/Dense_1", "{mlp}/Dense_1", _KERNEL),
)
_STEM = (
    *_same("embedding", "embedding", _KERNEL),
    *_same("encoder_norm", "Transformer/encoder_norm", _SCALE),
)
_CLASS_TOKEN = Row("cls", "cls", SAME)
_POSITION = "Transformer/posembed_input/pos_embedding"
# big_vision adds position embeddings before the class token, where there is one.
_SEPARATE_POSITION = "pos_embedding"
# big_vision puts the parameters under one of these; what is beside them is another tower, optimizer
# state and the like.
_PREFIXES = ("params/img/", "img/", "params/")
_STACKED = "Transformer/encoderblock/"

_DROPPED = (
    (r"head/", "classification head"),
    (r"pre_logits/", "layer before the classification head"),
    (r"MAPHead_0/", "attention pooling before the classification head"),
)


def block_rows(ours: str, theirs: str, numbers: dict[str, str] = _NEWER) -> list[Row]:
    """Rows of one transformer block."""
    block = [row._replace(theirs=row.theirs.format(**numbers)) for row in _BLOCK]
    return prefixed(block, ours, theirs)


def _numbering(file: ArrayFile) -> dict[str, str]:
    released = "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"
    return _RELEASED if released in file.arrays else _NEWER


def _position(file: ArrayFile) -> tuple[Row, int]:
    """Row of the position embeddings, and how many of them are of patches."""
    class_token = "cls" in file.arrays
    if _POSITION in file.arrays:
        return Row("pos_embedding", _POSITION, SAME), file.shape(_POSITION, 3)[1] - class_token
    tokens = file.shape(_SEPARATE_POSITION, 3)[1]
    if not class_token:
        return Row("pos_embedding", _SEPARATE_POSITION, SAME), tokens
    if is_square(tokens - 1) and not is_square(tokens):
        return Row("pos_embedding", _SEPARATE_POSITION, SAME), tokens - 1
    return Row("pos_embedding", _SEPARATE_POSITION, WITHOUT_CLASS_TOKEN), tokens


def _describe(file: ArrayFile, numbers: dict[str, str]) -> dict[str, Any]:
    block = "Transformer/encoderblock_0/"
    fields = encoder_fields(
        file,
        kernel="embedding/kernel",
        axes="hwio",
        hidden=f"{block}{numbers['mlp']}/Dense_0/bias",
        blocks=r"Transformer/encoderblock_(\d+)/",
    )
    heads = file.shape(f"{block}{numbers['attention']}/query/kernel", 3)[1]
    numerics = {"layer_norm_eps": 1e-6, "gelu": "tanh"}
    return fields | numerics | {"num_heads": heads, "class_token": "cls" in file.arrays}


def _table(depth: int, file: ArrayFile, numbers: dict[str, str]) -> list[Row]:
    class_token = (_CLASS_TOKEN,) if "cls" in file.arrays else ()
    rows = prefixed((*_STEM, *class_token, _position(file)[0]), "encoder/", "")
    for i in range(depth):
        name = f"encoderblock_{i}/"
        rows += block_rows(f"encoder/{name}", f"Transformer/{name}", numbers)
    return rows


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    return any(name.startswith(f"{p}Transformer/") for p in ("", *_PREFIXES) for name in names)


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    file, outside = _unwrap(file)
    numbers = _numbering(file)
    flexible = naflex.unflattened(file, "embedding/kernel", _SEPARATE_POSITION, "hwio")
    file = flexible or file
    fields = _describe(file, numbers)
    config = network(file.path, fields, _position(file)[1], hints)
    if flexible:
        native = {"position_resize": naflex.RESIZE, "position_size": config.image_size}
        config = dataclasses.replace(config, **native)
    table = _table(config.depth, file, numbers)
    opened = bind(file, NAME, config, table, _DROPPED, normalized_as("vit"))
    return dataclasses.replace(opened, dropped=outside + opened.dropped)


def _unwrap(file: ArrayFile) -> tuple[ArrayFile, list[Dropped]]:
    """The encoder's arrays, block by block, and those that stand outside of them."""
    whole = file.arrays
    starts = (p for p in _PREFIXES if any(n.startswith(f"{p}Transformer/") for n in whole))
    prefix = next(starts, "")
    inside = {n.removeprefix(prefix): v for n, v in whole.items() if n.startswith(prefix)}
    why = f"outside of {prefix!r}: no parameter of the encoder"
    outside = [(n, v.shape, why) for n, v in whole.items() if not n.startswith(prefix)]
    arrays = {}
    for name, array in inside.items():
        layers = _layers(name, array) if name.startswith(_STACKED) else {name: array}
        arrays |= layers
    return dataclasses.replace(file, arrays=arrays), outside


def _layers(name: str, array: LazyArray) -> dict[str, LazyArray]:
    """Arrays of single blocks, of one that holds them stacked on its first axis."""
    load = functools.cache(array.load)
    rest = name.removeprefix(_STACKED)
    depth, *shape = array.shape or (0,)
    return {
        f"Transformer/encoderblock_{i}/{rest}": LazyArray(
            tuple(shape), array.dtype, lambda i=i: load()[i]
        )
        for i in range(depth)
    }
