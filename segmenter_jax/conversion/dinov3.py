"""DINOv3: the original files, and those of the Hugging Face hub."""

import dataclasses
from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np

from segmenter_jax.conversion import huggingface
from segmenter_jax.conversion.arrays import ArrayFile, SourceError
from segmenter_jax.conversion.encoders import Naming, open_encoder
from segmenter_jax.conversion.mapping import CONV, SAME, Row, fused_qkv, linear, norm, split_qkv
from segmenter_jax.conversion.opening import Hints, Opened, normalized_as

NAME = "dinov3"

_NORMS = (*norm("LayerNorm_0", "norm1"), *norm("LayerNorm_1", "norm2"))


def _gated(gate: str, value: str, out: str) -> tuple[Row, ...]:
    rows = (linear("mlp/gate", gate), linear("mlp/Dense_0", value), linear("mlp/Dense_1", out))
    return tuple(row for part in rows for row in part)


ORIGINAL = Naming(
    stem=(
        Row("cls", "cls_token", SAME),
        Row("registers", "storage_tokens", SAME),
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
        "gelu": (*linear("mlp/Dense_0", "mlp.fc1"), *linear("mlp/Dense_1", "mlp.fc2")),
        "swiglu": _gated("mlp.w1", "mlp.w2", "mlp.w3"),
    },
)
HUB = Naming(
    hub=True,
    stem=(
        Row("cls", "embeddings.cls_token", SAME),
        Row("registers", "embeddings.register_tokens", SAME),
        *linear("embedding", "embeddings.patch_embeddings", CONV),
        *norm("encoder_norm", "norm"),
    ),
    block="layer.{}.",
    rows=(
        *_NORMS,
        *split_qkv("attention", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
        *linear("attention/out", "attention.o_proj"),
        Row("layer_scale_0", "layer_scale1.lambda1", SAME),
        Row("layer_scale_1", "layer_scale2.lambda1", SAME),
    ),
    mlps={
        "swiglu": _gated("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        "gelu": (*linear("mlp/Dense_0", "mlp.up_proj"), *linear("mlp/Dense_1", "mlp.down_proj")),
    },
)

_PERIODS = "rope_embed.periods"
_DROPPED = (
    (r"(embeddings\.)?mask_token$", "token of masked pretraining"),
    (r"rope_embed\.periods$", "computed by the network"),
    (r"blocks\.\d+\.attn\.qkv\.bias_mask$", "says that the key's bias is 0"),
    (r"local_cls_norm\.", "norm of the class token of small crops"),
    (r"(classifier|head)\.", "classification head"),
)
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32}


def _naming(names: Collection[str]) -> Naming | None:
    known = set(names)
    for naming in (ORIGINAL, HUB):
        # The hub's files have no bias of keys, and those of the largest model none of all three.
        if naming.marks <= known and naming.theirs("registers") in known:
            return naming
    return None


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    return _naming(names) is not None


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    naming = _naming(file.arrays)
    said = huggingface.read_config(file) if naming.hub else {}
    fields = {
        "position": "rope",
        "rope_base": rope_base(file, said),
        "layer_scale": True,
        "layer_norm_eps": 1e-5,
    }
    if _PERIODS in file.arrays:
        fields |= _periods(file)
    names, fused = file.arrays, "blocks.0.attn.qkv.bias"
    zeros = []
    # Keys have no bias: it is absent, or masked, and under rotations it would count.
    if f"{fused}_mask" in names or not {fused, "layer.0.attention.k_proj.bias"} & names.keys():
        zeros += ["attention/key/bias"]
    if not {fused, "layer.0.attention.q_proj.bias"} & names.keys():
        zeros += ["attention/query/bias", "attention/value/bias"]
    described, notes = images(file)
    opened = open_encoder(
        file, NAME, naming, fields, hints, _DROPPED, described, HEADS, tuple(zeros)
    )
    return dataclasses.replace(opened, notes=(*opened.notes, *notes))


def rope_base(file: ArrayFile, said: dict[str, Any]) -> float:
    """Longest period that a `config.json` says, in the older or the newer way; else the usual."""
    inner = said.get("rope_parameters")
    said = inner if isinstance(inner, dict) else said
    return huggingface.positive_number(file, said, "rope_theta", 100.0)


def _periods(file: ArrayFile) -> dict[str, Any]:
    """How the stored periods are rounded."""
    stored = file.read(_PERIODS)
    count = stored.size
    exact = np.float32(100.0) ** (np.arange(count, dtype=np.float32) / np.float32(count))
    kinds = {
        "bfloat16": exact.astype(ml_dtypes.bfloat16).astype(np.float32),
        "float32": exact,
    }
    for kind, expected in kinds.items():
        if np.allclose(stored, expected, rtol=1e-6):
            return {"rope_periods": kind}
    raise SourceError(
        f"{file.path}: array {_PERIODS} holds {stored[:3]}..., expected powers of 100 "
        f"from 1 in {count} steps, in float32 or bfloat16"
    )


def images(file: ArrayFile) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Normalisation by the names of file and folder, and what to say where nothing tells it."""
    names = file.path.parent.name + file.path.name
    for weights, normalization in (("sat493m", "sat493m"), ("lvd1689m", "imagenet")):
        if weights in names:
            return normalized_as(normalization), ()
    said = huggingface.normalization(file)
    note = (
        "neither a file beside the weights nor their name says how images were normalised: taken "
        "for ImageNet's; DINOv3's weights for satellite images (sat493m) need their own"
    )
    return said or normalized_as("imagenet"), () if said else (note,)
