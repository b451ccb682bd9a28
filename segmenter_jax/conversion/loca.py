"""LOCA's encoder in a training state as Flax saves it (scenic, `projects/loca`)."""

import math
from collections.abc import Collection

from segmenter_jax.conversion.arrays import ArrayFile
from segmenter_jax.conversion.google import block_rows
from segmenter_jax.conversion.mapping import SAME, Layout, Row, prefixed
from segmenter_jax.conversion.opening import (
    Hints,
    Opened,
    bind,
    encoder_fields,
    network,
    normalized_as,
)

NAME = "loca"

_TOKENS = "ToTokenSequence_0/"
_POSITION = f"{_TOKENS}posembed_input"
_BLOCK = "encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"

_DROPPED = (
    (r"cross_attention_block/", "pretraining: between views"),
    (r"(final_norm|position_predictor)/", "pretraining: prediction of positions"),
    (r"projection_head", "pretraining: prediction of clusters"),
)


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    return {_POSITION, _BLOCK} <= set(names)


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    fields = encoder_fields(
        file,
        kernel=f"{_TOKENS}embedding/kernel",
        axes="hwio",
        hidden="encoderblock_0/MlpBlock_0/Dense_0/bias",
        blocks=r"encoderblock_(\d+)/",
    )
    _, rows, columns, _ = file.shape(_POSITION, 4)
    size = (rows * fields["patch_size"], columns * fields["patch_size"])
    fields |= {
        "num_heads": file.shape(_BLOCK, 3)[1],
        "class_token": False,
        "layer_norm_eps": 1e-6,
        "gelu": "tanh",
        "image_size": size,
        "position_size": size,
        "position_resize": "bilinear_antialias",
    }
    config = network(file.path, fields, math.prod((rows, columns)), hints)
    # (1, rows, columns, D) and (1, rows * columns, D).
    grid = Layout(
        lambda theirs, shape: theirs.reshape(shape),
        lambda ours: ours.reshape(1, rows, columns, -1),
    )
    table = [Row("encoder/pos_embedding", _POSITION, grid)]
    for name, leaves in (("embedding", ("kernel", "bias")), ("encoder_norm", ("scale", "bias"))):
        outer = _TOKENS if name == "embedding" else ""
        own = [Row(f"{name}/{leaf}", f"{name}/{leaf}", SAME) for leaf in leaves]
        table += prefixed(own, "encoder/", outer)
    for i in range(config.depth):
        table += block_rows(f"encoder/encoderblock_{i}/", f"encoderblock_{i}/")
    return bind(file, NAME, config, table, _DROPPED, normalized_as("imagenet"))
