"""Colours of the features of patches."""

import numpy as np

from segmenter_jax.inference.feature_maps import principal_colors


def test_colours_follow_the_largest_differences_and_their_signs_no_chance():
    # In no direction does one tell of another.
    scales = [np.linspace(-size, size, n) for size, n in ((9, 3), (3, 4), (1, 5))]
    amounts = np.stack(np.meshgrid(*scales, indexing="ij"), axis=-1)
    # Their largest weights are negative, and colours grow with positive ones.
    pictures = principal_colors(amounts @ -np.eye(16)[[2, 7, 5]] + 100)
    assert [p.shape for p in pictures] == [(4, 5, 3)] * 3
    for i in range(3):
        seen = np.stack(pictures)[..., i].ravel().astype(float)
        assert np.corrcoef(seen, -amounts[..., i].ravel())[0, 1] > 0.999
