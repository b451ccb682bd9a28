"""The training step against the reference, across devices, and against its own plain forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segmenter_jax import optim, sharding
from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.train_step import (
    StepOptions,
    TrainState,
    abstract_train_state,
    create_train_state,
    make_train_step,
)
from tests.golden_params import golden_config, golden_params

# With these the step's normalisation is the identity.
IDENTITY = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}

TINY = SegmenterConfig(
    num_classes=5,
    image_size=(32, 32),
    width=64,
    depth=1,
    num_heads=2,
    patch_size=8,
    decoder_depth=1,
    drop_path_rate=0.0,
    decoder_dropout_rate=0.0,
)


def sgd(schedule):
    return optim.make_optimizer("sgd", schedule, momentum=0.9, weight_decay=0.0, clip_norm=None)


def make_batch(rows=8, size=32, num_classes=5, seed=0, ignored=False):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, (rows, size, size)).astype(np.uint8)
    label[rng.random(label.shape) < 0.3] = 255
    label[slice(None) if ignored else 0] = 255  # Valid pixels are spread unevenly over the batch.
    valid_size = np.stack([rng.integers(8, size + 1, rows), rng.integers(8, size + 1, rows)], 1)
    return {
        "image": rng.integers(0, 256, (rows, size, size, 3)).astype(np.uint8),
        "label": label,
        "valid_size": valid_size.astype(np.int32),
    }


@functools.cache
def run_steps(mesh, steps=2, options=None, config=TINY, ignored=False):
    model, schedule = Segmenter(config), lambda _: 0.1
    optimizer = sgd(schedule)
    options = options or StepOptions(mean=(0.5,) * 3, std=(0.5,) * 3)
    state = create_train_state(model, optimizer, mesh, seed=3)
    step = make_train_step(model, optimizer, schedule, options, mesh, seed=3)
    losses, norms = [], []
    for i in range(steps):
        state, metrics = step(state, sharding.put_batch(make_batch(seed=i, ignored=ignored), mesh))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    return jax.device_get(state), losses, norms


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("loss_implementation", ["fused", "plain"])
def test_four_steps_equal_the_reference(golden_dir, loss_implementation):
    golden = np.load(golden_dir / "train_steps.npz")
    mesh = sharding.make_mesh(num_devices=1)
    model = Segmenter(golden_config("segm_mask"))
    schedule = optim.polynomial_schedule(0.1, 1e-5, total_steps=10)
    optimizer = sgd(schedule)
    options = StepOptions(**IDENTITY, photometric=False, loss_implementation=loss_implementation)
    params = jax.tree.map(jnp.asarray, golden_params("segm_mask"))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    step = make_train_step(model, optimizer, schedule, options, mesh, seed=0)
    for i in range(4):
        batch = {
            "image": golden[f"step{i}/image_nhwc"],
            "label": golden[f"step{i}/label"],
            "valid_size": np.full((2, 2), 64, np.int32),
        }
        state, metrics = step(state, batch)
        for ours, theirs in (("learning_rate", "lr"), ("loss", "loss"), ("grad_norm", "grad_norm")):
            np.testing.assert_allclose(metrics[ours], golden[f"step{i}/{theirs}"], rtol=1e-5)
    params = state.params
    decoder, encoder = params["decoder"], params["encoder"]
    attention = encoder["encoderblock_0"]["attention"]
    qkv = np.concatenate(
        [attention[n]["kernel"].reshape(64, 64).T for n in ("query", "key", "value")]
    )
    for name, ours in (
        ("decoder.cls_emb", decoder["class_embedding"]),
        ("decoder.proj_patch", decoder["proj_patch"]),
        ("decoder.mask_norm.weight", decoder["mask_norm"]["scale"]),
        ("encoder.patch_embed.proj.weight", encoder["embedding"]["kernel"].transpose(3, 2, 0, 1)),
        ("encoder.blocks.0.attn.qkv.weight", qkv),
    ):
        np.testing.assert_allclose(ours, golden[f"final/{name}"], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_one_and_eight_devices_give_the_same_update(fsdp):
    one = run_steps(sharding.make_mesh(num_devices=1))
    eight = run_steps(sharding.make_mesh(fsdp=fsdp))
    np.testing.assert_allclose(one[1], eight[1], rtol=1e-5)
    np.testing.assert_allclose(one[2], eight[2], rtol=1e-5)
    assert_trees_close(one[0].params, eight[0].params, atol=1e-5)


def test_random_regularisation_is_the_same_on_any_number_of_devices():
    config = SegmenterConfig(
        **(vars(TINY) | {"drop_path_rate": 0.5, "decoder_dropout_rate": 0.3, "dropout_rate": 0.1})
    )
    one = run_steps(sharding.make_mesh(num_devices=1), config=config)
    eight = run_steps(sharding.make_mesh(), config=config)
    np.testing.assert_allclose(one[1], eight[1], rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts):
    whole = run_steps(sharding.make_mesh(num_devices=2))
    options = StepOptions(mean=(0.5,) * 3, std=(0.5,) * 3, grad_accum_steps=parts)
    cut = run_steps(sharding.make_mesh(num_devices=2), options=options)
    np.testing.assert_allclose(whole[1], cut[1], rtol=1e-5)
    assert_trees_close(whole[0].params, cut[0].params, atol=1e-5)


def test_batch_without_a_valid_pixel_changes_nothing():
    mesh = sharding.make_mesh()
    before = jax.device_get(
        create_train_state(Segmenter(TINY), sgd(lambda _: 0.1), mesh, seed=3).params
    )
    state, losses, norms = run_steps(mesh, steps=1, ignored=True)
    assert losses == [0.0] and norms == [0.0]
    assert_trees_close(before, state.params, atol=0)


def test_steps_do_not_compile_again():
    mesh = sharding.make_mesh()
    model, optimizer = Segmenter(TINY), sgd(lambda _: 0.1)
    options = StepOptions(mean=(0.5,) * 3, std=(0.5,) * 3)
    step = make_train_step(model, optimizer, lambda _: 0.1, options, mesh, seed=0)
    state = create_train_state(model, optimizer, mesh, seed=0)
    for i in range(3):
        state, _ = step(state, sharding.put_batch(make_batch(seed=i), mesh))
    assert step._cache_size() == 1


def test_fsdp_cuts_parameters_and_moments_alike():
    mesh = sharding.make_mesh(fsdp=8)
    optimizer = optax.adamw(1e-3)
    target = abstract_train_state(Segmenter(TINY), optimizer, mesh)
    kernel = ("encoder", "encoderblock_0", "mlp", "Dense_0", "kernel")

    def spec(tree):
        for name in kernel:
            tree = tree[name]
        return tree.sharding.spec

    assert spec(target.params) == jax.P(None, "fsdp")
    assert spec(target.opt_state[0].mu) == spec(target.params)
    state = create_train_state(Segmenter(TINY), optimizer, mesh, seed=0)
    assert state.params["encoder"]["encoderblock_0"]["mlp"]["Dense_0"]["kernel"].addressable_shards[
        0
    ].data.shape == (64, 32)


def test_bfloat16_keeps_parameters_and_loss_in_float32():
    config = SegmenterConfig(**(vars(TINY) | {"dtype": "bfloat16"}))
    state, losses, _ = run_steps(sharding.make_mesh(), config=config)
    _, reference, _ = run_steps(sharding.make_mesh())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(losses, reference, rtol=2e-2)
