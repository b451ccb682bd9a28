"""One training program: the state of a run, and the update that every step makes, on a mesh."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from segmenter_jax.models import Segmenter
from segmenter_jax.models.config import patch_grid
from segmenter_jax.models.normalization import normalize
from segmenter_jax.models.params import Params, abstract_params, init_stats
from segmenter_jax.models.placement import gather, scatter
from segmenter_jax.training import sharding
from segmenter_jax.training.color_augment import photometric_distortion
from segmenter_jax.training.losses import segmentation_loss
from segmenter_jax.training.state import StepOptions, TrainState, split_params

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def check_decoder(decoder: str) -> None:
    """Raises ValueError for a decoder that is not trained here.

    What "eomt" lacks: masks of attention in the encoder's last layers (`models.vit`), and a loss on
    the matched masks of `Segmenter.query_logits` after each of them, in the place of `loss_sum`.
    """
    if decoder == "eomt":
        raise ValueError(
            'the decoder "eomt" is not trained here: released models are converted, evaluated and '
            "predicted with, see docs/backbones.md; train another decoder"
        )


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """What a run computes; equal programs on equal data make equal runs.

    Attributes:
      model: the network; it is put on `mesh`.
      optimizer: see `optimizers.make_optimizer`.
      schedule: step to learning rate.
      options: what a step does besides.
      mesh: where the program runs, see `sharding.make_mesh`.
      seed: base of all randomness of the steps, which is a function of (seed, step).
    """

    model: Segmenter
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    options: StepOptions
    mesh: Mesh
    seed: int = 0

    def __post_init__(self) -> None:
        check_decoder(self.model.config.decoder)
        object.__setattr__(self, "model", self.model.clone(mesh=self.mesh))

    @property
    def eval_model(self) -> Segmenter:
        """The network of `TrainState.eval_params`."""
        return self.model.clone(config=dataclasses.replace(self.model.config, head_norm="none"))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state: what initialisation and restoring aim at."""
        params = abstract_params(self.model.config)
        trained, _ = split_params(params, self.options)
        shapes = TrainState(
            jax.ShapeDtypeStruct((), jnp.int32),
            params,
            jax.eval_shape(self.optimizer.init, trained),
            params if self.options.ema_decay else None,
            jax.eval_shape(lambda: init_stats(self.model.config)),
        )
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            sharding.tree_sharding(shapes, self.mesh),
        )

    def abstract_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a global batch; crops have the model's `image_size`."""
        config = self.model.config
        place = sharding.batch_sharding(self.mesh)
        shapes = {"label": (config.image_size, jnp.uint8)}
        if self.options.from_features:
            tokens = math.prod(patch_grid(config.image_size, config.patch_size))
            shapes |= {"features": ((tokens, config.width), jnp.float16)}
        else:
            image = ((*config.image_size, config.in_channels), jnp.uint8)
            shapes |= {"image": image, "valid_size": ((2,), jnp.int32)}
        return {
            name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=place)
            for name, (shape, dtype) in shapes.items()
        }

    def place(self, params: Params) -> TrainState:
        """State before the first update, each leaf in its shards.

        What is as large as the parameters, the optimizer's moments and the average, is made there.

        Args:
          params: of the model, the same in every process, on the host or on local devices.
        """
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())

        def place(leaf: jax.Array, where: NamedSharding) -> jax.Array:
            leaf = np.asarray(leaf)
            # A copy, since a step donates it: on the CPU arrays may share the host's memory.
            return jax.make_array_from_callback(leaf.shape, where, lambda i: np.array(leaf[i]))

        params = jax.tree.map(place, params, places.params)
        trained, _ = split_params(params, self.options)
        opt_state = jax.jit(self.optimizer.init, out_shardings=places.opt_state)(trained)
        # Copies as well: a step donates both.
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=places.ema)
        ema = copy(params) if self.options.ema_decay else None
        stats = jax.tree.map(place, init_stats(self.model.config), places.stats)
        return TrainState(place(np.int32(0), places.step), params, opt_state, ema, stats)

    def put(self, batch: dict[str, np.ndarray]) -> Batch:
        """Joins every process's rows into one global batch on the devices.

        Args:
          batch: this process's share, arrays of (global_batch / num_processes, ...).
        """
        place = sharding.batch_sharding(self.mesh)
        # With several processes JAX does not count this copy as one that is asked for.
        with jax.transfer_guard_host_to_device("allow"):
            return {k: jax.make_array_from_process_local_data(place, v) for k, v in batch.items()}

    @functools.cached_property
    def step(self) -> Any:
        """`update` as one compiled program, (state, batch) -> (state, metrics).

        The state given to it is donated.
        """
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        return jax.jit(
            functools.partial(update, self),
            in_shardings=(places, sharding.batch_sharding(self.mesh)),
            out_shardings=(places, sharding.replicated(self.mesh)),
            donate_argnums=0,
        )


