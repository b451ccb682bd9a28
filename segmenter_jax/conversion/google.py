"""Google's ViT checkpoints: `vision_transformer` (two numberings of modules) and `big_vision`."""

from typing import Any

from segmenter_jax.conversion.mapping import (
    SAME,
    WITHOUT_CLASS_TOKEN,
    Format,
    Row,
    Shapes,
    is_square,
    mlp_dim,
    prefixed,
)
from segmenter_jax.models import SegmenterConfig

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

_BLOCK = (
    ("LayerNorm_0/scale", "LayerNorm_0/scale", SAME),
    ("LayerNorm_0/bias", "LayerNorm_0/bias", SAME),
    ("attention/query/kernel", "{attention}/query/kernel", SAME),
    ("attention/query/bias", "{attention}/query/bias", SAME),
    ("attention/key/kernel", "{attention}/key/kernel", SAME),
    ("attention/key/bias", "{attention}/key/bias", SAME),
    ("attention/value/kernel", "{attention}/value/kernel", SAME),
    ("attention/value/bias", "{attention}/value/bias", SAME),
    ("attention/out/kernel", "{attention}/out/kernel", SAME),
    ("attention/out/bias", "{attention}/out/bias", SAME),
    ("LayerNorm_1/scale", "{norm2}/scale", SAME),
    ("LayerNorm_1/bias", "{norm2}/bias", SAME),
    ("mlp/Dense_0/kernel", "{mlp}/Dense_0/kernel", SAME),
    ("mlp/Dense_0/bias", "{mlp}/Dense_0/bias", SAME),
    ("mlp/Dense_1/kernel", "{mlp}/Dense_1/kernel", SAME),
    ("mlp/Dense_1/bias", "{mlp}/Dense_1/bias", SAME),
)
_STEM = (
    ("embedding/kernel", "embedding/kernel", SAME),
    ("embedding/bias", "embedding/bias", SAME),
    ("encoder_norm/scale", "Transformer/encoder_norm/scale", SAME),
    ("encoder_norm/bias", "Transformer/encoder_norm/bias", SAME),
)
_CLASS_TOKEN = ("cls", "cls", SAME)
_POSITION = "Transformer/posembed_input/pos_embedding"
# big_vision adds position embeddings before the class token, where there is one.
_SEPARATE_POSITION = "pos_embedding"


def _numbering(shapes: Shapes) -> dict[str, str]:
    released = "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"
    return _RELEASED if released in shapes else _NEWER


def _separate_position_has_class_token(shapes: Shapes) -> bool:
    tokens = shapes.get(_SEPARATE_POSITION, 3)[1]
    return is_square(tokens - 1) and not is_square(tokens)


def _describe(shapes: Shapes) -> dict[str, Any]:
    kernel = shapes.get("embedding/kernel", 4)
    width = kernel[3]
    depth = shapes.count(r"Transformer/encoderblock_(\d+)/")
    numbers = _numbering(shapes)
    block = "Transformer/encoderblock_0/"
    heads = shapes.get(f"{block}{numbers['attention']}/query/kernel", 3)[1]
    hidden = shapes.get(f"{block}{numbers['mlp']}/Dense_0/bias", 1)[0]
    if _POSITION in shapes:
        patches = shapes.get(_POSITION, 3)[1] - 1
    else:
        tokens = shapes.get(_SEPARATE_POSITION, 3)[1]
        patches = tokens - _separate_position_has_class_token(shapes)
    return {
        "width": width,
        "depth": depth,
        "num_heads": heads,
        "patch_size": shapes.patch_size(kernel, "embedding/kernel", 0, 1),
        "in_channels": kernel[2],
        "mlp_dim": mlp_dim(width, hidden),
        "patches": patches,
    }


def _table(config: SegmenterConfig, shapes: Shapes) -> list[Row]:
    stem = list(_STEM)
    if "cls" in shapes:
        stem.append(_CLASS_TOKEN)
    if _POSITION in shapes:
        stem.append(("pos_embedding", _POSITION, SAME))
    elif _separate_position_has_class_token(shapes):
        stem.append(("pos_embedding", _SEPARATE_POSITION, SAME))
    else:
        stem.append(("pos_embedding", _SEPARATE_POSITION, WITHOUT_CLASS_TOKEN))
    rows = prefixed(stem, "encoder/", "")
    numbers = _numbering(shapes)
    block = [(ours, theirs.format(**numbers), layout) for ours, theirs, layout in _BLOCK]
    for i in range(config.depth):
        rows += prefixed(block, f"encoder/encoderblock_{i}/", f"Transformer/encoderblock_{i}/")
    return rows


GOOGLE = Format(
    name="google",
    detect=lambda names: any(name.startswith("Transformer/") for name in names),
    describe=_describe,
    table=_table,
    dropped=(
        (r"head/", "classification head"),
        (r"pre_logits/", "layer before the classification head"),
        (r"MAPHead_0/", "attention pooling before the classification head"),
    ),
    layer_norm_eps=1e-6,
    gelu="tanh",
    normalization=lambda fields: "vit",
)
