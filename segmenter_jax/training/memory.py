"""Memory of a training run on one device, by what it is for."""

import dataclasses
from typing import Any

import jax
import numpy as np

from segmenter_jax.training.state import StepOptions, TrainState, split_params


@dataclasses.dataclass(frozen=True)
class MemoryRow:
    """What one device holds of something, in bytes, and all devices together without copies."""

    name: str
    on_device: int
    whole: int


def memory_rows(
    target: TrainState, options: StepOptions, temporary: int | None = None
) -> list[MemoryRow]:
    """Memory of a train state and of its step.

    Args:
      target: shapes and shardings of the state, see `abstract_train_state`.
      options: of the step.
      temporary: bytes that the compiled step needs on a device besides its arguments and results;
        gradients, gathered parameters and activations are in it. None where it is not known.

    Returns:
      One row each for parameters, optimizer, average (where there is one) and gradients, and for
      the rest of `temporary`, which is mostly activations.
    """
    trained, _ = split_params(target.params, options)
    rows = [_row("parameters", target.params), _row("optimizer", target.opt_state)]
    if target.ema is not None:
        rows.append(_row("average of parameters", target.ema))
    gradients = _row("gradients", trained)
    rows.append(gradients)
    if temporary is not None:
        rest = max(temporary - gradients.on_device, 0)
        rows.append(MemoryRow("activations and work space", rest, rest * _num_devices(target)))
    return rows


def _row(name: str, tree: Any) -> MemoryRow:
    leaves = jax.tree.leaves(tree)
    pieces = (np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64) for x in leaves)
    return MemoryRow(
        name,
        sum(int(n) * x.dtype.itemsize for n, x in zip(pieces, leaves, strict=True)),
        sum(x.size * x.dtype.itemsize for x in leaves),
    )


def _num_devices(target: TrainState) -> int:
    return target.step.sharding.num_devices


def memory_table(rows: list[MemoryRow]) -> str:
    """Rows and their sum as text, in MB (10^6 bytes)."""
    total = MemoryRow("sum", sum(r.on_device for r in rows), sum(r.whole for r in rows))
    lines = [f"{'memory in MB':<28}{'one device':>12}{'all, once':>12}"]
    lines += [
        f"{r.name:<28}{r.on_device / 1e6:>12.1f}{r.whole / 1e6:>12.1f}" for r in (*rows, total)
    ]
    return "\n".join(lines)


def temporary_bytes(step: Any, target: TrainState, batch: dict[str, Any]) -> int | None:
    """What a jitted step needs on a device besides its arguments and results, by XLA's plan.

    The program that this compiles is the one that the first call of `step` runs.

    Args:
      step: see `train_step.make_train_step`.
      target: see `abstract_train_state`.
      batch: see `abstract_batch`.

    Returns:
      Bytes, or None where the platform does not tell.
    """
    plan = step.lower(target, batch).compile().memory_analysis()
    return None if plan is None else plan.temp_size_in_bytes
