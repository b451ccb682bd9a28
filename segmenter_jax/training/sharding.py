"""Where arrays live: one mesh, and the rules that place batches, parameters and optimizer state.

Mesh axes are `data` (replicas of the parameters) and `fsdp` (parameters and optimizer state cut
into pieces). The batch is cut over both.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from segmenter_jax.models.placement import FSDP, leaf_spec, pieces

AXES = ("data", FSDP)


def make_mesh(
    fsdp: int = 1, num_devices: int | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Mesh over all devices of all processes, or over the first `num_devices` of them.

    Args:
      fsdp: number of pieces that parameters are cut into.
      num_devices: devices to use; None means all. Fewer than all needs a single process.
      devices: to choose from, also such as are only described; None means those at hand.

    Raises:
      ValueError: the sizes do not fit the devices at hand.
    """
    devices = jax.devices() if devices is None else devices
    available = len(devices)
    num_devices = available if num_devices is None else num_devices
    if not 1 <= num_devices <= available:
        raise ValueError(f"{num_devices=} must be between 1 and the {available} devices at hand")
    if num_devices < available and jax.process_count() > 1:
        raise ValueError(f"{num_devices=} of {available} devices works in a single process only")
    if fsdp < 1 or num_devices % fsdp:
        choices = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
        raise ValueError(f"{fsdp=} does not divide {num_devices} devices; choose from {choices}")
    shape, devices = (num_devices // fsdp, fsdp), devices[:num_devices]
    try:
        grid = mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        # 4 pieces on a slice of 16 x 16 chips, for example: one of its own axes is cut.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch_size(batch_size: int, mesh: Mesh, grad_accum_steps: int = 1) -> None:
    """Raises ValueError, with the choices, if the global batch does not divide over the mesh."""
    if grad_accum_steps < 1:
        raise ValueError(f"{grad_accum_steps=} must be at least 1")
    rows = mesh.size * grad_accum_steps
    if batch_size < 1 or batch_size % rows:
        lower = batch_size // rows * rows
        choices = [n for n in (lower, lower + rows) if n > 0]
        devices = [n for n in range(1, mesh.size) if batch_size % (n * grad_accum_steps) == 0]
        hint = f", or use {devices} devices" if devices else ""
        raise ValueError(
            f"{batch_size=} (global) does not divide over {mesh.size} devices and "
            f"{grad_accum_steps=}; choose from {choices}{hint}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def tree_sharding(tree: Any, mesh: Mesh) -> Any:
    """Sharding of every leaf of a tree of arrays or shapes, by `models.placement.leaf_spec`.

    The rule sees shapes only, so that an optimizer's moments lie where their parameters do.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, leaf_spec(leaf.shape, pieces(mesh))), tree)


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Copy of a sharded tree on this process's first device, for work that stays in the process."""
    gathered = jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)
