"""DINOv2 with and without registers: the original files, and those of the Hugging Face hub."""

from collections.abc import Collection

from segmenter_jax.conversion.arrays import ArrayFile
from segmenter_jax.conversion.encoders import Naming, open_encoder
from segmenter_jax.conversion.mapping import (
    CONV,
    SAME,
    Row,
    fused_qkv,
    linear,
    norm,
    packed,
    split_qkv,
)
from segmenter_jax.conversion.opening import Hints, Opened, normalized_as

NAME = "dinov2"

# The gate comes first.
_GATED = ("mlp/gate", "mlp/Dense_0")
_NORMS = (*norm("LayerNorm_0", "norm1"), *norm("LayerNorm_1", "norm2"))
_GELU = (*linear("mlp/Dense_0", "mlp.fc1"), *linear("mlp/Dense_1", "mlp.fc2"))

ORIGINAL = Naming(
    stem=(
        Row("cls", "cls_token", SAME),
        Row("registers", "register_tokens", SAME),
        Row("pos_embedding", "pos_embed", SAME),
        *linear("embedding", "patch_embed.proj", CONV),
        *norm("encoder_norm", "norm"),
    ),
    block="blocks.{}.",
    rows=(
        *_NORMS,
        *fused_qkv("attention", "attn.qkv."),
        *linear("attention/out", "attn.proj"),
        Row("layer_scale_0", "ls1.gamma", SAME),
        Row("layer_scale_1", "ls2.gamma", SAME),
    ),
    mlps={
        "gelu": _GELU,
        "swiglu": (*packed(_GATED, "mlp.w12"), *linear("mlp/Dense_1", "mlp.w3")),
    },
)
HUB = Naming(
    hub=True,
    stem=(
        Row("cls", "embeddings.cls_token", SAME),
        Row("registers", "embeddings.register_tokens", SAME),
        Row("pos_embedding", "embeddings.position_embeddings", SAME),
        *linear("embedding", "embeddings.patch_embeddings.projection", CONV),
        *norm("encoder_norm", "layernorm"),
    ),
    block="encoder.layer.{}.",
    rows=(
        *_NORMS,
        *split_qkv(
            "attention",
            ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ),
        *linear("attention/out", "attention.output.dense"),
        Row("layer_scale_0", "layer_scale1.lambda1", SAME),
        Row("layer_scale_1", "layer_scale2.lambda1", SAME),
    ),
    mlps={
        "gelu": _GELU,
        "swiglu": (*packed(_GATED, "mlp.weights_in"), *linear("mlp/Dense_1", "mlp.weights_out")),
    },
)

_DROPPED = (
    (r"(embeddings\.)?mask_token$", "token of masked pretraining"),
    (r"(classifier|head)\.", "classification head"),
)
HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}


def _naming(names: Collection[str]) -> Naming | None:
    known = set(names)
    found = (n for n in (ORIGINAL, HUB) if n.marks | {n.theirs("pos_embedding")} <= known)
    naming = next(found, None)
    # Without either of these they are timm's.
    own = {"mask_token", ORIGINAL.theirs("registers")} & known
    return None if naming is ORIGINAL and not own else naming


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    return _naming(names) is not None


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    naming = _naming(file.arrays)
    registers = naming.theirs("registers") in file.arrays
    fields = {
        "layer_scale": True,
        "layer_norm_eps": 1e-6,
        # Three rules for one family, each with its files.
        "position_resize": "bicubic_antialias"
        if registers
        else "bicubic_offset"
        if naming is ORIGINAL
        else "bicubic",
    }
    images = normalized_as("imagenet")
    return open_encoder(file, NAME, naming, fields, hints, _DROPPED, images, HEADS)
