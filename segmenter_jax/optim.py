"""Learning-rate schedules and optimizers."""

import jax
import optax

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("polynomial", "cosine")


def polynomial_schedule(
    learning_rate: float, min_learning_rate: float, total_steps: int, power: float = 0.9
) -> optax.Schedule:
    """Polynomial decay of the paper: `(lr - min) * (1 - step / total)^power + min`.

    Args:
      learning_rate: value at step 0.
      min_learning_rate: value at `total_steps` and after.
      total_steps: length of the run, in optimizer steps.
      power: exponent; 0.9 in the paper.

    Returns:
      Function of the step (int) to the learning rate (float32).
    """
    return optax.polynomial_schedule(learning_rate, min_learning_rate, power, total_steps)


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
    if name == "polynomial":
        if warmup_steps:
            raise ValueError(
                f"the polynomial schedule has no warm-up, got {warmup_steps=}; "
                'set warmup_steps to 0 or choose schedule "cosine"'
            )
        return polynomial_schedule(learning_rate, min_learning_rate, total_steps, power)
    if name == "cosine":
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"{warmup_steps=} must be at least 0 and below {total_steps=}")
        return warmup_cosine_schedule(learning_rate, min_learning_rate, total_steps, warmup_steps)
    raise ValueError(f"schedule {name!r} is unknown; choose from {SCHEDULES}")


def _decays(params: optax.Params) -> optax.Params:
    # Biases, norms, tokens and position embeddings keep their scale: only kernels shrink.
    def is_kernel(path, leaf):
        return leaf.ndim > 1 and path[-1].key in ("kernel", "proj_patch", "proj_classes")

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """Optimizer by name, one of `OPTIMIZERS`.

    Args:
      name: "sgd" (momentum, no Nesterov; coupled weight decay as in PyTorch) or "adamw" (decoupled
        weight decay on kernels only).
      schedule: step to learning rate.
      momentum: of SGD; AdamW uses its usual betas 0.9 and 0.999.
      weight_decay: 0 in the paper's recipes.
      clip_norm: bound of the global gradient norm; None means no clipping.

    Raises:
      ValueError: the name is unknown.
    """
    if name == "sgd":
        decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
        parts = [*decay, optax.sgd(schedule, momentum=momentum)]
    elif name == "adamw":
        parts = [optax.adamw(schedule, weight_decay=weight_decay, mask=_decays)]
    else:
        raise ValueError(f"optimizer {name!r} is unknown; choose from {OPTIMIZERS}")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
    return optax.chain(*clip, *parts)
