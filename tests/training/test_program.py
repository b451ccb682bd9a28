"""The training step against the reference, across devices, and against its own plain forms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segmenter_jax.models import Segmenter
from segmenter_jax.models.params import init_params
from segmenter_jax.training import optimizers, sharding
from segmenter_jax.training.program import TrainProgram
from segmenter_jax.training.state import StepOptions
from tests.golden_params import golden_config, golden_params
from tests.tiny import tiny_network

# With these the step's normalisation is the identity.
IDENTITY = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}

TINY = tiny_network()


OPTIONS = StepOptions(mean=(0.5,) * 3, std=(0.5,) * 3, photometric=False)


AVERAGED = dataclasses.replace(OPTIONS, ema_decay=0.75)


@functools.cache
def one_device():
    return sharding.make_mesh(num_devices=1)


@functools.cache
def sgd(**settings):
    defaults = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "clip_norm": None}
    return optimizers.make_optimizer("sgd", **(defaults | settings))


@functools.cache
def program_of(mesh, options=OPTIONS, config=TINY, optimizer=None):
    """A program with learning rate 0.1; equal ones are compiled once."""
    return TrainProgram(Segmenter(config), optimizer or sgd(), lambda _: 0.1, options, mesh, seed=3)


def first_state(program):
    return program.place(init_params(program.model.config, program.seed))


def placed(program, state):
    """A state of the host on a program's devices; a copy, since a step donates it."""
    target = program.abstract_state()
    return jax.tree.map(lambda x, t: jax.device_put(np.array(x), t.sharding), state, target)


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
def run_steps(mesh, steps=2, options=OPTIONS, config=TINY, ignored=False):
    program = program_of(mesh, options, config)
    batches = [make_batch(seed=i, ignored=ignored) for i in range(steps)]
    state, rows = run_from(program, first_state(program), batches)
    return state, *([float(row[name]) for row in rows] for name in ("loss", "grad_norm"))


