import jax.numpy as jnp
import numpy as np
import pytest

from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.models.normalization import normalize


@pytest.mark.parametrize("name", NORMALIZATION)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalize(name, dtype):
    mean, std = NORMALIZATION[name]
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(dtype)
    expected = (image.astype(np.float64) / 255 - mean) / std
    got = np.asarray(normalize(jnp.asarray(image), None, mean, std))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-6)

    padded = np.asarray(normalize(jnp.asarray(image), jnp.array([[2, 3], [3, 4]]), mean, std))
    np.testing.assert_array_equal(padded[1], got[1])
    np.testing.assert_array_equal(padded[0, :2, :3], got[0, :2, :3])
    assert (padded[0, 2:] == 0).all() and (padded[0, :, 3:] == 0).all()


def test_normalize_needs_one_value_per_channel():
    with pytest.raises(ValueError, match="4 channels, but there are 3 means and 3 standard"):
        normalize(jnp.zeros((1, 2, 2, 4)), None, *NORMALIZATION["vit"])