def update(program: TrainProgram, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      program: the run.
      state: before the update.
      batch: `label` uint8 (B, S, S), and `image` uint8 (B, S, S, C) and `valid_size` int32 (B, 2),
        or `features` float16 (B, N, D) of `model.encode_patches`.

    Returns:
      The state after the update and float32 scalars: `loss`, `grad_norm` before clipping,
      `update_norm` of what was added to the parameters, `learning_rate`, and `skipped`, 1 where the
      update was left out.
    """
    options = program.options
    color_key, dropout_key = step_keys(program.seed, state.step)
    if options.from_features:
        inputs = batch["features"]
    else:
        inputs = prepare_image(batch, color_key, options)
    trained, frozen = split_params(state.params, options)
    data = inputs, batch["label"], dropout_key
    loss, grads, stats = _loss_and_grads(program, trained, frozen, state.stats, *data)
    direction, opt_state = program.optimizer.update(grads, state.opt_state, trained)
    learning_rate = jnp.asarray(program.schedule(state.step), jnp.float32)
    updates = jax.tree.map(lambda d: -learning_rate * d, direction)
    params = frozen | optax.apply_updates(trained, updates)
    ema = _average(state.ema, params, options)
    after = TrainState(state.step + 1, params, opt_state, ema, stats)
    metrics = {
        "loss": loss,
        "grad_norm": optax.global_norm(grads),
        "update_norm": optax.global_norm(updates),
        "learning_rate": learning_rate,
        "skipped": jnp.zeros(()),
    }
    return _skip_non_finite(state, after, metrics) if options.skip_non_finite else (after, metrics)


def step_keys(seed: int, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys of a step: of the colour augmentation, and of dropout and stochastic depth."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    color_key, dropout_key = jax.random.split(key)
    return color_key, dropout_key


@jax.named_scope("augmentation")
def prepare_image(batch: Batch, key: jax.Array, options: StepOptions) -> jax.Array:
    """Colour augmentation and normalisation of a uint8 batch; padding becomes 0."""
    image = batch["image"].astype(jnp.float32)
    if options.photometric:
        image = photometric_distortion(key, image)
    return normalize(image, batch["valid_size"], options.mean, options.std)


def loss_sum(
    program: TrainProgram,
    trained: Params,
    frozen: Params,
    stats: Params | None,
    inputs: jax.Array,
    label: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, Params | None]]:
    """Cross entropy summed over valid pixels, and what to divide it by.

    Args:
      program: the run.
      trained, frozen: parameters of its model, see `split_params`.
      stats: see `TrainState`.
      inputs: normalised float32 images (B, H, W, C), or features (B, N, D).
      label: uint8 (B, H, W).
      key: of dropout and stochastic depth.

    Returns:
      The sum, a float32 scalar; and the number or total weight of the valid pixels, and the
      statistics after the batch.
    """
    model, options = program.model, program.options
    variables = {"params": frozen | trained} | ({} if stats is None else {"batch_stats": stats})
    run = functools.partial(
        model.apply, variables, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    if options.from_features:
        logits, changed = run(inputs, label.shape[1:], method="decode")
    else:
        logits, changed = run(inputs)
    weights = options.class_weights
    total, weight = segmentation_loss(
        logits,
        label,
        patch_size=model.config.patch_size,
        ignore_label=options.ignore_label,
        class_weights=None if weights is None else jnp.asarray(weights, jnp.float32),
        mesh=program.mesh,
    )
    return total, (weight, changed.get("batch_stats"))


def _loss_and_grads(
    program: TrainProgram,
    trained: Params,
    frozen: Params,
    stats: Params | None,
    inputs: jax.Array,
    label: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, Params, Params | None]:
    """Mean loss over the valid pixels of the global batch, its gradient, and the statistics."""
    mesh = program.mesh
    trained, frozen = _gathered(program, trained), _gathered(program, frozen)

    def grad_fn(stats: Params | None, inputs: jax.Array, label: jax.Array, key: jax.Array):
        value_and_grad = jax.value_and_grad(loss_sum, argnums=1, has_aux=True)
        data = inputs, label, key
        (loss, (weight, stats)), grads = value_and_grad(program, trained, frozen, stats, *data)
        return (loss, weight, scatter(grads, mesh)), stats

    parts = program.options.grad_accum_steps
    if parts == 1:
        (total, weight, grads), stats = grad_fn(stats, inputs, label, key)
    else:
        # Each part takes every parts-th row, so that it spreads over all devices.
        def split(x: jax.Array) -> jax.Array:
            return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

        def body(carry, part):
            sums, stats = carry
            new, stats = grad_fn(stats, *part)
            return (jax.tree.map(jnp.add, sums, new), stats), None

        zero_grads = scatter(jax.tree.map(jnp.zeros_like, trained), mesh)
        zero = (jnp.zeros(()), jnp.zeros(()), zero_grads)
        keys = jax.random.split(key, parts)
        data = split(inputs), split(label), keys
        ((total, weight, grads), stats), _ = jax.lax.scan(body, (zero, stats), data)
    # Dividing once by the global weight keeps the mean exact however the batch is cut.
    weight = jnp.where(weight > 0, weight, 1)
    return total / weight, jax.tree.map(lambda g: g / weight, grads), stats


def _gathered(program: TrainProgram, params: Params) -> Params:
    """Parameters whole on every device, but for scanned layers: the loop gathers one by one."""
    scanned = program.model.config.scan_layers

    def whole(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        in_loop = scanned and any("encoderblock" in str(key) for key in path)
        return leaf if in_loop else gather(leaf, program.mesh)

    return jax.tree_util.tree_map_with_path(whole, params)


def _average(ema: Params | None, params: Params, options: StepOptions) -> Params | None:
    if ema is None:
        return None
    # In this form an average that equals its parameters stays equal to the last bit.
    return jax.tree.map(lambda e, p: e + (1 - options.ema_decay) * (p - e), ema, params)


def _skip_non_finite(
    before: TrainState, after: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """Keeps `before`, but for its step, where a norm or the loss is not finite."""
    checked = jnp.stack([metrics[name] for name in ("loss", "grad_norm", "update_norm")])
    finite = jnp.isfinite(checked).all()
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    skipped = 1 - finite.astype(jnp.float32)
    return kept.replace(step=after.step), metrics | {"skipped": skipped}
