"""What fields of a network may be; the networks themselves are not imported for it."""

from typing import Literal

Decoder = Literal["mask", "linear", "eomt"]
HeadNorm = Literal["none", "batch"]
Position = Literal["learned", "rope"]
RopePeriods = Literal["float32", "bfloat16"]
Gelu = Literal["exact", "tanh"]
MlpKind = Literal["gelu", "swiglu"]

# Rules by which position embeddings are resized, see `resampling.resize_matrix`.
Method = Literal[
    "bilinear",
    "bicubic",
    "bicubic_offset",
    "bilinear_antialias",
    "bicubic_antialias",
    "corner_linear",
]

DTYPES = ("float32", "bfloat16")

# Of attention, explained in `attention`.
IMPLEMENTATIONS = ("auto", "xla", "heads", "cudnn", "resident", "splash")

# Mean and standard deviation per RGB channel, for values in [0, 1]. Those of "deit" are ImageNet's
# as the reference has them: for values in [0, 255], rounded to two decimals.
NORMALIZATION = {
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deit": (
        (123.68 / 255, 116.28 / 255, 103.53 / 255),
        (58.40 / 255, 57.12 / 255, 57.38 / 255),
    ),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Of DINOv3's weights for satellite images.
    "sat493m": ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
}
