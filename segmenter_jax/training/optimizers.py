"""Learning-rate schedules and optimizers."""

import math

import jax
import optax

from segmenter_jax.models.params import is_kernel

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("polynomial", "cosine")

_BLOCK = "encoderblock_"


def polynomial_schedule(
    learning_rate: float,
    min_learning_rate: float,
    total_steps: int,
    power: float = 0.9,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """Polynomial decay of the paper: `(lr - min) * (1 - step / total)^power + min`.

    Args:
      learning_rate: value at step 0.
      min_learning_rate: value at `total_steps` and after.
      total_steps: length of the run, in optimizer steps.
      power: exponent; 0.9 in the paper.
      warmup_steps: the decay is multiplied by `step / warmup_steps` before that step.

    Returns:
      Function of the step (int) to the learning rate (float32).
    """
    decay = optax.polynomial_schedule(learning_rate, min_learning_rate, power, total_steps)
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, 1.0, warmup_steps)
    return lambda step: warmup(step) * decay(step)


def warmup_cosine_schedule(
    learning_rate: float, min_learning_rate: float, total_steps: int, warmup_steps: int
) -> optax.Schedule:
    """Linear warm-up from 0 to `learning_rate`, then half a cosine to `min_learning_rate`.

    Args:
      learning_rate: peak, reached at `warmup_steps`.
      min_learning_rate: value at `total_steps` and after.
      total_steps: length of the run with its warm-up, in optimizer steps.
      warmup_steps: length of the warm-up, in optimizer steps.

    Returns:
      Function of the step (int) to the learning rate (float32).
    """
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else learning_rate,
        learning_rate,
        warmup_steps,
        total_steps,
        min_learning_rate,
    )


def _check(name: str, value: float, holds: bool, rule: str) -> None:
    # NaN holds nothing.
    if not (holds and math.isfinite(value)):
        raise ValueError(f"{name} must be {rule}, got {value}")


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    min_learning_rate: float,
    total_steps: int,
    power: float,
    warmup_steps: int,
) -> optax.Schedule:
    """Schedule by name, one of `SCHEDULES`; raises ValueError for what does not fit together."""
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    _check("learning_rate", learning_rate, learning_rate >= 0, "at least 0")
    _check(
        "min_learning_rate",
        min_learning_rate,
        0 <= min_learning_rate <= learning_rate,
        f"in 0..{learning_rate=}",
    )
    _check("power", power, power > 0, "positive")
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"{warmup_steps=} must be at least 0 and below {total_steps=}")
    if name == "polynomial":
        rates = learning_rate, min_learning_rate, total_steps, power
        return polynomial_schedule(*rates, warmup_steps)
    if name == "cosine":
        return warmup_cosine_schedule(learning_rate, min_learning_rate, total_steps, warmup_steps)
    raise ValueError(f"schedule {name!r} is unknown; choose from {SCHEDULES}")


def _decays(params: optax.Params) -> optax.Params:
    # Biases, norms, tokens and position embeddings keep their scale: only kernels shrink.
    return jax.tree_util.tree_map_with_path(lambda path, _: is_kernel(path), params)


def layer_scales(params: optax.Params, layer_decay: float) -> optax.Params:
    """Factor on the learning rate of every parameter, by its depth in the encoder.

    With L encoder blocks, layer 0 holds the patch and position embeddings and the extra tokens,
    layer i + 1 is block i, and layer L + 1, at the full rate, everything after the blocks: the
    encoder's last norm and the decoder. A parameter of layer l gets `layer_decay^(L + 1 - l)`.

    Args:
      params: of a Segmenter; leaves are only counted by name.
      layer_decay: factor from one layer to the one below it.

    Returns:
      A tree like `params` of floats.

    Source: Bao et al., "BEiT", 2021, fine-tuning.
    """
    encoder = params.get("encoder", {})
    depth = sum(name.startswith(_BLOCK) for name in encoder)

    def scale(path: tuple, _: jax.Array) -> float:
        group, name = path[0].key, path[1].key
        if group != "encoder" or name == "encoder_norm":
            return 1.0
        layer = int(name.removeprefix(_BLOCK)) + 1 if name.startswith(_BLOCK) else 0
        return layer_decay ** (depth + 1 - layer)

    return jax.tree_util.tree_map_with_path(scale, params)


def _scale_layers(layer_decay: float) -> optax.GradientTransformation:
    def update(updates: optax.Updates, _: optax.Params) -> optax.Updates:
        return jax.tree.map(lambda u, s: u * s, updates, layer_scales(updates, layer_decay))

    return optax.stateless(update)


def make_optimizer(
    name: str,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip_norm: float | None,
    layer_decay: float = 1.0,
) -> optax.GradientTransformation:
    """Optimizer by name, one of `OPTIMIZERS`, without its learning rate.

    What it returns is subtracted from the parameters, times the learning rate of the step. So the
    rate depends on the step alone, also after updates that were skipped.

    Args:
      name: "sgd" (momentum, and coupled weight decay, as in PyTorch) or "adamw" (decoupled weight
        decay on kernels only).
      momentum: of SGD, in [0, 1); AdamW uses its usual betas 0.9 and 0.999.
      nesterov: SGD looks ahead: the direction is the gradient plus `momentum` times the new trace.
      weight_decay: 0 in the paper's recipes.
      clip_norm: bound of the global gradient norm; None means no clipping.
      layer_decay: see `layer_scales`; 1 gives all layers the same learning rate.

    Raises:
      ValueError: the name is unknown, or a value is out of its range.
    """
    _check("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
    _check("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
    _check("layer_decay", layer_decay, 0 < layer_decay <= 1, "in (0, 1]")
    if clip_norm is not None:
        _check("clip_norm", clip_norm, clip_norm > 0, "positive, or None for no clipping")
    # The state's structure is the same with and without the optional parts: a run may change them.
    off = optax.identity()
    clip = off if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    layers = off if layer_decay == 1 else _scale_layers(layer_decay)
    if name == "sgd":
        decay = optax.add_decayed_weights(weight_decay) if weight_decay else off
        return optax.chain(clip, decay, optax.trace(momentum, nesterov), layers)
    if name == "adamw":
        decay = optax.add_decayed_weights(weight_decay, mask=_decays)
        return optax.chain(clip, optax.scale_by_adam(), decay, layers)
    raise ValueError(f"optimizer {name!r} is unknown; choose from {OPTIMIZERS}")
