"""What a training step reads and replaces, and where its arrays live."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.models.params import Params, abstract_params, init_params
from segmenter_jax.training import sharding


@flax.struct.dataclass
class TrainState:
    """What a step reads and replaces.

    Attributes:
      step: int32 scalar, number of steps done.
      params: float32 parameters of the Segmenter.
      opt_state: state of the optimizer, of the trained parameters only.
      ema: exponential moving average of `params`, or None.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate and to keep: the average where there is one."""
        return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a training step does besides the network and the optimizer.

    Attributes:
      mean, std: per-channel normalisation, in units of 0..1.
      ignore_label: label value that counts nowhere.
      class_weights: a pixel's weight in the loss by its class; None means 1.
      photometric: apply photometric distortion.
      grad_accum_steps: parts the global batch is processed in, one after the other.
      freeze_encoder: leave the encoder's parameters as they are.
      ema_decay: of the moving average of the parameters; 0 means none is kept.
      skip_non_finite: leave everything but the step as it is where the loss, the gradient or the
        update is not finite.
      loss_implementation, num_shards: see `losses.segmentation_loss`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    ignore_label: int = 255
    class_weights: tuple[float, ...] | None = None
    photometric: bool = True
    grad_accum_steps: int = 1
    freeze_encoder: bool = False
    ema_decay: float = 0.0
    skip_non_finite: bool = False
    loss_implementation: str = "fused"
    num_shards: int = 1


def split_params(params: Params, options: StepOptions) -> tuple[Params, Params]:
    """(trained, frozen) parameters; their union is `params`."""
    frozen = ("encoder",) if options.freeze_encoder else ()
    trained = {name: value for name, value in params.items() if name not in frozen}
    return trained, {name: params[name] for name in frozen}


def abstract_train_state(
    model: Segmenter, optimizer: optax.GradientTransformation, options: StepOptions, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state: the target of initialisation and restore."""
    params = abstract_params(model.config)
    trained, _ = split_params(params, options)
    shapes = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        params,
        jax.eval_shape(optimizer.init, trained),
        params if options.ema_decay else None,
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        sharding.tree_sharding(shapes, mesh),
    )


def create_train_state(
    model: Segmenter,
    optimizer: optax.GradientTransformation,
    options: StepOptions,
    mesh: Mesh,
    seed: int,
) -> TrainState:
    """Initialises a state and places each leaf in its shards.

    Args:
      model: the network.
      optimizer: see `optim.make_optimizer`.
      options: see `StepOptions`.
      mesh: see `sharding.make_mesh`.
      seed: of the parameters.
    """
    return place_train_state(init_params(model.config, seed), model, optimizer, options, mesh)


def place_train_state(
    params: Params,
    model: Segmenter,
    optimizer: optax.GradientTransformation,
    options: StepOptions,
    mesh: Mesh,
) -> TrainState:
    """State before the first update, from parameters that every process holds.

    What is as large as the parameters, the optimizer's moments and the average, is made in shards.

    Args:
      params: parameters of `model`, on the host or on local devices.
      model: the network.
      optimizer: see `optim.make_optimizer`.
      options: see `StepOptions`.
      mesh: see `sharding.make_mesh`.
    """
    target = abstract_train_state(model, optimizer, options, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, target)

    def place(leaf: jax.Array, where: NamedSharding) -> jax.Array:
        leaf = np.asarray(leaf)
        # A copy, since a step donates it: on the CPU arrays may share the host's memory.
        return jax.make_array_from_callback(leaf.shape, where, lambda i: np.array(leaf[i]))

    params = jax.tree.map(place, params, places.params)
    trained, _ = split_params(params, options)
    opt_state = jax.jit(optimizer.init, out_shardings=places.opt_state)(trained)
    # Copies as well: a step donates both.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=places.ema)
    ema = copy(params) if options.ema_decay else None
    return TrainState(place(np.int32(0), places.step), params, opt_state, ema)


def abstract_batch(config: SegmenterConfig, batch_size: int, mesh: Mesh) -> dict[str, Any]:
    """Shapes, dtypes and shardings of a training batch.

    Args:
      config: the network; its `image_size` is that of the crops.
      batch_size: global.
      mesh: see `sharding.make_mesh`.
    """
    place = sharding.batch_sharding(mesh)
    shapes = {
        "image": ((*config.image_size, config.in_channels), jnp.uint8),
        "label": (config.image_size, jnp.uint8),
        "valid_size": ((2,), jnp.int32),
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=place)
        for name, (shape, dtype) in shapes.items()
    }
