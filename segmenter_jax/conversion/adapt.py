"""Fits a checkpoint's parameters to a network, and reports what happened to each.

Rules:
  - position embeddings of another grid are resized; class and distillation tokens' are kept;
  - patch kernels of another size are resized by a pseudo-inverse, see `resize_patch_kernel`;
  - for more input channels, the patch kernels of the first ones are kept and each further channel
    gets their mean, so an image whose further channels are 0 (their mean, after normalisation)
    gives exactly the source's tokens; for fewer, each gets the sum over the source's channels
    divided by the new number, so a grey image gives exactly the source's tokens;
  - of the parameters with an axis of classes, a class gets what the one of the same name has, and
    the others stay initialised; without names all is taken for the same number of classes, and
    nothing for another one;
  - a decoder of another kind or depth stays initialised as a whole;
  - an encoder of another size or set of tokens is an error.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.class_names import CLASS_AXES, Agreement
from segmenter_jax.conversion.mapping import Shape
from segmenter_jax.conversion.opening import Opened
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.choices import Method
from segmenter_jax.models.params import Params, abstract_params, init_some_params
from segmenter_jax.models.resampling import resize_matrix
from segmenter_jax.models.vit import resize_position_embedding
from segmenter_jax.runtime.tables import merge_blocks

_POSITION = "encoder/pos_embedding"
_PATCH_KERNEL = "encoder/embedding/kernel"
# What makes an encoder another one (patches are resized), and what it only computes otherwise.
ENCODER_FIELDS = (
    *("width", "depth", "num_heads", "mlp", "mlp_dim", "layer_scale"),
    *("class_token", "distilled", "num_registers", "position", "rope_base"),
)
ENCODER_NUMERICS = ("layer_norm_eps", "gelu", "position_resize", "rope_periods")


@dataclasses.dataclass
class Report:
    """What happened to every parameter; `str()` is a summary with shapes.

    Attributes:
      header: the source, its format and network.
      classes: which were taken over; empty where nothing decided it.
      mapped: (our name, their name, shape).
      resized: (our name, their shape, our shape, how).
      initialised: (our name, shape, why).
      dropped: (their name, shape, why).
      warnings: sentences.
    """

    header: str
    classes: str = ""
    mapped: list[tuple[str, str, Shape]] = dataclasses.field(default_factory=list)
    resized: list[tuple[str, Shape, Shape, str]] = dataclasses.field(default_factory=list)
    initialised: list[tuple[str, Shape, str]] = dataclasses.field(default_factory=list)
    dropped: list[tuple[str, Shape, str]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def lines(self, with_mapped: bool = True) -> list[str]:
        """The report, with or without what was simply mapped; repeated blocks share a line."""
        mapped = self.mapped if with_mapped else []
        groups = {
            "mapped": [f"{ours} <- {theirs} {shape}" for ours, theirs, shape in mapped],
            "resized": [f"{n} {old} -> {new}, {how}" for n, old, new, how in self.resized],
            "newly initialised": [f"{n} {shape}: {why}" for n, shape, why in self.initialised],
            "dropped": [f"{n} {shape}: {why}" for n, shape, why in self.dropped],
        }
        lines = [self.header, *([f"classes: {self.classes}"] if self.classes else [])]
        for title, items in groups.items():
            lines.append(f"{title}: {len(self.mapped) if title == 'mapped' else len(items)}")
            lines += [f"  {item}" for item in merge_blocks(items)]
        return lines + [f"warning: {warning}" for warning in self.warnings]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def adapt(
    opened: Opened,
    config: SegmenterConfig,
    seed: int,
    position_method: Method | None,
    classes: Agreement | None = None,
) -> tuple[Params, Report]:
    """Parameters of a network, from a source as far as it goes.

    Args:
      opened: the source.
      config: the network wanted.
      seed: of newly initialised parameters.
      position_method: see `position_rule`.
      classes: of the source and of the network, where both have names.

    Returns:
      The parameters on the host, and the report.

    Raises:
      ValueError: the encoders do not fit, or an array cannot be read.
    """
    source = opened.config
    check_encoder(opened.source, source, config)
    report = Report(_header(opened), dropped=list(opened.dropped))
    report.warnings += [*opened.notes, *_warnings(source, config, position_method)]
    other_decoder = _other_decoder(opened, config)
    by_name = classes if classes and not classes.whole and not other_decoder else None
    report.classes = str(by_name or "")
    flat: dict[str, Any] = {}
    for name, leaf in flatten_dict(abstract_params(config), sep="/").items():
        entry = opened.entries.get(name)
        if other_decoder and name.startswith("decoder/"):
            report.initialised.append((name, leaf.shape, other_decoder))
        elif entry is None:
            report.initialised.append((name, leaf.shape, "not in the source"))
        elif name == _POSITION and source.grid != config.grid:
            flat[name], how = _fit_positions(entry.read(), source, config, position_method)
            report.resized.append((name, entry.shape, leaf.shape, how))
        elif name == _PATCH_KERNEL and entry.shape != leaf.shape:
            flat[name], how = _fit_patch_kernel(entry.read(), config)
            report.resized.append((name, entry.shape, leaf.shape, how))
        elif by_name and by_name.sources and name in CLASS_AXES:
            report.resized.append((name, entry.shape, leaf.shape, "classes by name"))
        elif (unnamed := by_name and name in CLASS_AXES) or entry.shape != leaf.shape:
            counts = f"{source.num_classes} classes in the source, {config.num_classes} here"
            why = "no class has the name of one in the source" if unnamed else counts
            report.initialised.append((name, leaf.shape, why))
            report.dropped.append((entry.theirs, entry.shape, why))
        else:
            flat[name] = entry.read()
            report.mapped.append((name, entry.theirs, leaf.shape))
    if other_decoder:
        theirs = (e for name, e in opened.entries.items() if name.startswith("decoder/"))
        report.dropped += [(entry.theirs, entry.shape, other_decoder) for entry in theirs]
    mixed = [name for name, *_ in report.resized if name in CLASS_AXES]
    if missing := [*mixed, *(name for name, _, _ in report.initialised)]:
        flat |= init_some_params(config, missing, seed)
    for name in mixed:
        flat[name] = by_name.take(name, flat[name], opened.entries[name].read())
    return unflatten_dict(flat, sep="/"), report


def own_positions(source: SegmenterConfig) -> str:
    """Why a user's wishes for positions have no effect; empty if they have one."""
    if source.position == "rope":
        return "positions are rotations, for images of any size"
    if source.position_size:
        rows, columns = source.grid
        return (
            f"the source's {rows}x{columns} positions have a rule of their own, "
            f"{source.position_resize}"
        )
    return ""


