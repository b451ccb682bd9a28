"""A pool of patch logits that stays on the devices, and which parts of it are free."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from segmenter_jax.runtime.console import logger


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
