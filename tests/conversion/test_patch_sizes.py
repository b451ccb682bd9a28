"""Another patch size from the same weights: what stays exact, and what is said of it."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.conversion import convert as conversion
from segmenter_jax.conversion.adapt import resize_patch_kernel
from segmenter_jax.conversion.opening import Hints
from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.models.resampling import resize_matrix
from tests.conversion.test_backbones import FOLDER, opened_model


def encoded(source, image, **options):
    description, params, _ = opened_model(source, **options)
    model = Segmenter(description.model)
    return np.asarray(model.apply({"params": params}, image, method=model.encode))


def enlarged(image, old, new):
    """An image whose patches are each enlarged by themselves."""
    matrix = resize_matrix(old, new)
    batch, height, width, channels = image.shape
    patches = image.reshape(batch, height // old, old, width // old, old, channels)
    patches = np.einsum("yh,xw,brhcwd->brycxd", matrix, matrix, patches)
    return patches.reshape(batch, height // old * new, width // old * new, channels)


@pytest.mark.parametrize("name", ["dinov2_registers", "dinov3"])
def test_larger_patches_give_the_same_tokens(name):
    image = np.random.default_rng(0).normal(size=(1, 16, 24, 3)).astype(np.float32)
    expected = encoded(FOLDER / name, image)
    for size in (5, 8):
        larger = enlarged(image, 4, size).astype(np.float32)
        tokens = encoded(FOLDER / name, larger, patch_size=size)
        np.testing.assert_allclose(tokens, expected, atol=2e-5)


def test_smaller_patches_come_as_near_as_they_can():
    kernel = np.random.default_rng(0).normal(size=(8, 8, 3, 2))
    smaller = resize_patch_kernel(kernel, 5).reshape(25, -1)
    full = np.kron(resize_matrix(8, 5), resize_matrix(8, 5))
    best = np.linalg.lstsq(full.T, kernel.reshape(64, -1), rcond=None)[0]
    np.testing.assert_allclose(smaller, best, atol=1e-6)


def test_the_same_size_changes_no_bit_and_positions_stay_as_they_are():
    _, before, _ = opened_model(FOLDER / "dinov2")
    _, same, report = opened_model(FOLDER / "dinov2", patch_size=4)
    assert not report.resized
    before, same = (flatten_dict(p["encoder"]) for p in (before, same))
    assert all(np.array_equal(before[name], same[name]) for name in before)
    description, other, report = opened_model(FOLDER / "dinov2", patch_size=8, in_channels=4)
    how = "patches of 4 to 8 pixels by FlexiViT's pseudo-inverse, 3 to 4 input channels"
    kernel = "encoder/embedding/kernel"
    assert report.resized == [(kernel, (4, 4, 3, 32), (8, 8, 4, 32), how)]
    assert description.model.position_size == (32, 32)
    assert np.array_equal(other["encoder"]["pos_embedding"], before[("pos_embedding",)])


def test_positions_of_another_grid_are_resized_by_the_rule_of_their_format():
    source = conversion.source_network(FOLDER / "dinov2_registers", Hints())
    fields = source.fields | {"position_size": (12, 20)}
    config = SegmenterConfig(num_classes=2, image_size=(12, 20), decoder="linear", **fields)
    target = ModelDescription(config, ("a", "b"), ((0, 0, 0),) * 2, **source.images)
    _, _, report = conversion.load_init(FOLDER / "dinov2_registers", target, seed=0)
    assert [entry[3] for entry in report.resized] == ["bicubic_antialias"]
    assert report.warnings == []
