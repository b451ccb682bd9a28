"""ViTs of the Hugging Face hub: MAE's, and classifiers.

MAE's original files have timm's names, see `timm`.
"""

from collections.abc import Collection

from segmenter_jax.conversion import huggingface
from segmenter_jax.conversion.arrays import ArrayFile
from segmenter_jax.conversion.encoders import Naming, open_encoder
from segmenter_jax.conversion.mapping import CONV, SAME, Row, linear, norm, split_qkv
from segmenter_jax.conversion.opening import Hints, Opened, normalized_as

NAME = "mae"

HUB = Naming(
    hub=True,
    stem=(
        Row("cls", "embeddings.cls_token", SAME),
        Row("pos_embedding", "embeddings.position_embeddings", SAME),
        *linear("embedding", "embeddings.patch_embeddings.projection", CONV),
        *norm("encoder_norm", "layernorm"),
    ),
    block="encoder.layer.{}.",
    rows=(
        *norm("LayerNorm_0", "layernorm_before"),
        *norm("LayerNorm_1", "layernorm_after"),
        *split_qkv(
            "attention",
            ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ),
        *linear("attention/out", "attention.output.dense"),
    ),
    mlps={
        "gelu": (
            *linear("mlp/Dense_0", "intermediate.dense"),
            *linear("mlp/Dense_1", "output.dense"),
        )
    },
)

_DROPPED = (
    (r"decoder\.", "decoder of masked pretraining"),
    (r"(embeddings\.)?mask_token$", "token of masked pretraining"),
    (r"(classifier|pooler)\.", "classification head"),
)
_HEADS = {768: 12, 1024: 16, 1280: 16}


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    return HUB.marks <= set(names)


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    fields = {"gelu": "exact", "layer_norm_eps": 1e-6, "position_resize": "bicubic"}
    pretrained = huggingface.read_config(file).get("model_type") == "vit_mae"
    images = normalized_as("imagenet") if pretrained else {}
    return open_encoder(file, NAME, HUB, fields, hints, _DROPPED, images, _HEADS)
