"""ViTs of timm, DeiT and MAE; the reference Segmenter's encoder has the same names."""

import re
from collections.abc import Collection
from typing import Any

from segmenter_jax.conversion import huggingface
from segmenter_jax.conversion.arrays import ArrayFile
from segmenter_jax.conversion.mapping import CONV, SAME, Row, fused_qkv, linear, norm, prefixed
from segmenter_jax.conversion.opening import (
    Hints,
    Opened,
    bind,
    encoder_fields,
    network,
    normalized_as,
)
from segmenter_jax.models import SegmenterConfig

NAME = "timm"

_BLOCK = (
    *norm("LayerNorm_0", "norm1"),
    *norm("LayerNorm_1", "norm2"),
    *fused_qkv("attention", "attn.qkv."),
    *linear("attention/out", "attn.proj"),
    *linear("mlp/Dense_0", "mlp.fc1"),
    *linear("mlp/Dense_1", "mlp.fc2"),
)
_CLASS_TOKEN = Row("cls", "cls_token", SAME)
_DISTILLATION_TOKEN = Row("dist", "dist_token", SAME)
_STEM = (
    Row("pos_embedding", "pos_embed", SAME),
    *linear("embedding", "patch_embed.proj", CONV),
)
_NORM = norm("encoder_norm", "norm")

# Of MAE's own files, which have these names.
_PRETRAINING = (
    (r"mask_token$", "token of masked pretraining"),
    (r"decoder_", "decoder of masked pretraining"),
)

HEADS = (
    (r"head\.", "classification head"),
    (r"head_dist\.", "classification head of the distillation token"),
    (r"pre_logits\.", "layer before the classification head"),
)


def block_rows(ours: str, theirs: str) -> list[Row]:
    """Rows of one transformer block."""
    return prefixed(_BLOCK, ours, theirs)


def encoder_rows(config: SegmenterConfig, prefix: str) -> list[Row]:
    """Rows of the encoder, in timm's order; `prefix` stands before each of their names."""
    tokens = (_CLASS_TOKEN, _DISTILLATION_TOKEN) if config.distilled else (_CLASS_TOKEN,)
    rows = prefixed((*tokens, *_STEM), "encoder/", prefix)
    for i in range(config.depth):
        rows += block_rows(f"encoder/encoderblock_{i}/", f"{prefix}blocks.{i}.")
    return rows + prefixed(_NORM, "encoder/", prefix)


def describe_encoder(file: ArrayFile, prefix: str) -> tuple[dict[str, Any], int]:
    """Fields of `SegmenterConfig`, and the number of position embeddings of patches."""
    distilled = f"{prefix}dist_token" in file.arrays
    fields = encoder_fields(
        file,
        kernel=f"{prefix}patch_embed.proj.weight",
        axes="oihw",
        hidden=f"{prefix}blocks.0.mlp.fc1.bias",
        blocks=rf"{re.escape(prefix)}blocks\.(\d+)\.",
    )
    # Without one (timm's SigLIP) it is none of these, whatever the number of positions.
    file.shape(f"{prefix}cls_token", 3)
    tokens = file.shape(f"{prefix}pos_embed", 3)[1]
    return fields | {"distilled": distilled}, tokens - (2 if distilled else 1)


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    return any(name.startswith("blocks.") for name in names)


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    fields, patches = describe_encoder(file, "")
    fields |= {"layer_norm_eps": 1e-6, "gelu": "exact"}
    config = network(file.path, fields, patches, hints)
    # AugReg and plain DeiT weights look the same; only distilled ones are DeiT's for certain.
    description = normalized_as("deit") if config.distilled else {}
    if "mask_token" in file.arrays:
        description = normalized_as("imagenet")
    description |= huggingface.normalization(file)
    dropped = HEADS + _PRETRAINING
    return bind(file, NAME, config, encoder_rows(config, ""), dropped, description)
