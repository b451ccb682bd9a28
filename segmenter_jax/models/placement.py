"""The devices that a network's program is made for, which need not be those of this process."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

# A mesh over whose axes the batch is split, or None: the devices that JAX takes by itself.
Placement = Mesh | None


def platform_of(mesh: Placement) -> str:
    """ "cpu", "gpu", "tpu" or another name of JAX's."""
    if mesh is None:
        return jax.default_backend()
    platform = mesh.devices.flat[0].platform
    # A device that is described rather than present has the name of its compiler.
    return "gpu" if platform in ("cuda", "rocm") else platform


def one_device(mesh: Placement) -> Mesh:
    """A mesh of one device like those of `mesh`: of this process where it has one."""
    devices = [jax.local_devices()[0]] if mesh is None else [*mesh.devices.flat]
    return Mesh([next(filter(is_present, devices), devices[0])], ("batch",))


def is_present(device: jax.Device) -> bool:
    """Whether this process can run programs on a device."""
    try:
        return device in jax.local_devices(backend=device.platform)
    except RuntimeError:
        return False


def per_device(function: Callable[..., Any], mesh: Placement) -> Callable[..., Any]:
    """Makes every device apply a function to its share of the batch.

    For kernels, which the compiler cannot split.

    Args:
      function: of arrays (B, ...), to arrays (B, ...); all devices together may hold more.
      mesh: the batch is split over all of its axes.

    Returns:
      A function of the whole arrays, or `function` where each device already is by itself.
    """
    if mesh is None or {*mesh.axis_names} <= {*jax.sharding.get_abstract_mesh().manual_axes}:
        return function
    spec = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
