"""Everything that defines a Segmenter network, in one place."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args

import jax.numpy as jnp

from segmenter_jax.models.choices import (
    DTYPES,
    IMPLEMENTATIONS,
    Decoder,
    Gelu,
    HeadNorm,
    Method,
    MlpKind,
    Position,
    RopePeriods,
)
from segmenter_jax.models.placement import Placement, platform_of
from segmenter_jax.models.transformer import BlockConfig
from segmenter_jax.models.variants import VARIANTS


@dataclasses.dataclass(frozen=True)
class SegmenterConfig:
    """Everything that defines a Segmenter network.

    Attributes:
      num_classes: number of classes K.
      image_size: (height, width) in pixels of the training crop. Other sizes work.
      width, depth, num_heads: encoder width D, layers and heads.
      patch_size: side of a patch P, in pixels.
      mlp_dim: hidden width of the MLPs; None means 4 * width.
      in_channels: image channels.
      class_token: there is one (not in SigLIP and LOCA).
      distilled: a distillation token follows the class token (DeiT).
      num_registers: tokens without a position after those two (DINOv2 with registers, DINOv3).
      position: "learned" embeddings, or "rope": queries and keys of patches are rotated (DINOv3).
      position_size: (height, width) in pixels that learned positions are of; None: image_size.
      position_resize: how they are resized at run time, see `resampling.resize_matrix`.
      rope_base, rope_periods: longest period, and the type that periods are rounded to.
      mlp: "gelu", or "swiglu" with a gate beside the first layer.
      layer_scale: a learned factor per channel on every residual branch (DINOv2, DINOv3).
      dropout_rate, attention_dropout_rate, drop_path_rate: of the encoder: of tokens, of attention
        weights, and of stochastic depth, which grows linearly with depth.
      decoder: "mask", "linear", or "eomt", which has queries among the tokens of the encoder's last
        layers, and is not trained here.
      decoder_depth: layers of the mask decoder; of "eomt", those of the encoder with queries.
      num_queries: of "eomt".
      decoder_dropout_rate, decoder_attention_dropout_rate, decoder_drop_path_rate: of the mask
        decoder.
      head_norm, head_dropout_rate: of the linear decoder's input, in training: "batch" normalises
        its channels, and is folded into `head` when the model is kept; share of channels that an
        image is left without.
      layer_norm_eps, gelu: what the weights were trained with; Google's 1e-6 and "tanh", the
        reference Segmenter's 1e-5 and "exact".
      decoder_layer_norm_eps: of the mask decoder; None: as the encoder's.
      dtype: compute type: "float32", "bfloat16", or "auto", which takes float32 on a CPU and
        bfloat16 elsewhere; parameters, statistics, softmax, logits and loss are always float32.
      attention: implementation, see `models.attention`.
      remat: recompute each layer in the backward pass: less memory, more time, same results.
      scan_layers: run the encoder's layers as a loop: compiled once whatever the depth, same
        parameters and results but for the draws of dropout and stochastic depth.
    """

    num_classes: int
    image_size: tuple[int, int]
    width: int
    depth: int
    num_heads: int
    patch_size: int = 16
    mlp_dim: int | None = None
    in_channels: int = 3
    class_token: bool = True
    distilled: bool = False
    num_registers: int = 0
    position: Position = "learned"
    position_size: tuple[int, int] | None = None
    position_resize: Method = "bilinear"
    rope_base: float = 100.0
    rope_periods: RopePeriods = "float32"
    mlp: MlpKind = "gelu"
    layer_scale: bool = False
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.1
    decoder: Decoder = "mask"
    decoder_depth: int = 2
    num_queries: int = 100
    decoder_dropout_rate: float = 0.1
    decoder_attention_dropout_rate: float = 0.1
    decoder_drop_path_rate: float = 0.0
    head_norm: HeadNorm = "none"
    head_dropout_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    decoder_layer_norm_eps: float | None = None
    gelu: Gelu = "exact"
    dtype: str = "float32"
    attention: str = "auto"
    remat: bool = False
    scan_layers: bool = False

    def __post_init__(self) -> None:
        for field in ("image_size", "position_size"):
            if (size := getattr(self, field)) is not None:
                object.__setattr__(self, field, tuple(size))
        _check_ranges(self)
        _check_choices(self)
        if self.width % self.num_heads:
            raise ValueError(f"{self.width=} must be divisible by {self.num_heads=}")
        if self.position == "rope" and (head_dim := self.width // self.num_heads) % 4:
            raise ValueError(f"rotated positions need heads of 4, 8, ... channels, got {head_dim}")
        if self.decoder != "linear" and (self.head_norm != "none" or self.head_dropout_rate):
            raise ValueError(
                f"head_norm={self.head_norm!r} and head_dropout_rate={self.head_dropout_rate} are "
                f'of the linear decoder, not of decoder={self.decoder!r}; leave them "none" and 0'
            )
        if self.distilled and not self.class_token:
            raise ValueError("a distillation token needs class_token=True")
        if self.decoder == "eomt":
            _check_queries(self)

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> "SegmenterConfig":
        """Configuration of a published size.

        Args:
          variant: name and patch size, for example "L/16".
          **overrides: any other field; `num_classes` and `image_size` are required.

        Raises:
          ValueError: the variant is unknown.
        """
        name, _, patch = variant.partition("/")
        if name not in VARIANTS or not patch.isdigit():
            raise ValueError(
                f"{variant=} is unknown; choose a size from {tuple(VARIANTS)} and a patch size, "
                'for example "S/16"'
            )
        fields = VARIANTS[name] | {"patch_size": int(patch)}
        if (wanted := overrides.get("patch_size")) is not None:
            fields = with_patches(fields, wanted)
        return cls(**(fields | overrides))

    def encoder_block(self, mesh: Placement = None) -> BlockConfig:
        """What all blocks of the encoder share: the fields of the same names.

        Args:
          mesh: where the network runs, see `Segmenter`.
        """
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(BlockConfig)
            if field.name != "mesh"
        }
        fields["mlp_dim"] = self.mlp_dim or 4 * self.width
        fields["dtype"] = jnp.dtype(self.compute_dtype(mesh))
        return BlockConfig(**fields, mesh=mesh)

    def decoder_block(self, mesh: Placement = None) -> BlockConfig:
        """What all blocks of the mask decoder share; as `encoder_block`."""
        return dataclasses.replace(
            self.encoder_block(mesh),
            num_heads=max(self.width // 64, 1),
            mlp_dim=4 * self.width,
            mlp="gelu",
            layer_scale=False,
            layer_norm_eps=self.decoder_layer_norm_eps or self.layer_norm_eps,
            dropout_rate=self.decoder_dropout_rate,
            attention_dropout_rate=self.decoder_attention_dropout_rate,
        )

    def compute_dtype(self, mesh: Placement = None) -> str:
        """`dtype`, with "auto" decided by the devices of a mesh, see `Segmenter`."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if platform_of(mesh) == "cpu" else "bfloat16"

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches that learned positions are made for."""
        return patch_grid(self.position_size or self.image_size, self.patch_size)

    @property
    def num_positioned_tokens(self) -> int:
        """Class and distillation token, whose learned positions come before those of patches."""
        return self.class_token + self.distilled

    @property
    def num_extra_tokens(self) -> int:
        """Class token, distillation token and registers, as far as there are any."""
        return self.num_positioned_tokens + self.num_registers

    @property
    def num_upscales(self) -> int:
        """Doublings of the patch grid in the decoder "eomt", whose masks are at a quarter."""
        return max(int(math.log2(self.patch_size)) - 2, 1)

    @property
    def gives_scores(self) -> bool:
        """Whether outputs are scores of at least 0 ("eomt"); else they are logits."""
        return self.decoder == "eomt"

    @property
    def cell_size(self) -> int:
        """Side of the square that one output is for, in pixels: a patch, a pixel of "eomt"."""
        return 1 if self.gives_scores else self.patch_size


def _check_ranges(config: SegmenterConfig) -> None:
    positive = ("num_classes", "width", "depth", "num_heads", "patch_size", "in_channels")
    for field in (*positive, "num_queries"):
        if (value := getattr(config, field)) < 1:
            raise ValueError(f"{field} must be at least 1, got {value}")
    for field in ("num_registers", "decoder_depth"):
        if (value := getattr(config, field)) < 0:
            raise ValueError(f"{field} must be at least 0, got {value}")
    for field in ("mlp_dim", "rope_base", "layer_norm_eps", "decoder_layer_norm_eps"):
        value = getattr(config, field)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{field} must be positive, got {value}")
    for field in ("image_size", "position_size"):
        size = getattr(config, field)
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"{field} must be two positive sizes in pixels, got {size}")
    for field, value in vars(config).items():
        if field.endswith("_rate") and not 0 <= value < 1:
            raise ValueError(f"{field} must be in [0, 1), got {value}")


def _check_queries(config: SegmenterConfig) -> None:
    if not 1 <= config.decoder_depth <= config.depth:
        raise ValueError(
            f"decoder_depth={config.decoder_depth} must be in 1..depth={config.depth} with the "
            'decoder "eomt", whose queries enter so many layers before the encoder\'s end'
        )
    if config.patch_size % (parts := 2**config.num_upscales):
        raise ValueError(
            f'the decoder "eomt" needs a patch_size that {parts} divides, got {config.patch_size}'
        )


def _check_choices(config: SegmenterConfig) -> None:
    choices = {
        "decoder": get_args(Decoder),
        "head_norm": get_args(HeadNorm),
        "position": get_args(Position),
        "position_resize": get_args(Method),
        "rope_periods": get_args(RopePeriods),
        "mlp": get_args(MlpKind),
        "gelu": get_args(Gelu),
        "dtype": ("auto", *DTYPES),
        "attention": IMPLEMENTATIONS,
    }
    for field, allowed in choices.items():
        if (value := getattr(config, field)) not in allowed:
            raise ValueError(f"{field}={value!r} is unknown; choose from {allowed}")


def with_patches(fields: Mapping[str, Any], patch_size: int) -> dict[str, Any]:
    """Fields of a network for patches of another size: as many positions as before, each of one.

    Args:
      fields: of `SegmenterConfig`, among them `patch_size`.
      patch_size: wanted, in pixels.
    """
    changed = dict(fields) | {"patch_size": patch_size}
    if (size := fields.get("position_size")) and patch_size > 0:
        rows, columns = patch_grid(size, fields["patch_size"])
        changed["position_size"] = (rows * patch_size, columns * patch_size)
    return changed


def patch_grid(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(rows, columns) of patches that cover an image of `size` (height, width) pixels."""
    return math.ceil(size[0] / patch_size), math.ceil(size[1] / patch_size)
