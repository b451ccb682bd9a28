"""One optimizer step: pure, jitted, sharded over a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from segmenter_jax import sharding
from segmenter_jax.data.augment import normalize, photometric_distortion
from segmenter_jax.losses import segmentation_loss
from segmenter_jax.models import Segmenter

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """What a step reads and replaces.

    Attributes:
      step: int32 scalar, number of updates done.
      params: float32 parameters of the Segmenter.
      opt_state: state of the optimizer.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a training step does besides the network and the optimizer.

    Attributes:
      mean, std: per-channel normalisation, in units of 0..1.
      ignore_label: label value that counts nowhere.
      photometric: apply photometric distortion.
      grad_accum_steps: parts the global batch is processed in, one after the other.
      loss_implementation, num_shards: see `losses.segmentation_loss`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    ignore_label: int = 255
    photometric: bool = True
    grad_accum_steps: int = 1
    loss_implementation: str = "fused"
    num_shards: int = 1


def init_params(model: Segmenter, seed: int) -> Any:
    """Freshly initialised parameters, a function of the model and the seed alone.

    Only the parameters are computed, one program per shape: a deep network costs little more to
    compile than a shallow one, and the network itself never runs.
    """
    c = model.config
    image = jax.ShapeDtypeStruct((1, *c.image_size, c.in_channels), jnp.float32)
    return model.lazy_init(jax.random.key(seed), image, mutable=["params"])["params"]


def abstract_train_state(
    model: Segmenter, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state: the target of initialisation and restore."""
    c = model.config
    image = jax.ShapeDtypeStruct((1, *c.image_size, c.in_channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    shapes = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, params)
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        sharding.tree_sharding(shapes, mesh),
    )


def create_train_state(
    model: Segmenter, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
    """Initialises a state and places each leaf in its shards.

    Args:
      model: the network.
      optimizer: see `optim.make_optimizer`.
      mesh: see `sharding.make_mesh`.
      seed: of the parameters.
    """
    return place_train_state(init_params(model, seed), model, optimizer, mesh)


def place_train_state(
    params: Any, model: Segmenter, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """State before the first update, from parameters that every process holds.

    Args:
      params: parameters of `model`, on the host or on local devices.
      model: the network.
      optimizer: see `optim.make_optimizer`.
      mesh: see `sharding.make_mesh`.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_train_state(model, optimizer, mesh))

    def place(leaf: jax.Array, where: NamedSharding) -> jax.Array:
        leaf = np.asarray(leaf)
        # A copy, since a step donates it: on the CPU arrays may share the host's memory.
        return jax.make_array_from_callback(leaf.shape, where, lambda i: np.array(leaf[i]))

    params = jax.tree.map(place, params, places.params)
    opt_state = jax.jit(optimizer.init, out_shardings=places.opt_state)(params)
    return TrainState(place(np.int32(0), places.step), params, opt_state)


def prepare_image(batch: Batch, key: jax.Array, options: StepOptions) -> jax.Array:
    """Colour augmentation and normalisation of a uint8 batch; padding becomes 0."""
    image = batch["image"].astype(jnp.float32)
    if options.photometric:
        image = photometric_distortion(key, image)
    return normalize(image, batch["valid_size"], options.mean, options.std)


def loss_sum(
    params: Any,
    model: Segmenter,
    image: jax.Array,
    label: jax.Array,
    key: jax.Array,
    options: StepOptions,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy summed over valid pixels, and their number.

    Args:
      params: parameters of `model`.
      model: the network.
      image: normalised float32 (B, H, W, C).
      label: uint8 (B, H, W).
      key: of dropout and stochastic depth.
      options: see `StepOptions`.

    Returns:
      (sum, number of valid pixels), float32 scalars.
    """
    logits = model.apply({"params": params}, image, train=True, rngs={"dropout": key})
    return segmentation_loss(
        logits,
        label,
        patch_size=model.config.patch_size,
        ignore_label=options.ignore_label,
        implementation=options.loss_implementation,
        num_shards=options.num_shards,
    )


def _loss_and_grads(
    params: Any,
    model: Segmenter,
    image: jax.Array,
    label: jax.Array,
    key: jax.Array,
    options: StepOptions,
) -> tuple[jax.Array, Any]:
    """Mean loss over the valid pixels of the global batch, and its gradient."""
    grad_fn = jax.value_and_grad(loss_sum, has_aux=True)
    parts = options.grad_accum_steps
    if parts == 1:
        (total, count), grads = grad_fn(params, model, image, label, key, options)
    else:
        # Each part takes every parts-th row, so that it spreads over all devices.
        def cut(x: jax.Array) -> jax.Array:
            return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

        def body(carry, part):
            (loss, count), grads = grad_fn(params, model, *part, options)
            return jax.tree.map(jnp.add, carry, (loss, count.astype(jnp.float32), grads)), None

        zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        keys = jax.random.split(key, parts)
        (total, count, grads), _ = jax.lax.scan(body, zero, (cut(image), cut(label), keys))
    # Dividing once by the global count keeps the mean exact however the batch is cut.
    count = jnp.maximum(count.astype(jnp.float32), 1)
    return total / count, jax.tree.map(lambda g: g / count, grads)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Segmenter,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    options: StepOptions,
    seed: int,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      state: before the update.
      batch: `image` uint8 (B, S, S, C), `label` uint8 (B, S, S), `valid_size` int32 (B, 2).
      model: the network.
      optimizer: made with `schedule`.
      schedule: step to learning rate, reported in the metrics.
      options: see `StepOptions`.
      seed: base of all randomness, which is a function of (seed, step).

    Returns:
      The state after the update and scalars: `loss`, `grad_norm`, `learning_rate`.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    color_key, dropout_key = jax.random.split(key)
    image = prepare_image(batch, color_key, options)
    loss, grads = _loss_and_grads(state.params, model, image, batch["label"], dropout_key, options)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "grad_norm": optax.global_norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics


def make_train_step(
    model: Segmenter,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    options: StepOptions,
    mesh: Mesh,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles `train_step` for a mesh; the state given to it is donated.

    Args: see `train_step`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(
            state,
            batch,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            options=options,
            seed=seed,
        )

    target = abstract_train_state(model, optimizer, mesh)
    state_sharding = jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(
        step,
        in_shardings=(state_sharding, sharding.batch_sharding(mesh)),
        out_shardings=(state_sharding, sharding.replicated(mesh)),
        donate_argnums=0,
    )
