"""Which parameters are matrices, in every kind of network."""

from typing import get_args

import jax
import pytest
from flax.traverse_util import flatten_dict

from segmenter_jax.models.config import Decoder
from segmenter_jax.models.params import abstract_params, is_kernel
from tests.tiny import tiny_network


@pytest.mark.parametrize("decoder", get_args(Decoder))
@pytest.mark.parametrize("distilled", [False, True])
def test_every_matrix_is_a_kernel_and_no_bias_norm_token_or_position_is(decoder, distilled):
    # Two heads in encoder and decoder: only tokens and positions have a first axis of 1.
    config = tiny_network(width=128, depth=2, decoder=decoder, distilled=distilled)
    params = abstract_params(config)
    found = jax.tree_util.tree_map_with_path(lambda path, _: is_kernel(path), params)
    shapes = flatten_dict(params, sep="/")
    expected = {
        name: leaf.ndim > 1 and leaf.shape[0] > 1 and not name.endswith("/bias")
        for name, leaf in shapes.items()
    }
    assert flatten_dict(found, sep="/") == expected
