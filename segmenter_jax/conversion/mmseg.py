"""mmsegmentation's Segmenter checkpoints, with mask or FCN (linear) head."""

from typing import Any

from segmenter_jax.conversion.mapping import (
    CONV,
    LINEAR,
    POINTWISE,
    SAME,
    Format,
    Row,
    Shapes,
    fused_bias,
    fused_kernel,
    mlp_dim,
    prefixed,
)
from segmenter_jax.models import SegmenterConfig

_BLOCK = (
    ("LayerNorm_0/scale", "ln1.weight", SAME),
    ("LayerNorm_0/bias", "ln1.bias", SAME),
    ("LayerNorm_1/scale", "ln2.weight", SAME),
    ("LayerNorm_1/bias", "ln2.bias", SAME),
    ("attention/query/kernel", "attn.attn.in_proj_weight", fused_kernel(0)),
    ("attention/key/kernel", "attn.attn.in_proj_weight", fused_kernel(1)),
    ("attention/value/kernel", "attn.attn.in_proj_weight", fused_kernel(2)),
    ("attention/query/bias", "attn.attn.in_proj_bias", fused_bias(0)),
    ("attention/key/bias", "attn.attn.in_proj_bias", fused_bias(1)),
    ("attention/value/bias", "attn.attn.in_proj_bias", fused_bias(2)),
    ("attention/out/kernel", "attn.attn.out_proj.weight", LINEAR),
    ("attention/out/bias", "attn.attn.out_proj.bias", SAME),
    ("mlp/Dense_0/kernel", "ffn.layers.0.0.weight", LINEAR),
    ("mlp/Dense_0/bias", "ffn.layers.0.0.bias", SAME),
    ("mlp/Dense_1/kernel", "ffn.layers.1.weight", LINEAR),
    ("mlp/Dense_1/bias", "ffn.layers.1.bias", SAME),
)
_ENCODER = (
    ("cls", "cls_token", SAME),
    ("pos_embedding", "pos_embed", SAME),
    ("embedding/kernel", "patch_embed.projection.weight", CONV),
    ("embedding/bias", "patch_embed.projection.bias", SAME),
    ("encoder_norm/scale", "ln1.weight", SAME),
    ("encoder_norm/bias", "ln1.bias", SAME),
)
# Here the two projections are dense layers, so they are transposed.
_MASK_DECODER = (
    ("class_embedding", "cls_emb", SAME),
    ("proj_patch", "patch_proj.weight", LINEAR),
    ("proj_classes", "classes_proj.weight", LINEAR),
    ("proj_dec/kernel", "dec_proj.weight", LINEAR),
    ("proj_dec/bias", "dec_proj.bias", SAME),
    ("decoder_norm/scale", "decoder_norm.weight", SAME),
    ("decoder_norm/bias", "decoder_norm.bias", SAME),
    ("mask_norm/scale", "mask_norm.weight", SAME),
    ("mask_norm/bias", "mask_norm.bias", SAME),
)
_LINEAR_DECODER = (
    ("head/kernel", "conv_seg.weight", POINTWISE),
    ("head/bias", "conv_seg.bias", SAME),
)


def _describe(shapes: Shapes) -> dict[str, Any]:
    kernel_name = "backbone.patch_embed.projection.weight"
    kernel = shapes.get(kernel_name, 4)
    hidden = shapes.get("backbone.layers.0.ffn.layers.0.0.bias", 1)[0]
    fields = {
        "width": kernel[0],
        "depth": shapes.count(r"backbone\.layers\.(\d+)\."),
        "patch_size": shapes.patch_size(kernel, kernel_name, 2, 3),
        "in_channels": kernel[1],
        "mlp_dim": mlp_dim(kernel[0], hidden),
        "patches": shapes.get("backbone.pos_embed", 3)[1] - 1,
    }
    if "decode_head.conv_seg.weight" in shapes:
        num_classes = shapes.get("decode_head.conv_seg.weight", 4)[0]
        return fields | {"decoder": "linear", "num_classes": num_classes}
    return fields | {
        "decoder": "mask",
        "num_classes": shapes.get("decode_head.cls_emb", 3)[1],
        "decoder_depth": shapes.count(r"decode_head\.layers\.(\d+)\."),
    }


def _table(config: SegmenterConfig, shapes: Shapes) -> list[Row]:
    del shapes
    rows = prefixed(_ENCODER, "encoder/", "backbone.")
    for i in range(config.depth):
        rows += prefixed(_BLOCK, f"encoder/encoderblock_{i}/", f"backbone.layers.{i}.")
    if config.decoder == "linear":
        return rows + prefixed(_LINEAR_DECODER, "decoder/", "decode_head.")
    rows += prefixed(_MASK_DECODER, "decoder/", "decode_head.")
    for i in range(config.decoder_depth):
        rows += prefixed(_BLOCK, f"decoder/block_{i}/", f"decode_head.layers.{i}.")
    return rows


MMSEG = Format(
    name="mmseg",
    detect=lambda names: any(name.startswith("backbone.layers.") for name in names),
    describe=_describe,
    table=_table,
    dropped=((r"auxiliary_head\.", "head used in training only"),),
    # The encoder was trained with 1e-6 and the decoder with 1e-5. One value serves both; the mask
    # norm, over cosines of small variance, is where it matters.
    layer_norm_eps=1e-5,
    gelu="exact",
    normalization=lambda fields: "vit",
    notes=("normalisation is not in the file; mmsegmentation's Segmenters use mean 0.5, std 0.5",),
)
