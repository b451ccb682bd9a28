"""The table of memory, and where its numbers are from."""

import dataclasses

import jax
import pytest

from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.training import optimizers, sharding
from segmenter_jax.training.memory import MemoryRow, memory_rows, memory_table, temporary_bytes
from segmenter_jax.training.state import (
    StepOptions,
    abstract_batch,
    abstract_train_state,
    create_train_state,
)
from segmenter_jax.training.step import make_train_step
from tests.compilations import compilations

TINY = SegmenterConfig(
    num_classes=5, image_size=(32, 32), width=64, depth=1, num_heads=2, patch_size=8
)
OPTIONS = StepOptions(mean=(0.5,) * 3, std=(0.5,) * 3, ema_decay=0.9)


def target_of(options, mesh, name="sgd"):
    optimizer = optimizers.make_optimizer(name, momentum=0.9, weight_decay=0.0, clip_norm=None)
    return optimizer, abstract_train_state(Segmenter(TINY), optimizer, options, mesh)


@pytest.mark.parametrize("fsdp", [1, 8])
def test_rows_are_what_lies_on_a_device(fsdp):
    mesh = sharding.make_mesh(fsdp=fsdp)
    optimizer, target = target_of(OPTIONS, mesh)
    state = create_train_state(Segmenter(TINY), optimizer, OPTIONS, mesh, seed=0)

    def held(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    rows = {row.name: row.on_device for row in memory_rows(target, OPTIONS)}
    assert rows == {
        "parameters": held(state.params),
        "optimizer": held(state.opt_state),
        "average of parameters": held(state.ema),
        "gradients": held(state.params),
    }


def test_frozen_parameters_have_no_gradient_and_no_moments():
    options = dataclasses.replace(OPTIONS, freeze_encoder=True, ema_decay=0.0)
    _, target = target_of(options, sharding.make_mesh(), "adamw")
    rows = {row.name: row.whole for row in memory_rows(target, options)}
    decoder = sum(4 * x.size for x in jax.tree.leaves(target.params["decoder"]))
    assert rows["gradients"] == decoder
    assert rows["optimizer"] == 2 * decoder + 4  # Two moments, and a count.
    assert "average of parameters" not in rows


def test_table_lists_megabytes_and_their_sum():
    rows = [
        MemoryRow("parameters", 1_500_000, 12_000_000),
        MemoryRow("optimizer", 500_000, 500_000),
    ]
    assert [line.split() for line in memory_table(rows).splitlines()] == [
        ["memory", "in", "MB", "one", "device", "all,", "once"],
        ["parameters", "1.5", "12.0"],
        ["optimizer", "0.5", "0.5"],
        ["sum", "2.0", "12.5"],
    ]


def test_plan_of_the_step_costs_no_second_compilation():
    mesh = sharding.make_mesh(num_devices=2)
    optimizer, target = target_of(OPTIONS, mesh)
    model = Segmenter(TINY)
    step = make_train_step(model, optimizer, lambda _: 0.1, OPTIONS, mesh, seed=0)
    state = create_train_state(model, optimizer, OPTIONS, mesh, seed=0)
    shapes = abstract_batch(TINY, 4, mesh)
    batch = sharding.put_batch(
        {k: jax.numpy.zeros(v.shape, v.dtype) for k, v in shapes.items()}, mesh
    )
    temporary = temporary_bytes(step, target, shapes)
    with compilations() as counted:
        step(state, batch)
    assert counted == []
    rows = memory_rows(target, OPTIONS, temporary)
    assert rows[-1].name == "activations and work space"
    gradients = sum(4 * x.size for x in jax.tree.leaves(target.params))
    assert rows[-1].on_device == temporary - gradients > 0