def run_from(program, state, batches):
    """(state, metrics of every step) after steps on `batches`."""
    rows = []
    for batch in batches:
        state, metrics = program.step(state, program.put(batch))
        rows.append(jax.device_get(metrics))
    return jax.device_get(state), rows


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# With plain momentum, and with Nesterov's as the reference trains.
@pytest.mark.parametrize(
    ("nesterov", "name"), [(False, "train_steps"), (True, "train_steps_nesterov")]
)
def test_four_steps_equal_the_reference(golden_dir, nesterov, name):
    batches, golden = np.load(golden_dir / "train_steps.npz"), np.load(golden_dir / f"{name}.npz")
    program = TrainProgram(
        Segmenter(golden_config("segm_mask")),
        sgd(nesterov=nesterov),
        optimizers.polynomial_schedule(0.1, 1e-5, total_steps=10),
        StepOptions(**IDENTITY, photometric=False),
        one_device(),
    )
    state = program.place(golden_params("segm_mask"))
    for i in range(4):
        batch = {
            "image": batches[f"step{i}/image_nhwc"],
            "label": batches[f"step{i}/label"],
            "valid_size": np.full((2, 2), 64, np.int32),
        }
        state, metrics = program.step(state, batch)
        for ours, theirs in (("learning_rate", "lr"), ("loss", "loss"), ("grad_norm", "grad_norm")):
            np.testing.assert_allclose(metrics[ours], golden[f"step{i}/{theirs}"], rtol=1e-6)
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
        np.testing.assert_allclose(ours, golden[f"final/{name}"], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_one_and_eight_devices_give_the_same_update(fsdp):
    meshes = one_device(), sharding.make_mesh(fsdp=fsdp)
    state = jax.device_get(first_state(program_of(meshes[0])))
    for i in range(2):
        (one, (expected,)), (eight, (found,)) = (
            run_from(program, placed(program, state), [make_batch(seed=i)])
            for program in map(program_of, meshes)
        )
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
        assert_trees_close(eight.params, one.params, atol=1e-6)
        # The next step of both begins here, so that no rounding of this one grows in it.
        state = one


@pytest.mark.slow
def test_random_regularisation_is_the_same_on_any_number_of_devices():
    config = tiny_network(drop_path_rate=0.5, decoder_dropout_rate=0.3, dropout_rate=0.1)
    options = dataclasses.replace(OPTIONS, photometric=True)
    one = run_steps(one_device(), options=options, config=config)
    eight = run_steps(sharding.make_mesh(), options=options, config=config)
    np.testing.assert_allclose(one[1], eight[1], rtol=1e-5)


def test_batch_without_a_valid_pixel_changes_nothing():
    mesh = sharding.make_mesh()
    before = jax.device_get(first_state(program_of(mesh)).params)
    state, losses, norms = run_steps(mesh, steps=1, ignored=True)
    assert losses == [0.0] and norms == [0.0]
    assert_trees_close(before, state.params, atol=0)


def test_steps_do_not_compile_again():
    program = program_of(sharding.make_mesh())
    run_from(program, first_state(program), [make_batch(seed=i) for i in range(3)])
    assert program.step._cache_size() == 1


def test_fsdp_cuts_parameters_and_moments_alike():
    mesh = sharding.make_mesh(fsdp=8)
    program = program_of(mesh, optimizer=optax.adamw(1e-3))
    target = program.abstract_state()
    kernel = ("encoder", "encoderblock_0", "mlp", "Dense_0", "kernel")

    def spec(tree):
        for name in kernel:
            tree = tree[name]
        return tree.sharding.spec

    assert spec(target.params) == jax.P(None, "fsdp")
    assert spec(target.opt_state[0].mu) == spec(target.params)
    state = first_state(program)
    assert state.params["encoder"]["encoderblock_0"]["mlp"]["Dense_0"]["kernel"].addressable_shards[
        0
    ].data.shape == (64, 32)


def test_bfloat16_keeps_parameters_and_loss_in_float32():
    config = tiny_network(dtype="bfloat16")
    state, losses, _ = run_steps(sharding.make_mesh(), config=config)
    _, reference, _ = run_steps(sharding.make_mesh())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(losses, reference, rtol=2e-2)


def test_average_is_that_of_the_parameters_of_every_step():
    steps = [run_steps(one_device(), steps=n)[0].params for n in (1, 2)]
    first = first_state(program_of(one_device(), AVERAGED))
    assert_trees_close(first.params, first.ema, atol=0)
    state, *_ = run_steps(one_device(), options=AVERAGED)
    expected = jax.tree.map(
        lambda a, b, c: 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c, jax.device_get(first.ema), *steps
    )
    assert_trees_close(state.ema, expected, atol=1e-6)
    assert_trees_close(state.params, steps[-1], atol=1e-6)
    assert state.eval_params is state.ema


def test_average_and_accumulated_gradients_are_the_same_with_cut_parameters():
    whole = run_steps(one_device(), options=AVERAGED)
    options = dataclasses.replace(AVERAGED, grad_accum_steps=4)
    mesh = sharding.make_mesh(fsdp=2, num_devices=2)
    cut = run_steps(mesh, options=options)
    np.testing.assert_allclose(whole[1], cut[1], rtol=1e-5)
    assert_trees_close(whole[0].ema, cut[0].ema, atol=1e-5)
    assert_trees_close(whole[0].params, cut[0].params, atol=1e-5)
    target = program_of(mesh, options).abstract_state()
    places = [[leaf.sharding for leaf in jax.tree.leaves(t)] for t in (target.params, target.ema)]
    assert places[0] == places[1]


def test_update_that_is_not_finite_changes_nothing_but_the_step():
    options = dataclasses.replace(AVERAGED, skip_non_finite=True)
    program = program_of(one_device(), options)
    good = [make_batch(seed=i) for i in range(2)]
    before = jax.device_get(first_state(program).params)
    state, rows = run_from(program, first_state(program), good[:1])
    assert rows[0]["skipped"] == 0
    added = jax.tree.map(np.subtract, state.params, before)
    np.testing.assert_allclose(rows[0]["update_norm"], optax.global_norm(added), rtol=1e-4)

    # Finite parameters whose activations overflow: the loss is not finite for any image.
    broken = state.replace(
        params=jax.tree.map(lambda x: x * np.float32(1e30), state.params),
    )
    after, rows = run_from(program, jax.tree.map(jnp.asarray, broken), good[1:])
    assert rows[0]["skipped"] == 1 and not np.isfinite(rows[0]["grad_norm"])
    assert after.step == 2
    for name in ("params", "opt_state", "ema"):
        assert_trees_close(getattr(after, name), getattr(broken, name), rtol=0, atol=0)

    # A finite step is not changed by the policy.
    ends = [
        run_from(program_of(one_device(), o), jax.tree.map(jnp.asarray, state), good[1:])[0]
        for o in (options, AVERAGED)
    ]
    assert_trees_close(*ends, rtol=1e-6, atol=1e-7)


def test_frozen_encoder_stays_and_has_no_optimizer_state():
    options = dataclasses.replace(OPTIONS, freeze_encoder=True)
    mesh = one_device()
    first = jax.device_get(first_state(program_of(mesh, options)))
    moments = [leaf.size for leaf in jax.tree.leaves(first.opt_state)]
    assert sum(moments) == sum(leaf.size for leaf in jax.tree.leaves(first.params["decoder"]))
    state, _, norms = run_steps(mesh, options=options)
    assert_trees_close(state.params["encoder"], first.params["encoder"], atol=0)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, first.params)["decoder"]
    assert min(jax.tree.leaves(moved)) > 0
    # The decoder's first gradient is that of full training.
    full = run_steps(mesh, steps=1)[0].params["decoder"]
    assert_trees_close(
        run_steps(mesh, steps=1, options=options)[0].params["decoder"], full, atol=1e-6
    )
    assert norms[0] < run_steps(mesh)[2][0]


