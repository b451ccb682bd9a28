"""A pool of patch logits that stays on the devices, and the programs that write and read it.

Both programs run on every device of a mesh of one axis. The pool is split over the devices by
slots, one for each window; a window's slot is on the device that computes it.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from segmenter_jax.inference.geometry import Taps
from segmenter_jax.inference.merging import tile_maps
from segmenter_jax.models import Segmenter
from segmenter_jax.models.normalization import normalize
from segmenter_jax.runtime.console import logger

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
        done = slots[:1]
        return pool.at[slots].set(logits, mode="drop"), done

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


@functools.partial(
    jax.jit, static_argnames=("mesh", "group", "outputs", "top_k", "on_cpu", "scores")
)
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
    scores: bool,
) -> dict[str, jax.Array]:
    """Maps of T tiles, whichever images they are of.

    Args:
      pool: see `forward`.
      index: int32 (V, T, h, w), the patches that each tile sees:
        (slot * devices + device) * patches of a window + patch.
      rows, columns: see `tile_maps`.
      mesh: the devices.
      group: tiles that a device makes at a time; divides its share of T.
      outputs, top_k, on_cpu, scores: see `tile_maps`.

    Returns:
      See `tile_maps`.
    """

    def maps_of_group(pool, index, rows, columns):
        logits = _gather(pool, index, mesh.size)
        options = {"outputs": outputs, "top_k": top_k, "on_cpu": on_cpu, "scores": scores}
        return tile_maps(rows, columns, logits, **options)

    def local(pool, *operands):
        def groups(x):
            return x.reshape(len(x), -1, group, *x.shape[2:]).swapaxes(0, 1)

        maps = jax.lax.map(lambda g: maps_of_group(pool, *g), jax.tree.map(groups, operands))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), maps)

    specs = (SPLIT, SPLIT_TILES, SPLIT_TILES, SPLIT_TILES)
    program = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False)
    return program(pool, index, rows, columns)


@functools.partial(jax.jit, static_argnames=("shape", "sharding"))
def _zeros(shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, jnp.float32), sharding)


@functools.partial(jax.jit, static_argnames="sharding")
def _doubled(logits: jax.Array, sharding: NamedSharding) -> jax.Array:
    def local(part: jax.Array) -> jax.Array:
        return jnp.concatenate([part, jnp.zeros_like(part)])

    mesh, spec = sharding.mesh, sharding.spec
    return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(logits)


class LogitsPool:
    """Patch logits of windows; every device has slots of its own, one for each window.

    A slot may be given back once the programs that read it were started: a device runs programs in
    the order they were started in.

    Attributes:
      logits: float32 (slots of all devices, patches, K), split over the devices. A program that
        writes takes the array, and the new one is put here.
      slots: of each device.
    """

    def __init__(self, sharding: NamedSharding, slots: int, shape: tuple[int, int]) -> None:
        """Allocates the pool.

        Args:
          sharding: splits the slots over the devices.
          slots: of each device.
          shape: (patches, K) of a window's logits.
        """
        self._sharding = sharding
        self._free = [list(range(slots)) for _ in range(sharding.num_devices)]
        self.slots = slots
        self.logits = _zeros((slots * len(self._free), *shape), sharding)

    def _owners(self, num_windows: int, batch_size: int) -> np.ndarray:
        """Device that computes each window of a batch."""
        return np.arange(num_windows) // (batch_size // len(self._free))

    def has_room(self, num_windows: int, batch_size: int) -> bool:
        """Whether `take` with the same arguments finds enough free slots on every device."""
        wanted = np.bincount(self._owners(num_windows, batch_size), minlength=len(self._free))
        return all(n <= len(free) for n, free in zip(wanted, self._free, strict=True))

    def take(self, num_windows: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots for a batch, of which every device computes an equal share.

        Args:
          num_windows: in the batch; what is beyond them is padding.
          batch_size: a multiple of the devices.

        Returns:
          int32 (batch_size,), the slot of each window on its device, beyond the pool for padding;
          and int32 (num_windows,), numbers of slot and device: slot * devices + device.
        """
        owners = self._owners(num_windows, batch_size)
        slots = np.full(batch_size, self.slots, np.int32)
        slots[:num_windows] = [self._free[owner].pop() for owner in owners]
        return slots, (slots[:num_windows] * len(self._free) + owners).astype(np.int32)

    def give_back(self, numbers: Iterable[int]) -> None:
        """Frees slots by their numbers."""
        for number in numbers:
            slot, owner = divmod(number, len(self._free))
            self._free[owner].append(slot)

    def grow(self) -> None:
        """Doubles the slots; programs that work on the pool are compiled anew."""
        self.logits = _doubled(self.logits, self._sharding)
        for free in self._free:
            free.extend(range(self.slots, 2 * self.slots))
        self.slots *= 2
        size = self.logits.nbytes / len(self._free)
        logger.info(
            "inference: keeping the logits of %d windows on a device, %.0f MB",
            self.slots,
            size / 1e6,
        )
