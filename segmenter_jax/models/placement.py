"""The devices that a network's program is made for, which need not be those of this process.

A mesh may have an axis `fsdp`: parameters lie cut into as many pieces, by the rule of `leaf_spec`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# A mesh over whose axes the batch is split, or None: the devices that JAX takes by itself.
Placement = Mesh | None

FSDP = "fsdp"

# Smaller leaves are replicated: gathering them costs more latency than they take memory.
MIN_SHARDED_SIZE = 2**14


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


def spans_processes(mesh: Placement) -> bool:
    """Whether several processes, of which this is one, run programs on a mesh."""
    if mesh is None:
        return False
    devices = [*mesh.devices.flat]
    return len({d.process_index for d in devices}) > 1 and any(map(is_present, devices))


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


def leaf_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Cuts the largest dimension that `fsdp` divides; small arrays stay whole."""
    if fsdp == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda i: -shape[i]):
        if shape[axis] % fsdp == 0:
            return PartitionSpec(*(None,) * axis, FSDP)
    return PartitionSpec()


def pieces(mesh: Placement) -> int:
    """Number of pieces that parameters are cut into."""
    return 1 if mesh is None else mesh.shape.get(FSDP, 1)


def stack_layers(layers: list[Any], mesh: Placement) -> Any:
    """Stacks the parameters of equal layers along a new first axis; pieces stay pieces.

    Args:
      layers: trees of arrays, see `leaf_spec`.
      mesh: that they lie on.
    """

    def stack(*leaves: jax.Array) -> jax.Array:
        stacked = jnp.stack(leaves)
        if pieces(mesh) == 1:
            return stacked
        spec = PartitionSpec(None, *leaf_spec(leaves[0].shape, pieces(mesh)))
        return jax.lax.with_sharding_constraint(stacked, NamedSharding(mesh, spec))

    return jax.tree.map(stack, *layers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(params: Any, mesh: Placement) -> Any:
    """The same parameters, whole on every device; their gradient leaves in pieces.

    Left to itself the compiler computes with the pieces and exchanges activations instead, which
    are many times larger than parameters here.

    Args:
      params: a tree of arrays, see `leaf_spec`.
      mesh: that they lie on.
    """
    if pieces(mesh) == 1:
        return params
    return jax.lax.with_sharding_constraint(params, NamedSharding(mesh, PartitionSpec()))


def _gather_forward(params, mesh):
    return gather(params, mesh), None


def _gather_backward(mesh, _, gradient):
    return (scatter(gradient, mesh),)


gather.defvjp(_gather_forward, _gather_backward)


def scatter(gradient: Any, mesh: Placement) -> Any:
    """The same gradients, each device with the pieces of its parameters."""
    if pieces(mesh) == 1:
        return gradient

    def cut(leaf: jax.Array) -> jax.Array:
        place = NamedSharding(mesh, leaf_spec(leaf.shape, pieces(mesh)))
        return jax.lax.with_sharding_constraint(leaf, place)

    return jax.tree.map(cut, gradient)
