"""timm's and DeiT's ViT checkpoints; the reference Segmenter's encoder has the same names."""

import re
from typing import Any

from segmenter_jax.conversion.mapping import (
    CONV,
    LINEAR,
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
    ("LayerNorm_0/scale", "norm1.weight", SAME),
    ("LayerNorm_0/bias", "norm1.bias", SAME),
    ("LayerNorm_1/scale", "norm2.weight", SAME),
    ("LayerNorm_1/bias", "norm2.bias", SAME),
    ("attention/query/kernel", "attn.qkv.weight", fused_kernel(0)),
    ("attention/key/kernel", "attn.qkv.weight", fused_kernel(1)),
    ("attention/value/kernel", "attn.qkv.weight", fused_kernel(2)),
    ("attention/query/bias", "attn.qkv.bias", fused_bias(0)),
    ("attention/key/bias", "attn.qkv.bias", fused_bias(1)),
    ("attention/value/bias", "attn.qkv.bias", fused_bias(2)),
    ("attention/out/kernel", "attn.proj.weight", LINEAR),
    ("attention/out/bias", "attn.proj.bias", SAME),
    ("mlp/Dense_0/kernel", "mlp.fc1.weight", LINEAR),
    ("mlp/Dense_0/bias", "mlp.fc1.bias", SAME),
    ("mlp/Dense_1/kernel", "mlp.fc2.weight", LINEAR),
    ("mlp/Dense_1/bias", "mlp.fc2.bias", SAME),
)
_CLASS_TOKEN = ("cls", "cls_token", SAME)
_DISTILLATION_TOKEN = ("dist", "dist_token", SAME)
_STEM = (
    ("pos_embedding", "pos_embed", SAME),
    ("embedding/kernel", "patch_embed.proj.weight", CONV),
    ("embedding/bias", "patch_embed.proj.bias", SAME),
)
_NORM = (("encoder_norm/scale", "norm.weight", SAME), ("encoder_norm/bias", "norm.bias", SAME))

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


def describe_encoder(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """See `Format.describe`."""
    kernel_name = f"{prefix}patch_embed.proj.weight"
    kernel = shapes.get(kernel_name, 4)
    distilled = f"{prefix}dist_token" in shapes
    hidden = shapes.get(f"{prefix}blocks.0.mlp.fc1.bias", 1)[0]
    return {
        "width": kernel[0],
        "depth": shapes.count(rf"{re.escape(prefix)}blocks\.(\d+)\."),
        "patch_size": shapes.patch_size(kernel, kernel_name, 2, 3),
        "in_channels": kernel[1],
        "distilled": distilled,
        "mlp_dim": mlp_dim(kernel[0], hidden),
        "patches": shapes.get(f"{prefix}pos_embed", 3)[1] - (2 if distilled else 1),
    }


TIMM = Format(
    name="timm",
    detect=lambda names: any(name.startswith("blocks.") for name in names),
    describe=lambda shapes: describe_encoder(shapes, ""),
    table=lambda config, shapes: encoder_rows(config, ""),
    dropped=HEADS,
    layer_norm_eps=1e-6,
    gelu="exact",
    # AugReg and plain DeiT weights look the same; only distilled ones are DeiT's for certain.
    normalization=lambda fields: "deit" if fields["distilled"] else None,
)
