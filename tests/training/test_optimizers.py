"""Schedules and optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from segmenter_jax.models.params import abstract_params
from segmenter_jax.training import optimizers
from tests.tiny import tiny_network


def test_polynomial_schedule_equals_the_reference_at_every_step(golden_dir):
    golden = np.load(golden_dir / "poly_schedule.npz")
    schedule = optimizers.polynomial_schedule(
        float(golden["base_lr"]),
        float(golden["min_lr"]),
        int(golden["total_steps"]),
        float(golden["power"]),
    )
    ours = np.array([schedule(i) for i in range(len(golden["lr"]))])
    np.testing.assert_allclose(ours, golden["lr"], rtol=0, atol=1e-7)
    # Near the end 1 - step / total loses digits in float32.
    np.testing.assert_allclose(ours, golden["lr"], rtol=5e-6)


def test_polynomial_schedule_warms_up_below_its_decay():
    warmed = optimizers.polynomial_schedule(1.0, 0.0, 100, power=1.0, warmup_steps=10)
    np.testing.assert_allclose(
        [warmed(i) for i in (0, 5, 10, 55, 100)], [0, 0.5 * 0.95, 0.9, 0.45, 0], atol=1e-6
    )


def test_cosine_schedule_warms_up_peaks_and_ends_at_the_minimum():
    schedule = optimizers.warmup_cosine_schedule(1.0, 0.1, total_steps=110, warmup_steps=10)
    np.testing.assert_allclose(
        [schedule(i) for i in (0, 5, 10, 60, 110, 200)], [0, 0.5, 1, 0.55, 0.1, 0.1], atol=1e-6
    )


# The trace is 2, then 0.9 * 2 + 2; Nesterov's direction is 2 + 0.9 * trace.
@pytest.mark.parametrize(("nesterov", "directions"), [(False, (2.0, 3.8)), (True, (3.8, 5.42))])
def test_directions_of_sgd_by_hand(nesterov, directions):
    optimizer = optimizers.make_optimizer(
        "sgd", momentum=0.9, nesterov=nesterov, weight_decay=0.0, clip_norm=None
    )
    params = {"w": jnp.array([1.0])}
    state = optimizer.init(params)
    for expected in directions:
        direction, state = optimizer.update({"w": jnp.array([2.0])}, state, params)
        np.testing.assert_allclose(direction["w"], [expected], atol=1e-6)


def test_adamw_decays_kernels_only():
    optimizer = optimizers.make_optimizer(
        "adamw", momentum=0.9, nesterov=True, weight_decay=0.5, clip_norm=None
    )
    params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "cls": jnp.ones((1, 1, 2))}
    zero = {
        "head": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)},
        "cls": jnp.zeros((1, 1, 2)),
    }
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], np.full((2, 2), 0.5), rtol=1e-6)
    assert not np.any(updates["head"]["bias"]) and not np.any(updates["cls"])


def test_adamw_by_hand_clipped_decayed_and_slower_in_lower_layers():
    # Of one block the rate is halved, that of the decoder is not.
    params = {"encoder": {"encoderblock_0": {"kernel": 2.0}}, "decoder": {"kernel": -3.0}}
    params = jax.tree.map(lambda value: jnp.array([value]), params)
    optimizer = optimizers.make_optimizer(
        "adamw", momentum=0.0, nesterov=False, weight_decay=0.1, clip_norm=1.0, layer_decay=0.5
    )
    state, values = optimizer.init(params), np.array([2.0, -3.0])
    mean, square = np.zeros(2), np.zeros(2)
    for step, gradient in enumerate(([3.0, -4.0], [0.1, 0.2], [-0.3, 0.4]), 1):
        grads = {
            "encoder": {"encoderblock_0": {"kernel": jnp.array(gradient[:1])}},
            "decoder": {"kernel": jnp.array(gradient[1:])},
        }
        direction, state = optimizer.update(grads, state, params)
        gradient = np.array(gradient) / max(np.hypot(*gradient), 1)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        adam = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        expected = (adam + 0.1 * values) * [0.5, 1.0]
        found = direction["encoder"]["encoderblock_0"]["kernel"], direction["decoder"]["kernel"]
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5)


def test_adamw_decays_every_matrix_of_a_network():
    # By name, whatever the shape.
    params = jax.tree.map(lambda _: jnp.ones(1), abstract_params(tiny_network()))
    zero = jax.tree.map(jnp.zeros_like, params)
    optimizer = optimizers.make_optimizer(
        "adamw", momentum=0.9, nesterov=False, weight_decay=0.5, clip_norm=None
    )
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    decayed = {name for name, value in flatten_dict(updates, sep="/").items() if value.any()}
    kernels = {name for name in flatten_dict(params, sep="/") if name.endswith("/kernel")}
    assert decayed == kernels | {"decoder/proj_patch", "decoder/proj_classes"}


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_sgd_decays_every_parameter_after_clipping_and_before_momentum(clip_norm):
    optimizer = optimizers.make_optimizer(
        "sgd", momentum=0.5, nesterov=False, weight_decay=0.1, clip_norm=clip_norm
    )
    params = {"kernel": jnp.array([10.0]), "bias": jnp.array([-20.0])}
    state = optimizer.init(params)
    scale = 1.0 if clip_norm is None else clip_norm / 5
    first = {"kernel": 3 * scale + 1, "bias": 4 * scale - 2}
    direction, state = optimizer.update(
        {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}, state, params
    )
    for name, value in first.items():
        np.testing.assert_allclose(direction[name], [value], rtol=1e-6)
    direction, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(direction["kernel"], [0.5 * first["kernel"] + 1], rtol=1e-6)
    np.testing.assert_allclose(direction["bias"], [0.5 * first["bias"] - 2], rtol=1e-6)


def test_layer_decay_counts_layers_from_the_decoder_down():
    params = abstract_params(tiny_network(depth=3, distilled=True))
    scales = flatten_dict(optimizers.layer_scales(params, 0.5), sep="/")
    expected = {"decoder": 1.0, "encoder/encoder_norm": 1.0}
    expected |= {f"encoder/encoderblock_{i}": 0.5 ** (3 - i) for i in range(3)}
    expected |= {
        f"encoder/{name}": 0.5**4 for name in ("embedding", "pos_embedding", "cls", "dist")
    }
    found = {
        group: {scale for name, scale in scales.items() if f"{name}/".startswith(f"{group}/")}
        for group in expected
    }
    assert found == {group: {scale} for group, scale in expected.items()}


def test_clipping_bounds_the_global_norm():
    optimizer = optimizers.make_optimizer(
        "sgd", momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=1.0
    )
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "linear"},
            r"schedule 'linear' is unknown; choose from \('polynomial', 'cosine'\)",
        ),
        ({"warmup_steps": 100}, "warmup_steps=100 must be"),
        ({"name": "cosine", "warmup_steps": 100}, "warmup_steps=100 must be"),
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0, got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0, got nan"),
        ({"min_learning_rate": 2.0}, "min_learning_rate must be in 0..learning_rate=1.0, got 2.0"),
        ({"power": 0.0}, "power must be positive, got 0.0"),
    ],
)
def test_wrong_schedules_are_refused(change, message):
    settings = {
        "name": "polynomial",
        "learning_rate": 1.0,
        "min_learning_rate": 0.0,
        "total_steps": 100,
        "power": 0.9,
        "warmup_steps": 0,
    }
    with pytest.raises(ValueError, match=message):
        optimizers.make_schedule(**(settings | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "lion"}, r"'lion' is unknown; choose from \('sgd', 'adamw'\)"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0, got -0.0001"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, or None for no clipping, got 0.0"),
        ({"clip_norm": float("inf")}, "clip_norm must be positive.*got inf"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], got 0.0"),
        ({"layer_decay": 1.1}, r"layer_decay must be in \(0, 1\], got 1.1"),
    ],
)
def test_wrong_optimizers_are_refused(change, message):
    settings = {
        "name": "sgd",
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.0,
        "clip_norm": None,
    }
    with pytest.raises(ValueError, match=message):
        optimizers.make_optimizer(**(settings | change))


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_optional_parts_leave_the_structure_of_the_state(name):
    params = {
        "encoder": {"cls": jnp.ones(1), "encoderblock_0": {"kernel": jnp.ones((2, 2))}},
        "decoder": {"head": {"kernel": jnp.ones((2, 2))}},
    }
    settings = {
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.0,
        "clip_norm": None,
        "layer_decay": 1.0,
    }
    plain = optimizers.make_optimizer(name, **settings).init(params)
    changes = {"weight_decay": 0.1, "clip_norm": 1.0, "layer_decay": 0.5}
    every = optimizers.make_optimizer(name, **(settings | changes)).init(params)
    paths = [
        [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(s)[0]]
        for s in (plain, every)
    ]
    assert paths[0] == paths[1] and paths[0]
