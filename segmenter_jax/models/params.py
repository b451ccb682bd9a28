"""A network's parameters before training: their shapes, and their initial values."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from segmenter_jax.models.config import SegmenterConfig
from segmenter_jax.models.segmenter import Segmenter

Params = dict[str, Any]

# Parameters that are added, or are tokens; every other one is the matrix of a product.
_NO_KERNELS = (
    *("bias", "scale", "layer_scale_0", "layer_scale_1"),
    *("cls", "dist", "registers", "pos_embedding", "class_embedding", "queries"),
)


def is_kernel(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at a path of `jax.tree_util` is a matrix, which weight decay is for."""
    return path[-1].key not in _NO_KERNELS


def _image(config: SegmenterConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *config.image_size, config.in_channels), jnp.float32)


def abstract_params(config: SegmenterConfig) -> Params:
    """Parameter tree of a network: `jax.ShapeDtypeStruct` leaves, nothing computed."""
    # Layers of one kind have parameters of the same shapes: one of each is traced.
    shallow = Segmenter(dataclasses.replace(config, depth=1, decoder_depth=1))
    params = jax.eval_shape(shallow.init, jax.random.key(0), _image(config))["params"]
    for part, name, depth in (
        ("encoder", "encoderblock", config.depth),
        ("decoder", "block", config.decoder_depth),
    ):
        if layer := params[part].pop(f"{name}_0", None):
            params[part] |= {f"{name}_{i}": layer for i in range(depth)}
    return params


def init_stats(config: SegmenterConfig) -> Params | None:
    """Running statistics of a network before training, on the host; None if it has none."""
    if config.head_norm == "none":
        return None
    mean, var = np.zeros(config.width, np.float32), np.ones(config.width, np.float32)
    return {"decoder": {"head_norm": {"mean": mean, "var": var}}}


def init_params(config: SegmenterConfig, seed: int) -> Params:
    """Initial parameters, float32, a function of the network and the seed alone.

    Only the parameters are computed, one program per shape: a deep network costs little more to
    compile than a shallow one, and the network itself never runs.
    """
    return _init(config, jax.random.key(seed))


def init_some_params(config: SegmenterConfig, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Some of the parameters that `init_params` gives, on the host; the others are not computed.

    Args:
      config: the network.
      names: "/"-joined names wanted.
      seed: as for `init_params`.
    """

    @jax.jit
    def init(key: jax.Array) -> dict[str, jax.Array]:
        flat = flatten_dict(_init(config, key), sep="/")
        return {name: flat[name] for name in names}

    return jax.device_get(init(jax.random.key(seed)))


def _init(config: SegmenterConfig, key: jax.Array) -> Params:
    collections = ["params", "batch_stats"]
    return Segmenter(config).lazy_init(key, _image(config), mutable=collections)["params"]
