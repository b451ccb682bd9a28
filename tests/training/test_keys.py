"""Where the randomness of a training step comes from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segmenter_jax.models import Segmenter
from segmenter_jax.training import optimizers, sharding
from segmenter_jax.training import program as training_program
from segmenter_jax.training.program import TrainProgram
from segmenter_jax.training.state import StepOptions, TrainState
from tests.tiny import tiny_network


@pytest.mark.parametrize("parts", [1, 2])
def test_seeds_steps_augmentation_and_parts_draw_with_keys_of_their_own(parts, monkeypatch):
    used = []
    optimizer = optimizers.make_optimizer(
        "sgd", momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=None
    )
    program = TrainProgram(
        Segmenter(tiny_network()),
        optimizer,
        lambda _: 0.1,
        StepOptions((0.5,) * 3, (0.5,) * 3, grad_accum_steps=parts),
        sharding.make_mesh(num_devices=1),
    )
    batch = {name: np.zeros((parts, 1)) for name in ("image", "label")}
    params = {"decoder": {"kernel": jnp.ones(1)}}

    def note(key):
        jax.debug.callback(lambda bits: used.append(tuple(bits.tolist())), jax.random.key_data(key))

    def prepare_image(batch, key, options):
        note(key)
        return batch["image"]

    def loss_sum(program, trained, frozen, stats, image, label, key):
        note(key)
        return optax.global_norm(trained), (jnp.ones(()), stats)

    monkeypatch.setattr(training_program, "prepare_image", prepare_image)
    monkeypatch.setattr(training_program, "loss_sum", loss_sum)

    @functools.partial(jax.jit, static_argnames="seed")
    def update(state, seed):
        return training_program.update(dataclasses.replace(program, seed=seed), state, batch)

    def keys(seed, step):
        used.clear()
        update(TrainState(jnp.int32(step), params, optimizer.init(params)), seed)
        jax.effects_barrier()
        return sorted(used)

    drawn = [keys(seed, step) for seed in (0, 1) for step in (0, 1, 2)]
    assert {len(each) for each in drawn} == {1 + parts}
    assert len({key for each in drawn for key in each}) == 6 * (1 + parts)
    assert keys(0, 1) == drawn[1]
