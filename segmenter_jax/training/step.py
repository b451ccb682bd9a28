"""One optimizer step: pure, jitted, sharded over a mesh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from segmenter_jax.models import Segmenter
from segmenter_jax.models.normalization import normalize
from segmenter_jax.models.params import Params
from segmenter_jax.training import sharding
from segmenter_jax.training.color_augment import photometric_distortion
from segmenter_jax.training.losses import segmentation_loss
from segmenter_jax.training.state import StepOptions, TrainState, abstract_train_state, split_params

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def prepare_image(batch: Batch, key: jax.Array, options: StepOptions) -> jax.Array:
    """Colour augmentation and normalisation of a uint8 batch; padding becomes 0."""
    image = batch["image"].astype(jnp.float32)
    if options.photometric:
        image = photometric_distortion(key, image)
    return normalize(image, batch["valid_size"], options.mean, options.std)


def loss_sum(
    trained: Params,
    frozen: Params,
    model: Segmenter,
    image: jax.Array,
    label: jax.Array,
    key: jax.Array,
    options: StepOptions,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy summed over valid pixels, and what to divide it by.

    Args:
      trained, frozen: parameters of `model`, see `train_state.split_params`.
      model: the network.
      image: normalised float32 (B, H, W, C).
      label: uint8 (B, H, W).
      key: of dropout and stochastic depth.
      options: see `StepOptions`.

    Returns:
      (sum, number or total weight of the valid pixels), float32 scalars.
    """
    params = frozen | trained
    logits = model.apply({"params": params}, image, train=True, rngs={"dropout": key})
    weights = options.class_weights
    return segmentation_loss(
        logits,
        label,
        patch_size=model.config.patch_size,
        ignore_label=options.ignore_label,
        class_weights=None if weights is None else jnp.asarray(weights, jnp.float32),
        implementation=options.loss_implementation,
        num_shards=options.num_shards,
    )


def _loss_and_grads(
    trained: Params,
    frozen: Params,
    model: Segmenter,
    image: jax.Array,
    label: jax.Array,
    key: jax.Array,
    options: StepOptions,
    mesh: Mesh,
) -> tuple[jax.Array, Params]:
    """Mean loss over the valid pixels of the global batch, and its gradient."""
    trained, frozen = sharding.gather((trained, frozen), mesh)

    def grad_fn(image: jax.Array, label: jax.Array, key: jax.Array):
        value_and_grad = jax.value_and_grad(loss_sum, has_aux=True)
        loss, grads = value_and_grad(trained, frozen, model, image, label, key, options)
        return loss, sharding.cut(grads, mesh)

    parts = options.grad_accum_steps
    if parts == 1:
        (total, weight), grads = grad_fn(image, label, key)
    else:
        # Each part takes every parts-th row, so that it spreads over all devices.
        def split(x: jax.Array) -> jax.Array:
            return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

        def body(carry, part):
            (loss, weight), grads = grad_fn(*part)
            return jax.tree.map(jnp.add, carry, (loss, weight, grads)), None

        zero_grads = sharding.cut(jax.tree.map(jnp.zeros_like, trained), mesh)
        zero = (jnp.zeros(()), jnp.zeros(()), zero_grads)
        keys = jax.random.split(key, parts)
        (total, weight, grads), _ = jax.lax.scan(body, zero, (split(image), split(label), keys))
    # Dividing once by the global weight keeps the mean exact however the batch is cut.
    weight = jnp.where(weight > 0, weight, 1)
    return total / weight, jax.tree.map(lambda g: g / weight, grads)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Segmenter,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    options: StepOptions,
    mesh: Mesh,
    seed: int,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      state: before the update.
      batch: `image` uint8 (B, S, S, C), `label` uint8 (B, S, S), `valid_size` int32 (B, 2).
      model: the network.
      optimizer: see `optim.make_optimizer`.
      schedule: step to learning rate.
      options: see `StepOptions`.
      mesh: where the step runs.
      seed: base of all randomness, which is a function of (seed, step).

    Returns:
      The state after the update and float32 scalars: `loss`, `grad_norm` before clipping,
      `update_norm` of what was added to the parameters, `learning_rate`, and `skipped`, 1 where the
      update was left out.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    color_key, dropout_key = jax.random.split(key)
    image = prepare_image(batch, color_key, options)
    trained, frozen = split_params(state.params, options)
    loss, grads = _loss_and_grads(
        trained, frozen, model, image, batch["label"], dropout_key, options, mesh
    )
    direction, opt_state = optimizer.update(grads, state.opt_state, trained)
    learning_rate = jnp.asarray(schedule(state.step), jnp.float32)
    updates = jax.tree.map(lambda d: -learning_rate * d, direction)
    params = frozen | optax.apply_updates(trained, updates)
    after = TrainState(state.step + 1, params, opt_state, _average(state.ema, params, options))
    metrics = {
        "loss": loss,
        "grad_norm": optax.global_norm(grads),
        "update_norm": optax.global_norm(updates),
        "learning_rate": learning_rate,
        "skipped": jnp.zeros(()),
    }
    return _skip_non_finite(state, after, metrics) if options.skip_non_finite else (after, metrics)


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
            mesh=mesh,
            seed=seed,
        )

    target = abstract_train_state(model, optimizer, options, mesh)
    state_sharding = jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(
        step,
        in_shardings=(state_sharding, sharding.batch_sharding(mesh)),
        out_shardings=(state_sharding, sharding.replicated(mesh)),
        donate_argnums=0,
    )
