import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.transforms import (
    EvalTransform,
    TrainTransform,
    rescaled_size,
    resize_crop,
)
from segmenter_jax.runtime.errors import DataError
from tests.data.conftest import encode, noise


def grid_spec(num_classes: int = 240) -> DatasetSpec:
    return DatasetSpec("grid", tuple(map(str, range(num_classes))), ((0, 0, 0),) * num_classes)


def coordinate_record(height: int, width: int) -> dict:
    """Image channels hold twice the row and the column, the label the 8 x 8 cell."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([2 * rows, 2 * columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    label = (rows // 8 * 15 + columns // 8).astype(np.uint8)
    return {"image": encode(image), "label": encode(label), "name": "grid"}


@pytest.mark.parametrize(
    ("size", "base", "bound", "factor", "expected"),
    [
        ((512, 683), 512, 4, 1.0, (512, 683)),
        ((480, 640), 512, 4, 0.5, (256, 341)),
        ((640, 480), 512, 4, 0.5, (341, 256)),
        # The long side binds: 2 * 512 over 2048.
        ((256, 2048), 512, 2, 1.0, (128, 1024)),
        # int(2 * 100 * 0.999) = 199 and int(99.9) = 99.
        ((100, 400), 100, 2, 0.999, (50, 199)),
        ((1024, 2048), 1024, 2, 0.75, (768, 1536)),
        # 3 * 1.5 = 4.5 rounds up.
        ((2, 3), 3, 4, 1.0, (3, 5)),
        ((1, 1000), 10, 4, 1.0, (1, 40)),
    ],
)
def test_rescaled_size_by_hand(size, base, bound, factor, expected):
    assert rescaled_size(*size, base, bound, factor) == expected


@given(
    st.integers(8, 3000),
    st.integers(8, 3000),
    st.integers(16, 1024),
    st.floats(1, 8),
    st.floats(0.5, 2.0),
)
def test_rescaled_size_fills_the_box(height, width, base, bound, factor):
    size = rescaled_size(height, width, base, bound, factor)
    long_side, short_side = int(bound * base * factor), int(base * factor)
    assert max(size) <= long_side and min(size) <= short_side
    assert max(size) == long_side or min(size) == short_side
    assert (size[0] >= size[1]) == (height >= width) or size[0] == size[1] or height == width


def test_rescaled_size_refuses_nonsense():
    with pytest.raises(ValueError, match="got height=0"):
        rescaled_size(0, 5, 10, 4, 1.0)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_resize_crop_equals_crop_of_resize(data):
    height, width = data.draw(st.integers(3, 90)), data.draw(st.integers(3, 90))
    size = data.draw(st.integers(3, 200)), data.draw(st.integers(3, 200))
    crop = data.draw(st.integers(1, size[0])), data.draw(st.integers(1, size[1]))
    top = data.draw(st.integers(0, size[0] - crop[0]))
    left = data.draw(st.integers(0, size[1] - crop[1]))
    channels = data.draw(st.sampled_from([1, 3, 4]))
    image = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)

    got = resize_crop(image, size, (top, left, *crop))

    full = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, channels)
    expected = full[top : top + crop[0], left : left + crop[1]]
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 1


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(20, 120),
    width=st.integers(20, 120),
    crop=st.integers(8, 96),
    base=st.integers(16, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_image_and_label_move_together(height, width, crop, base, seed):
    transform = TrainTransform(grid_spec(), crop, base, 4.0)
    got = transform(coordinate_record(height, width), np.random.default_rng(seed))

    valid_height, valid_width = got["valid_size"]
    assert got["image"].shape == (crop, crop, 3) and got["image"].dtype == np.uint8
    assert got["label"].shape == (crop, crop) and got["label"].dtype == np.uint8
    assert got["valid_size"].dtype == np.int32 and 1 <= min(got["valid_size"]) <= crop
    assert not got["image"][valid_height:].any() and not got["image"][:, valid_width:].any()
    assert (got["label"][valid_height:] == 255).all()
    assert (got["label"][:, valid_width:] == 255).all()

    label = got["label"][:valid_height, :valid_width].astype(int)
    seen = got["image"][:valid_height, :valid_width, :2] / 2.0
    # Nearest takes the pixel whose corner is hit, bilinear the centre: at most a scaled pixel off.
    reach = 1.5 + max(height, width) / min(base // 2, 60)
    for axis, first in enumerate((label // 15 * 8, label % 15 * 8)):
        assert (seen[..., axis] >= first - reach).all()
        assert (seen[..., axis] <= first + 7 + reach).all()


def test_exact_pixels_at_scale_one():
    # At factor 1 and base = short side nothing is resampled, so every pixel can be looked up.
    transform = TrainTransform(grid_spec(), 32, 64, 4.0, scale_range=(1.0, 1.0))
    record = coordinate_record(64, 80)
    flipped = set()
    for seed in range(20):
        got = transform(record, np.random.default_rng(seed))
        rows, columns = got["image"][..., 0] // 2, got["image"][..., 1] // 2
        np.testing.assert_array_equal(got["label"], rows // 8 * 15 + columns // 8)
        flipped.add(bool(columns[0, 0] > columns[0, -1]))
    assert flipped == {True, False}


def test_label_is_the_crop_of_the_whole_nearest_resize():
    transform = TrainTransform(
        grid_spec(), 40, 50, 4.0, scale_range=(1.7, 1.7), category_max_ratio=1.0, flip_prob=0.0
    )
    record = coordinate_record(64, 80)
    seed = 3
    got = transform(record, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    rng.uniform(1.7, 1.7)
    size = rescaled_size(64, 80, 50, 4.0, 1.7)
    top, left = rng.integers(size[0] - 40 + 1), rng.integers(size[1] - 40 + 1)
    label = EvalTransform(grid_spec())(record)["label"]
    rows = np.floor(np.arange(size[0]) * (64 / size[0])).astype(int)
    columns = np.floor(np.arange(size[1]) * (80 / size[1])).astype(int)
    expected = label[np.ix_(rows, columns)][top : top + 40, left : left + 40]
    np.testing.assert_array_equal(got["label"], expected)


def test_same_generator_state_gives_the_same_crop():
    transform = TrainTransform(grid_spec(), 32, 48, 4.0)
    first, again, other = (
        transform(coordinate_record(60, 70), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert (first["label"] != other["label"]).any()


def label_record(label: np.ndarray) -> dict:
    image = np.zeros((*label.shape, 3), np.uint8)
    return {"image": encode(image), "label": encode(label), "name": "x"}


def test_crops_with_one_dominant_class_are_redrawn(three_classes):
    # Only crops over the middle seam show two classes; a single draw hits it rarely.
    label = np.zeros((32, 200), np.uint8)
    label[:, 100:] = 1
    record = label_record(label)

    def share_with_two_classes(ratio):
        transform = TrainTransform(three_classes, 32, 32, 8.0, (1.0, 1.0), ratio)
        crops = (transform(record, np.random.default_rng(seed))["label"] for seed in range(200))
        return np.mean([0.25 < (crop == 0).mean() < 0.75 for crop in crops])

    # 15 of 169 positions are acceptable: 9 % in one draw, 1 - (1 - 0.09)^11 = 64 % in eleven.
    assert share_with_two_classes(1.0) == pytest.approx(15 / 169, abs=0.06)
    assert share_with_two_classes(0.75) == pytest.approx(1 - (1 - 15 / 169) ** 11, abs=0.1)


def test_crops_lie_everywhere_and_reach_every_edge():
    transform = TrainTransform(grid_spec(), 8, 10, 4.0, (1.0, 1.0), 1.0, flip_prob=0.0)
    record = coordinate_record(10, 11)
    crops = (transform(record, np.random.default_rng(seed))["image"] for seed in range(200))
    # Channels hold twice the row and the column.
    corners = {tuple(crop[0, 0, :2] // 2) for crop in crops}
    assert corners == set(itertools.product(range(10 - 8 + 1), range(11 - 8 + 1)))


def test_the_eleventh_crop_is_taken_whatever_it_shows(three_classes):
    # Grey values are columns, all of one class: no crop passes.
    image = np.tile(np.arange(200, dtype=np.uint8)[:, None], (32, 1, 3))
    record = label_record(np.zeros((32, 200), np.uint8)) | {"image": encode(image)}
    transform = TrainTransform(three_classes, 32, 32, 8.0, (1.0, 1.0), flip_prob=0.0)
    rng = np.random.default_rng(0)
    rng.uniform(1.0, 1.0)
    for _ in range(11):
        rng.integers(1)
        left = rng.integers(200 - 32 + 1)
    assert transform(record, np.random.default_rng(0))["image"][0, 0, 0] == left


def test_a_class_may_take_less_than_the_ratio_and_not_the_ratio(three_classes):
    transform = TrainTransform(three_classes, 8, 8, 8.0, category_max_ratio=0.75)
    label = np.zeros((8, 8), np.uint8)
    label[:6] = 1
    assert not transform._accepts(label)
    label[0, 0] = 2
    assert transform._accepts(label)


def test_ignored_pixels_do_not_count_as_a_class(three_classes):
    label = np.full((32, 32), 255, np.uint8)
    label[:4] = 1
    transform = TrainTransform(three_classes, 32, 32, 8.0, (1.0, 1.0))
    assert not transform._accepts(label)
    label[4:6] = 2
    assert transform._accepts(label)
    label[:4, :] = 1
    label[5:6] = 255
    assert not transform._accepts(label)


def test_image_smaller_than_the_crop_is_padded(three_classes):
    label = np.ones((10, 14), np.uint8)
    transform = TrainTransform(three_classes, 16, 10, 4.0, (1.0, 1.0))
    got = transform(label_record(label), np.random.default_rng(0))
    assert got["valid_size"].tolist() == [10, 14]
    assert (got["label"] != 255).sum() == 140


def test_eval_keeps_everything(three_classes):
    image = noise(11, 7)
    label = np.random.default_rng(0).integers(0, 3, (11, 7)).astype(np.uint8)
    record = {"image": encode(image), "label": encode(label), "name": "val/x"}
    got = EvalTransform(three_classes)(record)
    np.testing.assert_array_equal(got["image"], image)
    np.testing.assert_array_equal(got["label"], label)
    assert got["name"] == "val/x"


def test_record_of_different_sizes(three_classes):
    record = {
        "image": encode(noise(4, 5)),
        "label": encode(np.zeros((5, 4), np.uint8)),
        "name": "val/x",
    }
    with pytest.raises(DataError, match=r"val/x: image \(4, 5\) and label \(5, 4\) differ in size"):
        EvalTransform(three_classes)(record)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_size": 0}, "crop_size=0, base_size=64 and aspect_bound=4.0 must all be at least"),
        (
            {"scale_range": (2.0, 0.5)},
            r"scale_range=\(2.0, 0.5\) must be two numbers .*low <= high",
        ),
        ({"scale_range": (2.0,)}, r"scale_range=\(2.0,\) must be two numbers"),
        ({"scale_range": ("many", 2)}, r"scale_range=\('many', 2\) must be two numbers"),
        ({"category_max_ratio": 0}, r"category_max_ratio=0 must lie in \(0, 1\]"),
        ({"flip_prob": 1.5}, r"flip_prob=1.5 in \[0, 1\]"),
    ],
)
def test_refuses_settings(fields, message, three_classes):
    good = {"crop_size": 32, "base_size": 64, "aspect_bound": 4.0}
    with pytest.raises(ValueError, match=message):
        TrainTransform(three_classes, **{**good, **fields})


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 90), st.integers(2, 90), st.floats(0.5, 2.0), st.integers(0, 99))
def test_labels_are_resized_as_opencv_does(height, width, factor, seed):
    ids = np.random.default_rng(seed).integers(0, 240, (height, width)).astype(np.uint8)
    record = {"image": encode(noise(height, width)), "label": encode(ids), "name": "x"}
    transform = TrainTransform(
        grid_spec(), 400, 64, 4.0, scale_range=(factor, factor), category_max_ratio=1, flip_prob=0
    )
    example = transform(record, np.random.default_rng(seed))
    rows, columns = example["valid_size"]
    expected = cv2.resize(ids, (int(columns), int(rows)), interpolation=cv2.INTER_NEAREST)
    # A side longer than the crop is cut; the other is whole.
    if max(rescaled_size(height, width, 64, 4.0, factor)) <= 400:
        np.testing.assert_array_equal(example["label"][:rows, :columns], expected)
