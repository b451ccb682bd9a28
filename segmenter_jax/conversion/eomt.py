"""EoMT on DINOv2 and on DINOv3: the original files, and those of the Hugging Face hub."""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from segmenter_jax.conversion import dinov2, dinov3, huggingface
from segmenter_jax.conversion.arrays import ArrayFile, SourceError
from segmenter_jax.conversion.encoders import Naming, open_encoder
from segmenter_jax.conversion.mapping import (
    CONV,
    POSITIONS,
    SAME,
    TABLE_WITHOUT_CLASS_TOKEN,
    WITHOUT_CLASS_TOKEN,
    Layout,
    Row,
    linear,
    norm,
    packed,
    split_qkv,
)
from segmenter_jax.conversion.opening import Entry, Hints, Opened, normalized_as
from segmenter_jax.models import SegmenterConfig

NAME = "eomt"

# (in, out, 2, 2) and (in, 2, 2, out).
_TRANSPOSED = Layout(
    lambda theirs, shape: theirs.transpose(0, 2, 3, 1), lambda ours: ours.transpose(0, 3, 1, 2)
)
# (D, 1, 3, 3) and (3, 3, D).
_DEPTHWISE = Layout(
    lambda theirs, shape: theirs[:, 0].transpose(1, 2, 0),
    lambda ours: ours.transpose(2, 0, 1)[:, None],
)

_BACKBONE = "encoder.backbone."
_FIRST, _LAST = ("mlp/gate", "mlp/Dense_0"), linear("mlp/Dense_1", "mlp.fc2")

