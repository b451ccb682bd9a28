"""mmsegmentation's Segmenter checkpoints, with mask or FCN (linear) head."""

import dataclasses
from collections.abc import Collection
from typing import Any

from segmenter_jax.conversion.arrays import ArrayFile
from segmenter_jax.conversion.mapping import (
    CONV,
    LINEAR,
    POINTWISE,
    SAME,
    Row,
    fused_qkv,
    linear,
    norm,
    prefixed,
)
from segmenter_jax.conversion.opening import (
    Hints,
    Opened,
    bind,
    count_blocks,
    encoder_fields,
    network,
    normalized_as,
)
from segmenter_jax.models import SegmenterConfig

NAME = "mmseg"

_BLOCK = (
    *norm("LayerNorm_0", "ln1"),
    *norm("LayerNorm_1", "ln2"),
    *fused_qkv("attention", "attn.attn.in_proj_"),
    *linear("attention/out", "attn.attn.out_proj"),
    *linear("mlp/Dense_0", "ffn.layers.0.0"),
    *linear("mlp/Dense_1", "ffn.layers.1"),
)
_ENCODER = (
    Row("cls", "cls_token", SAME),
    Row("pos_embedding", "pos_embed", SAME),
    *linear("embedding", "patch_embed.projection", CONV),
    *norm("encoder_norm", "ln1"),
)
# Here the two projections are dense layers, so they are transposed.
_MASK_DECODER = (
    Row("class_embedding", "cls_emb", SAME),
    Row("proj_patch", "patch_proj.weight", LINEAR),
    Row("proj_classes", "classes_proj.weight", LINEAR),
    *linear("proj_dec", "dec_proj"),
    *norm("decoder_norm", "decoder_norm"),
    *norm("mask_norm", "mask_norm"),
)
_LINEAR_DECODER = linear("head", "conv_seg", POINTWISE)

_DROPPED = ((r"auxiliary_head\.", "head used in training only"),)
_NOTE = "normalisation is not in the file; mmsegmentation's Segmenters use mean 0.5, std 0.5"


def _describe(file: ArrayFile) -> dict[str, Any]:
    # The encoder was trained with 1e-6 and the decoder with 1e-5. One value serves both; the mask
    # norm, over cosines of small variance, is where it matters.
    fields = {"layer_norm_eps": 1e-5, "gelu": "exact"} | encoder_fields(
        file,
        kernel="backbone.patch_embed.projection.weight",
        axes="oihw",
        hidden="backbone.layers.0.ffn.layers.0.0.bias",
        blocks=r"backbone\.layers\.(\d+)\.",
    )
    if "decode_head.conv_seg.weight" in file.arrays:
        num_classes = file.shape("decode_head.conv_seg.weight", 4)[0]
        return fields | {"decoder": "linear", "num_classes": num_classes}
    return fields | {
        "decoder": "mask",
        "num_classes": file.shape("decode_head.cls_emb", 3)[1],
        "decoder_depth": count_blocks(file, r"decode_head\.layers\.(\d+)\."),
    }


def _table(config: SegmenterConfig) -> list[Row]:
    rows = prefixed(_ENCODER, "encoder/", "backbone.")
    for i in range(config.depth):
        rows += prefixed(_BLOCK, f"encoder/encoderblock_{i}/", f"backbone.layers.{i}.")
    if config.decoder == "linear":
        return rows + prefixed(_LINEAR_DECODER, "decoder/", "decode_head.")
    rows += prefixed(_MASK_DECODER, "decoder/", "decode_head.")
    for i in range(config.decoder_depth):
        rows += prefixed(_BLOCK, f"decoder/block_{i}/", f"decode_head.layers.{i}.")
    return rows


def _classes(extra: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Names and colours of the classes; the two generations of the library spell them apart."""
    meta = extra.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    inner = meta.get("dataset_meta")
    meta = meta | (inner if isinstance(inner, dict) else {})
    found = {
        "classes": meta.get("CLASSES", meta.get("classes")),
        "colors": meta.get("PALETTE", meta.get("palette")),
    }
    return {
        field: values
        for field, values in found.items()
        if isinstance(values, list | tuple) and len(values) == num_classes
    }


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    return any(name.startswith("backbone.layers.") for name in names)


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    patches = file.shape("backbone.pos_embed", 3)[1] - 1
    config = network(file.path, _describe(file), patches, hints)
    described = normalized_as("vit") | _classes(file.extra, config.num_classes)
    opened = bind(file, NAME, config, _table(config), _DROPPED, described)
    return dataclasses.replace(opened, notes=(_NOTE,))