def position_rule(source: SegmenterConfig, wanted: Method | None) -> Method:
    """How position embeddings of a source are resized: by its own rule, if it has one."""
    return source.position_resize if source.position_size else wanted or "bilinear"


def _fit_patch_kernel(kernel: np.ndarray, config: SegmenterConfig) -> tuple[np.ndarray, str]:
    """A patch kernel for a network's patches and channels, and what was done to it."""
    old, _, channels, _ = kernel.shape
    new, done = config.patch_size, []
    if old != new:
        kernel = resize_patch_kernel(kernel, new)
        done.append(f"patches of {old} to {new} pixels by FlexiViT's pseudo-inverse")
    if channels != config.in_channels:
        kernel = inflate_patch_kernel(kernel, config.in_channels)
        done.append(f"{channels} to {config.in_channels} input channels")
    return kernel, ", ".join(done)


def _fit_positions(
    table: np.ndarray, source: SegmenterConfig, config: SegmenterConfig, method: Method | None
) -> tuple[np.ndarray, Method]:
    """A position embedding for the network's grid, and how it was made."""
    rule, tokens = position_rule(source, method), source.num_positioned_tokens
    resized = resize_position_embedding(table, tokens, source.grid, config.grid, rule)
    return np.asarray(resized), rule


def resize_patch_kernel(kernel: np.ndarray, patch_size: int) -> np.ndarray:
    """Patch kernel for patches of another size: what it gives for a patch stays, as far as it can.

    With B the bilinear resize of a patch, (B^T)^+ w minimises E[(<x, w> - <B x, w'>)^2] over
    patches x of independent pixels; for larger patches a patch and its enlargement give exactly
    the same. B is separable, and so is its pseudo-inverse.

    Source: Beyer et al. 2023, FlexiViT, section 3.4, equations 1 and 2 ("PI-resize").

    Args:
      kernel: (P, P, C, D).
      patch_size: wanted P, in pixels.

    Returns:
      float32 (patch_size, patch_size, C, D); the same numbers for the same size.
    """
    old = kernel.shape[0]
    if old == patch_size:
        return kernel
    inverse = np.linalg.pinv(resize_matrix(old, patch_size).T)
    resized = np.einsum("yh,xw,hwcd->yxcd", inverse, inverse, kernel, optimize=True)
    return resized.astype(np.float32)