DINOV2_ORIGINAL = Naming(
    stem=(
        Row("cls", f"{_BACKBONE}cls_token", SAME),
        Row("registers", f"{_BACKBONE}reg_token", SAME),
        Row("pos_embedding", f"{_BACKBONE}pos_embed", WITHOUT_CLASS_TOKEN),
        *linear("embedding", f"{_BACKBONE}patch_embed.proj", CONV),
        *norm("encoder_norm", f"{_BACKBONE}norm"),
    ),
    block=f"{_BACKBONE}blocks.{{}}.",
    rows=dinov2.ORIGINAL.rows,
    mlps={"gelu": (*linear("mlp/Dense_0", "mlp.fc1"), *_LAST)},
)
# timm's names of both kinds are the same.
DINOV2_ORIGINAL_GATED = dataclasses.replace(
    DINOV2_ORIGINAL, mlps={"swiglu": (*packed(_FIRST, "mlp.fc1"), *_LAST)}
)
DINOV2_HUB = Naming(
    hub=True,
    stem=(
        Row("cls", "embeddings.cls_token", SAME),
        Row("registers", "embeddings.register_tokens", SAME),
        Row("pos_embedding", "embeddings.position_embeddings.weight", TABLE_WITHOUT_CLASS_TOKEN),
        *linear("embedding", "embeddings.patch_embeddings.projection", CONV),
        *norm("encoder_norm", "layernorm"),
    ),
    block="layers.{}.",
    rows=(
        *norm("LayerNorm_0", "norm1"),
        *norm("LayerNorm_1", "norm2"),
        *split_qkv("attention", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
        *linear("attention/out", "attention.out_proj"),
        Row("layer_scale_0", "layer_scale1.lambda1", SAME),
        Row("layer_scale_1", "layer_scale2.lambda1", SAME),
    ),
    mlps=dinov2.HUB.mlps,
)
DINOV3_ORIGINAL = Naming(
    stem=(
        Row("cls", f"{_BACKBONE}patch_embed.cls_token", SAME),
        Row("registers", f"{_BACKBONE}patch_embed.register_tokens", SAME),
        *linear("embedding", f"{_BACKBONE}patch_embed.patch_embeddings", CONV),
        *norm("encoder_norm", f"{_BACKBONE}norm"),
    ),
    block=f"{_BACKBONE}blocks.{{}}.",
    rows=dinov3.HUB.rows,
    mlps=dinov3.HUB.mlps,
)
DINOV3_HUB = Naming(
    hub=True,
    stem=(
        Row("cls", "embeddings.cls_token", SAME),
        Row("registers", "embeddings.register_tokens", SAME),
        *linear("embedding", "embeddings.patch_embeddings", CONV),
        *norm("encoder_norm", "layernorm"),
    ),
    block="layers.{}.",
    rows=dinov3.HUB.rows,
    mlps=dinov3.HUB.mlps,
)


@dataclasses.dataclass(frozen=True)
class _Head:
    """Names of the decoder's arrays; those with {} count from 0."""

    queries: str
    classes: str
    masks: tuple[str, str, str]
    upscale: str
    norm: str

    def rows(self, config: SegmenterConfig) -> list[Row]:
        """Rows of a network's decoder."""
        rows = [Row("decoder/queries", self.queries, POSITIONS)]
        rows += linear("decoder/class_head", self.classes)
        for i, name in enumerate(self.masks):
            rows += linear(f"decoder/mask_head_{i}", name)
        for i in range(config.num_upscales):
            ours, theirs = f"decoder/upscale_{i}", self.upscale.format(i)
            rows += linear(f"{ours}/transposed", f"{theirs}.conv1", _TRANSPOSED)
            rows.append(Row(f"{ours}/depthwise", f"{theirs}.conv2.weight", _DEPTHWISE))
            rows += norm(f"{ours}/norm", f"{theirs}.{self.norm}")
        return rows


_ORIGINAL_HEAD = _Head(
    "q.weight", "class_head", ("mask_head.0", "mask_head.2", "mask_head.4"), "upscale.{}", "norm"
)
_HUB_HEAD = _Head(
    queries="query.weight",
    classes="class_predictor",
    masks=("mask_head.fc1", "mask_head.fc2", "mask_head.fc3"),
    upscale="upscale_block.block.{}",
    norm="layernorm2d",
)

_PROBABILITIES = "attn_mask_probs"
_MEAN, _STD = "encoder.pixel_mean", "encoder.pixel_std"
_DROPPED = (
    (r"attn_mask_probs$", "of the masks of attention in training, which are off"),
    (r"encoder\.pixel_(mean|std)$", "the normalisation, in the description"),
    (r".*\.mask_token$", "token of masked pretraining"),
    (r"criterion\.", "weights of the loss"),
)

# Cosine of the angle between the patch kernels of a file and its base, above which the file does
# not hold differences: those are small, and point elsewhere.
_SAME_WEIGHTS = 0.5


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""

    def has(beginning: str) -> bool:
        return any(name.startswith(beginning) for name in names)

    # Any of the decoder's arrays tells, so that the file is not taken for its encoder alone.
    return (has(_BACKBONE) and (has("q.") or has("class_head.") or has("upscale."))) or (
        has("layers.") and (has("query.") or has("class_predictor.") or has("upscale_block."))
    )


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    naming, head = _naming(file)
    said = huggingface.read_config(file)
    rotated = naming in (DINOV3_ORIGINAL, DINOV3_HUB)
    fields = _fields(file, said, head) | {"layer_scale": True}
    if rotated:
        fields |= {
            "position": "rope",
            "rope_base": dinov3.rope_base(file, said),
            "layer_norm_eps": 1e-5,
        }
        if not ("image_size" in fields or hints.image_size):
            raise SourceError(
                f"{file.path}: neither it nor a config.json beside it says the size of its images; "
                "give image_size"
            )
    else:
        # Its own code has one size only; this is how the size of other weights is changed to it.
        fields |= {"layer_norm_eps": 1e-6, "position_resize": "bicubic_antialias"}
    opened = open_encoder(
        file,
        NAME,
        naming,
        fields,
        hints,
        _DROPPED,
        _images(file),
        dinov3.HEADS if rotated else dinov2.HEADS,
        ("attention/key/bias",) if rotated else (),
        head.rows,
    )
    size = min(opened.config.image_size)
    described = {"base_size": size} | _classes(said, opened.config.num_classes)
    opened = dataclasses.replace(opened, description=opened.description | described)
    if naming is DINOV3_ORIGINAL:
        return _with_base(file, opened, hints.base)
    if hints.base is not None:
        raise SourceError(f"{file.path}: holds whole weights, so there is no base for them")
    return opened


def _naming(file: ArrayFile) -> tuple[Naming, _Head]:
    names = file.arrays
    if not any(name.startswith(_BACKBONE) for name in names):
        plain = any(name.startswith("embeddings.patch_embeddings.projection.") for name in names)
        return (DINOV2_HUB if plain else DINOV3_HUB), _HUB_HEAD
    if any(name.startswith(f"{_BACKBONE}patch_embed.patch_embeddings.") for name in names):
        return DINOV3_ORIGINAL, _ORIGINAL_HEAD
    first, last = (file.shape(f"{_BACKBONE}blocks.0.mlp.fc{i}.weight", 2) for i in (1, 2))
    gated = first[0] == 2 * last[1]
    return (DINOV2_ORIGINAL_GATED if gated else DINOV2_ORIGINAL), _ORIGINAL_HEAD


def _fields(file: ArrayFile, said: dict[str, Any], head: _Head) -> dict[str, Any]:
    """Fields of `SegmenterConfig` that the decoder's arrays and a `config.json` show."""
    if _PROBABILITIES in file.arrays:
        (layers,) = file.shape(_PROBABILITIES, 1)
        if (values := file.read(_PROBABILITIES)).any():
            raise SourceError(
                f"{file.path}: array {_PROBABILITIES} is {values.tolist()}: masks of attention "
                "are on, expected all 0, as training leaves them at its end"
            )
    elif (layers := huggingface.whole_number(file, said, "num_blocks")) is None:
        raise SourceError(
            f"{file.path}: neither an array {_PROBABILITIES} nor num_blocks of a config.json says "
            "in how many layers there are queries"
        )
    fields = {
        "decoder": "eomt",
        "decoder_depth": layers,
        "num_queries": file.shape(head.queries, 2)[0],
        "num_classes": file.shape(f"{head.classes}.bias", 1)[0] - 1,
    }
    size = said.get("image_size")
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size):
        return fields | {"image_size": tuple(size)}
    if (side := huggingface.whole_number(file, said, "image_size")) is not None:
        fields["image_size"] = (side, side)
    return fields


