import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segmenter_jax.training.color_augment import (
    ColorDraw,
    apply_colors,
    draw_colors,
    photometric_distortion,
)


def colors(count: int = 4096, seed: int = 0) -> np.ndarray:
    """uint8 (1, count, 1, 3), with greys and pure colours among them."""
    values = np.random.default_rng(seed).integers(0, 256, (count, 3), np.uint8)
    values[:4] = [[0, 0, 0], [255, 255, 255], [128, 128, 128], [255, 0, 0]]
    values[4:8] = [[0, 255, 0], [0, 0, 255], [255, 255, 0], [10, 200, 200]]
    return values.reshape(1, count, 1, 3)


def make_draw(brightness=0.0, contrast=1.0, first=False, saturation=1.0, hue=0) -> ColorDraw:
    return ColorDraw(
        brightness=jnp.array([brightness], jnp.float32),
        contrast=jnp.array([contrast], jnp.float32),
        contrast_first=jnp.array([first]),
        saturation=jnp.array([saturation], jnp.float32),
        hue=jnp.array([hue], jnp.int32),
    )


def distort(image: np.ndarray, **draw) -> np.ndarray:
    return np.asarray(apply_colors(jnp.asarray(image, jnp.float32), make_draw(**draw)))


def reference(image, brightness=0.0, contrast=1.0, first=False, saturation=1.0, hue=0):
    """What the PyTorch reference does: uint8 after every operation, HSV in whole steps."""

    def scaled(values, factor=1.0, offset=0.0):
        return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

    image = scaled(image[0], offset=brightness)
    if first:
        image = scaled(image, contrast)
    if saturation != 1.0:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = scaled(hsv[..., 1], saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return (image if first else scaled(image, contrast))[None]


CASES = [
    {},
    {"brightness": 25.0},
    {"brightness": -31.0},
    {"contrast": 0.6},
    {"contrast": 1.4, "first": True},
    {"saturation": 0.5},
    {"saturation": 1.5},
    {"hue": 17},
    {"hue": -18},
    {"brightness": 20.0, "contrast": 1.3, "first": True, "saturation": 1.2, "hue": -7},
    {"brightness": -20.0, "contrast": 0.7, "first": False, "saturation": 0.8, "hue": 9},
]


@pytest.mark.parametrize("draw", CASES)
def test_agrees_with_the_reference_in_uint8(draw):
    error = distort(colors(), **draw) - reference(colors(), **draw)
    if "saturation" in draw or "hue" in draw:
        # OpenCV's tables of whole numbers round a few ties to another step of hue, the other way.
        assert np.abs(error).mean() < 0.06 and abs(error.mean()) < 0.005
    else:
        assert not error.any()


def test_brightness_and_contrast_by_hand():
    image = np.array([10, 100, 250], np.uint8).reshape(1, 1, 1, 3)
    got = distort(image, brightness=20.0, contrast=1.1, first=True).ravel()
    np.testing.assert_allclose(got, [33.0, 132.0, 255.0], rtol=1e-5)


def test_hue_by_hand():
    # 30 steps of 2 degrees turn red into yellow; 18 are the most that is drawn. Half of 255 is
    # rounded to an even level.
    red = np.array([255, 0, 0], np.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(distort(red, hue=15).ravel(), [255, 128, 0], atol=1e-3)
    np.testing.assert_allclose(distort(red, hue=-15).ravel(), [255, 0, 128], atol=1e-3)


def test_draws_have_the_stated_ranges_and_odds():
    draw = jax.tree.map(np.asarray, draw_colors(jax.random.key(0), 20000))
    active = {
        "brightness": draw.brightness != 0,
        "contrast": draw.contrast != 1,
        "saturation": draw.saturation != 1,
        "first": draw.contrast_first,
    }
    for share in active.values():
        assert share.mean() == pytest.approx(0.5, abs=0.015)
    # One of the 36 hue steps is 0.
    assert (draw.hue != 0).mean() == pytest.approx(0.5 * 35 / 36, abs=0.015)
    assert -32 <= draw.brightness.min() < -31.9 and 31.9 < draw.brightness.max() <= 32
    assert 0.5 <= draw.contrast.min() < 0.51 and 1.49 < draw.contrast.max() <= 1.5
    assert 0.5 <= draw.saturation.min() < 0.51 and 1.49 < draw.saturation.max() <= 1.5
    assert (draw.hue.min(), draw.hue.max()) == (-18, 17)
    columns = np.stack([*active.values(), draw.hue != 0]).astype(float)
    assert np.abs(np.corrcoef(columns) - np.eye(5)).max() < 0.03
    values = np.stack([draw.brightness, draw.contrast, draw.saturation, draw.hue])
    every = columns[[0, 1, 2, 4]].all(axis=0)
    # Five standard deviations of the correlation of independent draws.
    bound = 5 / every.sum() ** 0.5
    assert np.abs(np.corrcoef(values[:, every]) - np.eye(4)).max() < bound


def test_samples_draw_independently_and_extra_channels_pass():
    image = jnp.broadcast_to(jnp.array([50.0, 100.0, 150.0, 7.5]), (16, 4, 5, 4))
    got = np.asarray(jax.jit(photometric_distortion)(jax.random.key(1), image))
    assert got.shape == image.shape and got.dtype == np.float32
    np.testing.assert_array_equal(got[..., 3], 7.5)
    assert len({tuple(sample[0, 0]) for sample in got}) > 10
    assert got.min() >= 0 and got.max() <= 255


def test_distortion_needs_rgb():
    with pytest.raises(ValueError, match="needs RGB, got 1 channels"):
        photometric_distortion(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
