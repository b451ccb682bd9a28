"""Sums of arrays: what a checkpoint is checked against, and what tells a model from others."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of any tree by their "/"-joined names; of dictionaries the same as `flatten_dict`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def bit_sums(tree: Any) -> dict[str, int]:
    """One number per leaf that changes with any single bit of it.

    Computed where the arrays are, each shard by its device; the same however they are cut.

    Args:
      tree: of arrays of at most 32 bits per element, all on one mesh or all on one device.

    Returns:
      Name of the leaf -> sum modulo 2^32 of its elements, read as unsigned integers.
    """
    named = named_leaves(tree)
    leaves = list(named.values())
    place = next((x.sharding for x in leaves if isinstance(x.sharding, NamedSharding)), None)
    replicated = None if place is None else NamedSharding(place.mesh, PartitionSpec())
    sums = jax.device_get(jax.jit(_sums, out_shardings=replicated)(leaves))
    return {name: int(value) for name, value in zip(named, sums, strict=True)}


def _sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(leaf) for leaf in leaves])


def _sum(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(leaf, _UNSIGNED[leaf.dtype.itemsize]).astype(jnp.uint32)
    # Weights tell apart the places of a row: pieces of a file that changed places.
    columns = leaf.shape[-1] if leaf.ndim else 1
    weights = 2 * jnp.arange(columns, dtype=jnp.uint32) + 1
    return jnp.sum(bits * weights, dtype=jnp.uint32)


def weights_digest(params: Any) -> str:
    """SHA-256 of names, shapes, types and values of parameters on the host, in hexadecimal."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(params).items()):
        array = np.asarray(leaf)
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