def _images(file: ArrayFile) -> dict[str, Any]:
    """Normalisation, which the original files hold."""
    if not {_MEAN, _STD} <= file.arrays.keys():
        return normalized_as("imagenet")
    # As it was written, not as float32 spells it.
    return {
        field: tuple(round(float(value), 6) for value in file.read(name).ravel())
        for field, name in (("mean", _MEAN), ("std", _STD))
    }


def _classes(said: dict[str, Any], count: int) -> dict[str, Any]:
    """Names of the classes, where a `config.json` has other ones than placeholders."""
    names = said.get("id2label")
    found = [names.get(str(i)) for i in range(count)] if isinstance(names, dict) else [None]
    if not all(isinstance(n, str) and not n.startswith("LABEL_") for n in found):
        return {}
    return {"classes": tuple(found)}


def _with_base(file: ArrayFile, opened: Opened, base: Opened | None) -> Opened:
    """Adds DINOv3's encoder, whose licence lets the released files hold differences only."""
    if base is None:
        raise SourceError(
            f"{file.path}: EoMT on DINOv3 in its original form, where the encoder is the "
            "difference from DINOv3's weights: give base, the file or folder of those "
            "(--base of python -m segmenter_jax.convert)"
        )
    encoder = {name: e for name, e in opened.entries.items() if name.startswith("encoder/")}
    shapes = {name: e.shape for name, e in encoder.items()}
    if base.format != dinov3.NAME or {n: e.shape for n, e in base.entries.items()} != shapes:
        raise SourceError(
            f"{base.source}: as the base of {file.path.name}, expected a DINOv3 of width "
            f"{opened.config.width} with {opened.config.depth} layers; found {base.format}, width "
            f"{base.config.width}, {base.config.depth} layers"
        )
    kernel = "encoder/embedding/kernel"
    ours, theirs = (e[kernel].read().ravel() for e in (encoder, base.entries))
    if ours @ theirs > _SAME_WEIGHTS * np.linalg.norm(ours) * np.linalg.norm(theirs):
        note = f"its encoder is whole, not a difference: {base.source} was not added"
        return dataclasses.replace(opened, notes=(*opened.notes, note))

    sums = {name: _sum(base.entries[name], e) for name, e in encoder.items()}
    files = [*opened.files, *base.files]
    return dataclasses.replace(opened, entries=opened.entries | sums, files=files)


def _sum(base: Entry, difference: Entry) -> Entry:
    return Entry(
        f"{base.theirs} of the base + {difference.theirs}",
        base.shape,
        lambda: base.read() + difference.read(),
    )