def inflate_patch_kernel(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """Patch kernel for another number of input channels; the rules are at the top of this module.

    Args:
      kernel: (P, P, C, D).
      in_channels: wanted C.

    Returns:
      (P, P, in_channels, D).
    """
    channels = kernel.shape[2]
    if in_channels < channels:
        total = kernel.sum(axis=2, keepdims=True) / in_channels
        return np.repeat(total, in_channels, axis=2)
    extra = np.repeat(kernel.mean(axis=2, keepdims=True), in_channels - channels, axis=2)
    return np.concatenate([kernel, extra], axis=2)


def differences(
    source: SegmenterConfig, config: SegmenterConfig, fields: Iterable[str] = ENCODER_FIELDS
) -> tuple[str, str] | None:
    """Fields in which two encoders differ, with the values of each; None if they do not."""

    def value(c: SegmenterConfig, field: str) -> Any:
        return getattr(c.encoder_block() if field == "mlp_dim" else c, field)

    pairs = [(field, value(source, field), value(config, field)) for field in fields]
    different = [pair for pair in pairs if pair[1] != pair[2]]
    theirs, ours = (", ".join(f"{pair[0]}={pair[i]}" for pair in different) for i in (1, 2))
    return (theirs, ours) if different else None


def check_encoder(name: str, source: SegmenterConfig, config: SegmenterConfig) -> None:
    """Raises SourceError with all differences between a network's encoder and that of a source."""
    if found := differences(source, config):
        theirs, ours = found
        raise SourceError(
            f"{name}: its encoder has {theirs}; the model wants {ours} "
            '(config.model.variant="source" takes what the source has)'
        )


def _other_decoder(opened: Opened, config: SegmenterConfig) -> str:
    """Why the source's decoder cannot be used; empty if it can."""
    if not opened.has_decoder:
        return "the source has no decoder"
    kinds = [_kind_of_decoder(c) for c in (opened.config, config)]
    return "" if kinds[0] == kinds[1] else f"{kinds[0]} in the source, {kinds[1]} here"


def _kind_of_decoder(config: SegmenterConfig) -> str:
    if config.decoder == "linear":
        return "linear decoder" + " after a batch norm" * (config.head_norm == "batch")
    queries = f" and {config.num_queries} queries" if config.decoder == "eomt" else ""
    return f"{config.decoder} decoder of {config.decoder_depth} layers{queries}"


def _warnings(
    source: SegmenterConfig, config: SegmenterConfig, position_method: Method | None
) -> list[str]:
    # A source without positions of its own size has no rule of resizing them either.
    unsaid = () if source.position_size else ("position_resize",)
    warnings = [
        f"the source was trained with {field}={getattr(source, field)}; the model computes with "
        f"{getattr(config, field)}"
        for field in ENCODER_NUMERICS
        if field not in unsaid and getattr(source, field) != getattr(config, field)
    ]
    if position_method is not None and (own := own_positions(source)):
        warnings.append(f"position_method={position_method} has no effect: {own}")
    return warnings


def _header(opened: Opened) -> str:
    c = opened.config
    header = (
        f"{opened.source}: {opened.format}, width {c.width}, {c.depth} layers, "
        f"{c.num_heads} heads, patch {c.patch_size}, grid {c.grid[0]}x{c.grid[1]}, "
        f"{c.num_extra_tokens} extra token{'s'[: c.num_extra_tokens - 1]}, "
        f"layer_norm_eps {c.layer_norm_eps}, gelu {c.gelu}"
    )
    decoder = f", {c.decoder} decoder, {c.num_classes} classes"
    return header + decoder if opened.has_decoder else header
