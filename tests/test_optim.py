"""Schedules and optimizers."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segmenter_jax import optim


def test_polynomial_schedule_equals_the_reference_at_every_step(golden_dir):
    golden = np.load(golden_dir / "poly_schedule.npz")
    schedule = optim.polynomial_schedule(
        float(golden["base_lr"]),
        float(golden["min_lr"]),
        int(golden["total_steps"]),
        float(golden["power"]),
    )
    ours = np.array([schedule(i) for i in range(len(golden["lr"]))])
    np.testing.assert_allclose(ours, golden["lr"], rtol=0, atol=1e-7)
    # Near the end 1 - step / total loses digits in float32.
    np.testing.assert_allclose(ours, golden["lr"], rtol=5e-6)


def test_cosine_schedule_warms_up_peaks_and_ends_at_the_minimum():
    schedule = optim.warmup_cosine_schedule(1.0, 0.1, total_steps=110, warmup_steps=10)
    np.testing.assert_allclose(
        [schedule(i) for i in (0, 5, 10, 60, 110, 200)], [0, 0.5, 1, 0.55, 0.1, 0.1], atol=1e-6
    )


def test_sgd_is_momentum_without_nesterov():
    optimizer = optim.make_optimizer(
        "sgd", lambda _: 0.5, momentum=0.9, weight_decay=0.0, clip_norm=None
    )
    params = {"w": jnp.array([1.0])}
    state = optimizer.init(params)
    for expected in (0.0, -1.9):  # 1 - 0.5 * 2, then 0 - 0.5 * (0.9 * 2 + 2).
        updates, state = optimizer.update({"w": jnp.array([2.0])}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], [expected], atol=1e-6)


def test_adamw_decays_kernels_only():
    optimizer = optim.make_optimizer(
        "adamw", lambda _: 0.1, momentum=0.9, weight_decay=0.5, clip_norm=None
    )
    params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "cls": jnp.ones((1, 1, 2))}
    zero = {
        "head": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)},
        "cls": jnp.zeros((1, 1, 2)),
    }
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], np.full((2, 2), -0.05), rtol=1e-6)
    assert not np.any(updates["head"]["bias"]) and not np.any(updates["cls"])


def test_clipping_bounds_the_global_norm():
    optimizer = optim.make_optimizer(
        "sgd", lambda _: 1.0, momentum=0.0, weight_decay=0.0, clip_norm=1.0
    )
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "linear"},
            r"schedule 'linear' is unknown; choose from \('polynomial', 'cosine'\)",
        ),
        ({"warmup_steps": 5}, "has no warm-up"),
        ({"name": "cosine", "warmup_steps": 100}, "warmup_steps=100 must be"),
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
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
        optim.make_schedule(**(settings | change))


def test_unknown_optimizer_lists_the_choices():
    with pytest.raises(ValueError, match=r"'lion' is unknown; choose from \('sgd', 'adamw'\)"):
        optim.make_optimizer("lion", lambda _: 1.0, momentum=0, weight_decay=0, clip_norm=None)
