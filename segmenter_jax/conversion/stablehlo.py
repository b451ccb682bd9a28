"""Functions as files of StableHLO, which `jax.export` reads and runs."""

from collections.abc import Callable
from typing import Any

import jax

PLATFORMS = ("cpu", "cuda", "tpu")


def serialize(function: Callable[..., Any], dtype: str, shape: tuple[int | str, ...]) -> bytes:
    """Bytes of a function of one array, for all of `PLATFORMS`.

    Args:
      function: to be exported; arrays that it holds are part of the file.
      dtype, shape: of its array; a letter stands for any size.
    """
    dimensions = jax.export.symbolic_shape(", ".join(map(str, shape)))
    argument = jax.ShapeDtypeStruct(dimensions, dtype)
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(argument)
    return bytes(exported.serialize())


def deserialize(content: bytes) -> Callable[..., Any]:
    """The function that `serialize` made the bytes of."""
    return jax.export.deserialize(bytearray(content)).call
