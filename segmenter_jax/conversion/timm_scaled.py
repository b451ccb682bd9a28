"""timm's ViTs with layer scale: DINOv2, DINOv3 (as timm's EVA) and DeiT-III; also DeiT-III's own.

They have no `mask_token`; the positions of registers and, often, of the class token are left out.
"""

import dataclasses
from collections.abc import Collection

import numpy as np

from segmenter_jax.conversion.arrays import ArrayFile
from segmenter_jax.conversion.dinov3 import images
from segmenter_jax.conversion.encoders import Naming, open_encoder
from segmenter_jax.conversion.mapping import (
    CONV,
    SAME,
    WITHOUT_CLASS_TOKEN,
    Layout,
    Row,
    fused_qkv,
    linear,
    norm,
    packed,
)
from segmenter_jax.conversion.opening import Hints, Opened, is_square, normalized_as

NAME = "timm_scaled"

_STEM = (
    Row("cls", "cls_token", SAME),
    Row("registers", "reg_token", SAME),
    *linear("embedding", "patch_embed.proj", CONV),
    *norm("encoder_norm", "norm"),
)
_POSITION = Row("pos_embedding", "pos_embed", SAME)
_BLOCK = (
    *norm("LayerNorm_0", "norm1"),
    *norm("LayerNorm_1", "norm2"),
    *linear("attention/out", "attn.proj"),
)
# Names of the layer scales: timm's ViT; its EVA and DeiT-III's own code.
_SCALES = (("ls1.gamma", "ls2.gamma"), ("gamma_1", "gamma_2"))
_GELU = (*linear("mlp/Dense_0", "mlp.fc1"), *linear("mlp/Dense_1", "mlp.fc2"))
_MLPS = {
    "gelu": _GELU,
    "swiglu": (
        *packed(("mlp/gate", "mlp/Dense_0"), "mlp.fc1"),
        *linear("mlp/Dense_1", "mlp.fc2"),
    ),
}
_EVA_MLPS = {
    "gelu": _GELU,
    "swiglu": (
        *linear("mlp/gate", "mlp.fc1_g"),
        *linear("mlp/Dense_0", "mlp.fc1_x"),
        *linear("mlp/Dense_1", "mlp.fc2"),
    ),
}
_BIAS = Layout(lambda theirs, shape: theirs.reshape(shape), np.ravel)

_DROPPED = ((r"(head|fc_norm)\.", "classification head"),)
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}
_ROTATED_HEADS = _HEADS | {1280: 20, 4096: 32}


def _scales(names: Collection[str]) -> tuple[str, str] | None:
    return next((s for s in _SCALES if f"blocks.0.{s[0]}" in names), None)


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    # Only DINOv2's and DINOv3's own files have these.
    theirs = {"mask_token", "register_tokens", "storage_tokens"}
    known = set(names)
    return bool(_scales(known)) and "blocks.0.attn.qkv.weight" in known and not theirs & known


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    first, second = _scales(file.arrays)
    rows = (*_BLOCK, Row("layer_scale_0", first, SAME), Row("layer_scale_1", second, SAME))
    rotated = "reg_token" in file.arrays and _POSITION.theirs not in file.arrays
    fields = {"layer_scale": True, "layer_norm_eps": 1e-5 if rotated else 1e-6}
    if not rotated:
        rows += tuple(fused_qkv("attention", "attn.qkv."))
        naming = Naming((*_STEM, _position(file)), "blocks.{}.", rows, _MLPS)
        fields["position_resize"] = "bicubic_antialias"
        described = normalized_as("imagenet")
        return open_encoder(file, NAME, naming, fields, hints, _DROPPED, described, _HEADS)
    kernels = [r for r in fused_qkv("attention", "attn.qkv.") if r.ours.endswith("kernel")]
    biases = [Row(f"attention/{n}/bias", f"attn.{n[0]}_bias", _BIAS) for n in ("query", "value")]
    zeros = ["attention/key/bias"]
    if "blocks.0.attn.q_bias" not in file.arrays:
        zeros += [row.ours for row in biases]
    key = Row("attention/key/bias", "attn.k_bias", _BIAS)
    naming = Naming(_STEM, "blocks.{}.", (*rows, *kernels, *biases, key), _EVA_MLPS)
    fields["position"] = "rope"
    described, notes = images(file)
    opened = open_encoder(
        file, NAME, naming, fields, hints, _DROPPED, described, _ROTATED_HEADS, tuple(zeros)
    )
    periods = "periods of rotations are not in timm's files: float32, as timm computes them"
    return dataclasses.replace(opened, notes=(*opened.notes, periods, *notes))


def _position(file: ArrayFile) -> Row:
    """Row of the position embeddings, which may have none for the class token."""
    tokens = file.shape(_POSITION.theirs, 3)[1]
    alone = is_square(tokens) and not is_square(tokens - 1)
    return _POSITION._replace(layout=WITHOUT_CLASS_TOKEN) if alone else _POSITION
