"""The fused loss equals the plain one, and both equal their definition."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segmenter_jax.models import upsample
from segmenter_jax.training import losses
from segmenter_jax.training.losses import segmentation_loss

IGNORE = 255


def make_case(seed, batch, size, patch_size, num_classes, scale=3.0):
    rng = np.random.default_rng(seed)
    grid = [-(-n // patch_size) for n in size]
    logits = scale * rng.normal(size=(batch, *grid, num_classes)).astype(np.float32)
    label = rng.integers(0, num_classes, (batch, *size)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = IGNORE
    return logits, label


def value_and_grad(logits, label, **options):
    loss = functools.partial(segmentation_loss, **({"ignore_label": IGNORE} | options))
    (total, weight), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits, label)
    return float(total), float(weight), np.asarray(gradient)


def pixel_logits(logits, label, patch_size):
    """Bilinear upsampling written out, one pixel at a time, in float64."""
    height, width = label.shape[1:]
    out = np.zeros((len(logits), height, width, logits.shape[-1]))
    taps = []
    for n, length in zip(logits.shape[1:3], (height, width), strict=True):
        centre = np.clip((np.arange(length) + 0.5) / patch_size - 0.5, 0, n - 1)
        low = np.floor(centre).astype(int)
        taps.append((low, np.minimum(low + 1, n - 1), centre - low))
    for y, (y0, y1, ty) in enumerate(zip(*taps[0], strict=True)):
        for x, (x0, x1, tx) in enumerate(zip(*taps[1], strict=True)):
            above = (1 - tx) * logits[:, y0, x0] + tx * logits[:, y0, x1]
            below = (1 - tx) * logits[:, y1, x0] + tx * logits[:, y1, x1]
            out[:, y, x] = (1 - ty) * above + ty * below
    return out


def definition(logits, label, patch_size, class_weights=None):
    pixels = pixel_logits(logits.astype(np.float64), label, patch_size)
    total = weight = 0.0
    for index in np.argwhere(label != IGNORE):
        z, k = pixels[tuple(index)], label[tuple(index)]
        w = 1.0 if class_weights is None else class_weights[k]
        total += w * (np.log(np.exp(z - z.max()).sum()) + z.max() - z[k])
        weight += w
    return total, weight


@pytest.mark.parametrize("implementation", ["plain", "fused"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("patch_size, size", [(16, (32, 48)), (8, (21, 30)), (7, (13, 9))])
def test_value_is_the_definition(implementation, weighted, patch_size, size):
    logits, label = make_case(0, 2, size, patch_size, 5)
    class_weights = np.linspace(0.5, 2, 5, dtype=np.float32) if weighted else None
    expected = definition(logits, label, patch_size, class_weights)
    actual = segmentation_loss(
        logits,
        label,
        patch_size=patch_size,
        ignore_label=IGNORE,
        class_weights=class_weights,
        implementation=implementation,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


# Without and with pixels beyond the centres of the last patches, on either axis.
@pytest.mark.parametrize("size", [(5, 8), (8, 5)])
@pytest.mark.parametrize("implementation", ["plain", "fused"])
def test_gradient_is_the_finite_difference_of_the_definition(implementation, size):
    logits, label = make_case(1, 1, size, 4, 3)
    _, _, gradient = value_and_grad(logits, label, patch_size=4, implementation=implementation)
    step = 1e-5
    for index in np.ndindex(logits.shape):
        shift = np.zeros(logits.shape)
        shift[index] = step
        high, low = (definition(logits + sign * shift, label, 4)[0] for sign in (1, -1))
        assert gradient[index] == pytest.approx((high - low) / (2 * step), abs=1e-5)


@hypothesis.settings(deadline=None, max_examples=10, derandomize=True)
@hypothesis.given(
    batch=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    patch_size=st.sampled_from([1, 2, 3, 5, 6, 7, 8, 14, 16, 32]),
    num_classes=st.integers(1, 9),
    weighted=st.booleans(),
    block_rows=st.sampled_from([1, 2, 5, 16, 64]),
)
def test_fused_equals_plain(batch, height, width, patch_size, num_classes, weighted, block_rows):
    logits, label = make_case(height + 41 * width, batch, (height, width), patch_size, num_classes)
    options = {"patch_size": patch_size}
    if weighted:
        options["class_weights"] = jnp.linspace(0.1, 3, num_classes)
    plain = value_and_grad(logits, label, implementation="plain", **options)
    with pytest.MonkeyPatch.context() as patch:
        block_bytes = 4 * batch * width * num_classes * block_rows
        patch.setattr(losses, "_BLOCK_BYTES", {jax.default_backend(): block_bytes})
        fused = value_and_grad(logits, label, implementation="fused", **options)
    # The absolute part is rounding of the largest logits: with one class the loss itself is 0.
    np.testing.assert_allclose(fused[0], plain[0], rtol=1e-6, atol=1e-6 * label.size)
    np.testing.assert_allclose(fused[1], plain[1], rtol=1e-6)
    np.testing.assert_allclose(fused[2], plain[2], rtol=1e-5, atol=1e-6 * np.abs(plain[2]).max())


def test_plain_uses_the_same_upsampling_as_the_model():
    logits, label = make_case(2, 1, (21, 30), 8, 4)
    log_probs = np.asarray(jax.nn.log_softmax(upsample(jnp.asarray(logits), (21, 30), 8)))
    valid = label != IGNORE
    expected = -log_probs[valid][np.arange(valid.sum()), label[valid]].sum()
    actual, _ = segmentation_loss(
        logits, label, patch_size=8, ignore_label=IGNORE, implementation="plain"
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("implementation", ["plain", "fused"])
def test_all_pixels_ignored_gives_zero_and_no_nan(implementation):
    logits, label = make_case(3, 2, (20, 20), 16, 4)
    loss, weight, gradient = value_and_grad(
        logits, np.full_like(label, IGNORE), patch_size=16, implementation=implementation
    )
    assert (loss, weight) == (0.0, 0.0)
    assert not gradient.any()


@pytest.mark.parametrize("implementation", ["plain", "fused"])
def test_ignore_label_may_lie_among_the_classes(implementation):
    logits, label = make_case(4, 1, (16, 16), 8, 4)
    label[label == IGNORE] = 0
    label[0, 0] = 0
    moved = np.where(label == 0, IGNORE, label)
    options = {"patch_size": 8, "implementation": implementation}
    inside = value_and_grad(logits, label, ignore_label=0, **options)
    outside = value_and_grad(logits, moved, **options)
    # Two programs, which may add in another order: float32 rounding of the largest value.
    for a, b in zip(inside, outside, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


def test_fused_stays_finite_where_logits_are_huge():
    logits, label = make_case(5, 1, (32, 32), 16, 3, scale=1e4)
    plain = value_and_grad(logits, label, patch_size=16, implementation="plain")
    fused = value_and_grad(logits, label, patch_size=16)
    assert np.isfinite(fused[0]) and np.isfinite(fused[2]).all()
    np.testing.assert_allclose(fused[0], plain[0], rtol=1e-6)


def test_value_without_gradient_is_the_same():
    logits, label = make_case(6, 2, (40, 24), 8, 5)
    expected, _, _ = value_and_grad(logits, label, patch_size=8)
    actual, _ = segmentation_loss(logits, label, patch_size=8, ignore_label=IGNORE)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_eight_devices_equal_one_with_one_collective_per_result():
    logits, label = make_case(7, 8, (48, 48), 16, 5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    loss = functools.partial(segmentation_loss, patch_size=16, ignore_label=IGNORE, mesh=mesh)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, weight), gradient = step(logits, label)
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    args = jax.device_put((logits, label), sharding)
    (sharded_total, sharded_weight), sharded_gradient = step(*args)
    np.testing.assert_allclose(sharded_total, total, rtol=1e-6)
    assert sharded_weight == weight
    # Two programs, for one image and for eight, which add over pixels in another order: a small
    # gradient has the rounding of the large terms that it is the sum of.
    np.testing.assert_allclose(sharded_gradient, gradient, atol=1e-6 * np.abs(gradient).max())
    assert sharded_gradient.sharding.is_equivalent_to(sharding, 4)
    program = step.lower(*args).compile().as_text()
    assert program.count(" all-reduce(") == 2
    assert "all-gather" not in program


def test_fused_needs_a_fraction_of_the_memory():
    logits, label = make_case(8, 2, (256, 256), 16, 64)

    def temporary_bytes(implementation):
        loss = functools.partial(
            segmentation_loss, patch_size=16, ignore_label=IGNORE, implementation=implementation
        )
        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(logits, label).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes("fused") < 0.2 * temporary_bytes("plain")


def test_errors_name_value_and_rule():
    logits, label = make_case(9, 1, (16, 16), 8, 3)
    with pytest.raises(ValueError, match=r"label \(1, 16, 16\) at patch_size=4 does not belong"):
        segmentation_loss(logits, label, patch_size=4, ignore_label=IGNORE)
    with pytest.raises(ValueError, match=r"implementation='fast' is unknown.*fused.*plain"):
        segmentation_loss(logits, label, patch_size=8, ignore_label=IGNORE, implementation="fast")
    with pytest.raises(ValueError, match=r"class_weights must be \(3,\), got \(2,\)"):
        segmentation_loss(
            logits, label, patch_size=8, ignore_label=IGNORE, class_weights=np.ones(2)
        )
