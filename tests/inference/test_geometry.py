"""Window placement, scaled sizes and the composed matrices."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmenter_jax.inference.geometry import (
    AxisGeometry,
    InferenceSettings,
    axis_tiles,
    check_image,
    merge_matrix,
    scaled_image,
    scaled_size,
    window_anchors,
)
from segmenter_jax.models.resampling import resize_matrix
from tests.models_on_disk import golden_description


@pytest.mark.parametrize(
    ("side", "window", "stride", "anchors"),
    [
        (64, 64, 48, [0]),
        (65, 64, 48, [0, 1]),
        (100, 64, 48, [0, 36]),
        (140, 64, 48, [0, 48, 76]),
        (128, 64, 64, [0, 64]),
        (160, 64, 48, [0, 48, 96]),
    ],
)
def test_anchors_step_by_the_stride_and_end_flush(side, window, stride, anchors):
    assert window_anchors(side, window, stride) == anchors


def test_window_longer_than_the_side_is_refused():
    with pytest.raises(ValueError, match="window=64 does not fit into side=63"):
        window_anchors(63, 64, 32)


def test_merge_matrix_without_overlap_or_resize_is_the_upsampling():
    expected = np.kron(np.eye(2), resize_matrix(2, 8))
    np.testing.assert_allclose(merge_matrix(16, 8, 8, 4, 16), expected, atol=1e-7)


def test_merge_matrix_averages_where_windows_overlap():
    # Patches of one pixel: window 0 covers pixels 0..1, window 1 pixels 1..2.
    expected = [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(merge_matrix(3, 2, 1, 1, 3), expected)
    np.testing.assert_allclose(merge_matrix(3, 2, 1, 1, 3, flip=True), expected[::-1])


def canvas_1d(logits, scaled, window, stride, patch, out, flip):
    """The definition, along one axis: canvas, count, resize, un-flip."""
    canvas, count = np.zeros(scaled), np.zeros(scaled)
    anchors = [*range(0, scaled - window, stride), scaled - window]
    per_window = -(-window // patch)
    for i, anchor in enumerate(anchors):
        values = logits[i * per_window : (i + 1) * per_window]
        pixel = np.arange(window)
        position = np.clip((pixel + 0.5) / patch - 0.5, 0, per_window - 1)
        canvas[anchor : anchor + window] += np.interp(position, np.arange(per_window), values)
        count[anchor : anchor + window] += 1
    position = (np.arange(out) + 0.5) * scaled / out - 0.5
    resized = np.interp(np.clip(position, 0, scaled - 1), np.arange(scaled), canvas / count)
    return resized[::-1] if flip else resized


@st.composite
def axes(draw):
    patch = draw(st.integers(1, 16))
    window = draw(st.integers(1, 64))
    return {
        "scaled": draw(st.integers(window, 200)),
        "window": window,
        "stride": draw(st.integers(1, window)),
        "patch": patch,
        "out": draw(st.integers(1, 300)),
        "flip": draw(st.booleans()),
    }


@given(axis=axes(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_merge_matrix_is_the_canvas_procedure(axis, seed):
    matrix = merge_matrix(
        axis["scaled"], axis["window"], axis["stride"], axis["patch"], axis["out"], axis["flip"]
    )
    logits = np.random.default_rng(seed).normal(size=matrix.shape[1])
    np.testing.assert_allclose(matrix @ logits, canvas_1d(logits, **axis), atol=1e-5)


@given(axis=axes(), other=st.integers(64, 200), tile=st.integers(1, 64))
@settings(max_examples=150, deadline=None)
def test_tiles_cover_the_axis_and_hold_the_whole_matrix(axis, other, tile):
    geometry = AxisGeometry(axis["window"], axis["stride"], axis["patch"], tile)
    versions = ((axis["scaled"], axis["flip"]), (other, False))
    tiles = axis_tiles(versions, axis["out"], geometry)
    starts, stops = zip(*tiles.spans, strict=True)
    assert starts == (0, *stops[:-1]) and stops[-1] == axis["out"]
    assert all(0 < stop - start <= tile for start, stop in tiles.spans)
    for v, (side, flip) in enumerate(versions):
        expected = merge_matrix(
            side, axis["window"], axis["stride"], axis["patch"], axis["out"], flip
        )
        rebuilt = np.zeros_like(expected)
        for t, (start, stop) in enumerate(tiles.spans):
            columns, weights = (x[v, t, : stop - start] for x in tiles.taps)
            rows = np.arange(start, stop)[:, None]
            np.add.at(rebuilt, (rows, tiles.index[v, t][columns]), weights)
        np.testing.assert_array_equal(rebuilt, expected)


def test_scaled_sizes_follow_the_base_box_and_enlarge_to_the_window():
    # 100 x 300 into a box of 128 x 64: the short side decides nothing, the long one does.
    box = InferenceSettings(window=32, stride=32, base_size=64, aspect_bound=2)
    assert scaled_size(100, 300, box, 1.0) == ((43, 128), (43, 128))
    assert scaled_size(100, 300, box, 0.5) == ((21, 64), (32, 97))
    native = InferenceSettings(window=64, stride=32)
    assert scaled_size(40, 56, native, 1.0) == ((40, 56), (64, 89))
    assert scaled_size(56, 40, native, 1.0) == ((56, 40), (89, 64))
    assert scaled_size(100, 140, native, 0.75) == ((75, 105), (75, 105))
    assert scaled_size(1, 1, native, 0.25) == ((1, 1), (64, 64))


def test_scaled_image_keeps_bytes_until_it_is_enlarged():
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 1), np.uint8)
    native = InferenceSettings(window=32, stride=32)
    np.testing.assert_array_equal(scaled_image(image, native, 1.0), image)
    enlarged = scaled_image(image, InferenceSettings(window=64, stride=64), 1.0)
    assert enlarged.shape == (64, 89, 1) and enlarged.dtype == np.float32
    rows, columns = resize_matrix(40, 64), resize_matrix(56, 89)
    np.testing.assert_allclose(enlarged[..., 0], rows @ image[..., 0] @ columns.T, atol=1e-3)


def test_images_that_would_become_too_large_are_refused():
    native = InferenceSettings(window=512, stride=512)
    with pytest.raises(
        ValueError,
        match=r"1 x 40000 pixels becomes 512 x 20480000 at scale 1 .* over the limit of 1024 MB",
    ):
        check_image((1, 40000, 3), native, 3)
    check_image((6000, 8000, 3), native, 3)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (0, 4, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"(H, W, 3) for this model, got {shape}")):
        check_image(shape, InferenceSettings(window=8, stride=8), 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1 pixel"),
        ({"stride": 65}, r"stride=65 must be in 1\.\.window=64"),
        ({"base_size": 0}, "base_size=0 must be None or at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be None or at least 1"),
        ({"aspect_bound": 0.5}, "aspect_bound=0.5 must be at least 1"),
        ({"scales": ()}, "scales must be positive numbers, at least one"),
        ({"scales": (1, -1)}, "scales must be positive numbers"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        InferenceSettings(**({"window": 64, "stride": 64} | fields))


def test_settings_are_the_models_own_but_for_what_is_given():
    description = golden_description(window=64, stride=48, base_size=80)
    own = InferenceSettings.of(description)
    assert own == InferenceSettings(64, 48, 80, aspect_bound=4.0)
    given = {"base_size": None, "scales": (0.5, 1), "flip": True, "batch_size": 2}
    assert InferenceSettings.of(description, **given) == InferenceSettings(64, 48, **given)
    # A stride is kept where it fits.
    assert InferenceSettings.of(description, window=50).stride == 48
    assert InferenceSettings.of(description, window=40).stride == 40
    with pytest.raises(ValueError, match=r"stride=50 must be in 1\.\.window=40"):
        InferenceSettings.of(description, window=40, stride=50)


def test_a_window_need_not_be_whole_patches_of_a_model_either():
    # Of 16 pixels; `golden_description` checks the model's own window.
    assert InferenceSettings.of(golden_description(window=50, stride=50)).window == 50
    assert InferenceSettings.of(golden_description(), window=50).window == 50


def test_protocol_names_what_a_number_depends_on():
    settings = InferenceSettings(512, 480, base_size=512, scales=(0.5, 1), flip=True)
    assert settings.protocol() == "window 512, stride 480, base 512, scales 0.5,1, flip yes"
    assert "base native, scales 1, flip no" in InferenceSettings(64, 64).protocol()
