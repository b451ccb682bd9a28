"""The two programs of inference on devices: windows into a pool of logits, and maps from the pool.

Both run on every device of a mesh of one axis. The pool is split over the devices by slots, and a
window's slot is on the device that computes it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from segmenter_jax.inference.geometry import Taps
from segmenter_jax.inference.merging import tile_maps
from segmenter_jax.models import Segmenter
from segmenter_jax.models.normalization import normalize

# The mesh's one axis.
AXIS = "batch"

# Windows, slots and maps are split over the devices along their first axis; what tiles take
# counts versions first.
SPLIT = jax.P(AXIS)
SPLIT_TILES = jax.P(None, AXIS)


@functools.partial(
    jax.jit, static_argnames=("mesh", "model", "mean", "std"), donate_argnames="pool"
)
def forward(
    pool: jax.Array,
    params: Any,
    windows: jax.Array,
    slots: jax.Array,
    *,
    mesh: Mesh,
    model: Segmenter,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[jax.Array, jax.Array]:
    """Writes the logits of windows to the pool.

    Args:
      pool: float32 (slots of all devices, patches, K); given away.
      params: the tree under "params", whole on every device.
      windows: (B, h, w, C), values in 0..255.
      slots: int32 (B,), each on the window's own device; beyond its pool for what is padding.
      mesh: the devices.
      model, mean, std: see `SlidingWindow`.

    Returns:
      The pool, and an array that is there once it was written.
    """

    def local(pool, params, windows, slots):
        logits = model.apply({"params": params}, normalize(windows, None, mean, std))
        logits = logits.reshape(len(slots), *pool.shape[1:])
        return pool.at[slots].set(logits, mode="drop"), slots[:1]

    specs = (SPLIT, jax.P(), SPLIT, SPLIT)
    program = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False)
    return program(pool, params, windows, slots)


def _gather(pool: jax.Array, index: jax.Array, num_devices: int) -> jax.Array:
    """Logits (V, T, h, w, K) of patches (V, T, h, w) of a device's tiles, wherever they are."""
    if num_devices > 1:
        index = jax.lax.all_gather(index, AXIS, axis=1, tiled=True)
    number, patch = jnp.divmod(index, pool.shape[1])
    slot, owner = jnp.divmod(number, num_devices)
    logits = pool.at[slot, patch].get(mode="promise_in_bounds")
    if num_devices == 1:
        return logits
    # Each device gives what it has of all tiles and gets all of its own: sums of one summand.
    logits = jnp.where((owner == jax.lax.axis_index(AXIS))[..., None], logits, 0)
    return jax.lax.psum_scatter(logits, AXIS, scatter_dimension=1, tiled=True)


@functools.partial(jax.jit, static_argnames=("mesh", "group", "outputs", "top_k", "on_cpu"))
def merge_tiles(
    pool: jax.Array,
    index: jax.Array,
    rows: Taps,
    columns: Taps,
    *,
    mesh: Mesh,
    group: int,
    outputs: tuple[str, ...],
    top_k: int,
    on_cpu: bool,
) -> dict[str, jax.Array]:
    """Maps of T tiles, whichever images they are of.

    Args:
      pool: see `forward`.
      index: int32 (V, T, h, w), the patches that each tile sees:
        (slot * devices + device) * patches of a window + patch.
      rows, columns: see `tile_maps`.
      mesh: the devices.
      group: tiles that a device makes at a time; divides its share of T.
      outputs, top_k, on_cpu: see `tile_maps`.

    Returns:
      See `tile_maps`.
    """

    def maps_of_group(pool, index, rows, columns):
        logits = _gather(pool, index, mesh.size)
        return tile_maps(rows, columns, logits, outputs=outputs, top_k=top_k, on_cpu=on_cpu)

    def local(pool, *operands):
        def groups(x):
            return x.reshape(len(x), -1, group, *x.shape[2:]).swapaxes(0, 1)

        maps = jax.lax.map(lambda g: maps_of_group(pool, *g), jax.tree.map(groups, operands))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), maps)

    specs = (SPLIT, SPLIT_TILES, SPLIT_TILES, SPLIT_TILES)
    program = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False)
    return program(pool, index, rows, columns)