def test_layer_decay_scales_the_updates_of_each_layer():
    programs = [program_of(one_device(), optimizer=o) for o in (sgd(), sgd(layer_decay=0.5))]
    start = jax.device_get(first_state(programs[0]))
    full, scaled = (run_from(p, first_state(p), [make_batch()])[0].params for p in programs)
    moved, slower = (jax.tree.map(jnp.subtract, x, start.params) for x in (full, scaled))
    # One block: embeddings are layer 0 of 2, the block layer 1, all after it at the full rate.
    for names, factor in (
        (("encoder", "embedding"), 0.25),
        (("encoder", "pos_embedding"), 0.25),
        (("encoder", "cls"), 0.25),
        (("encoder", "encoderblock_0"), 0.5),
        (("encoder", "encoder_norm"), 1.0),
        (("decoder",), 1.0),
    ):
        a, b = moved, slower
        for name in names:
            a, b = a[name], b[name]
        assert_trees_close(jax.tree.map(lambda x, f=factor: f * x, a), b, rtol=1e-3, atol=1e-7)


def test_class_weights_scale_pixels_and_what_they_are_divided_by():
    weights = (0.01, 0.03, 5.0, 5.0, 5.0)

    def loss(label, weights):
        options = dataclasses.replace(OPTIONS, class_weights=weights)
        program = program_of(one_device(), options)
        batch = make_batch() | {"label": label}
        return run_from(program, first_state(program), [batch])[1][0]["loss"]

    label = np.full((8, 32, 32), 255, np.uint8)
    label[0], label[1] = 0, 1
    only = [np.where(label == k, label, 255).astype(np.uint8) for k in (0, 1)]
    expected = (0.01 * loss(only[0], None) + 0.03 * loss(only[1], None)) / 0.04
    np.testing.assert_allclose(loss(label, weights), expected, rtol=1e-5)
    # Total weights below 1 are divided by as well.
    few = np.full((8, 32, 32), 255, np.uint8)
    few[0, 0, 0] = 1
    np.testing.assert_allclose(loss(few, weights), loss(few, None), rtol=1e-5)


def test_rows_of_a_batch_are_spread_and_local_copy_joins_them():
    program = program_of(sharding.make_mesh(fsdp=2))
    rows = np.arange(16 * 3, dtype=np.uint8).reshape(16, 3)
    batch = program.put({"image": rows})
    assert batch["image"].addressable_shards[0].data.shape == (2, 3)
    copy = sharding.local_copy(batch, program.mesh)["image"]
    assert copy.devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(copy, rows)
