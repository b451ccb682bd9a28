"""Which parameters are matrices, and which are cast, in every kind of network."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from segmenter_jax.models import Segmenter
from segmenter_jax.models.choices import Decoder
from segmenter_jax.models.layers import to_compute_type
from segmenter_jax.models.params import abstract_params, init_params, is_kernel
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


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_the_abstract_tree_is_that_of_the_network(decoder):
    config = tiny_network(depth=3, decoder_depth=2, decoder=decoder)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    expected = jax.eval_shape(Segmenter(config).init, jax.random.key(0), image)["params"]
    found = abstract_params(config)
    assert jax.tree.map(jax.typeof, found) == jax.tree.map(jax.typeof, expected)


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_parameters_cast_before_give_the_same_bits(decoder):
    config = tiny_network(dtype="bfloat16", decoder=decoder, distilled=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.1, size=leaf.shape).astype(np.float32),
        abstract_params(config),
    )
    cast = to_compute_type(params, jnp.bfloat16)
    image = rng.normal(size=(1, *config.image_size, 3)).astype(np.float32)
    forward = jax.jit(lambda params: Segmenter(config).apply({"params": params}, image))
    np.testing.assert_array_equal(forward(cast), forward(params))

    names = flatten_dict(cast, sep="/")
    still = {name for name, leaf in names.items() if leaf.dtype == np.float32}
    used_in_float32 = ("norm", "LayerNorm", "/head/", "/class_head/", "pos_embedding")
    assert still == {name for name in names if any(part in name for part in used_in_float32)}
    assert jax.tree.map(jax.typeof, to_compute_type(cast, jnp.bfloat16)) == jax.tree.map(
        jax.typeof, cast
    )


def test_initial_values_have_the_references_spread():
    config = tiny_network(width=192, depth=1, num_heads=3, num_classes=150, image_size=(256, 256))
    found = {
        name: np.asarray(leaf)
        for name, leaf in flatten_dict(init_params(config, 0), sep="/").items()
    }
    for name, leaf in found.items():
        *_, module, kind = name.split("/")
        if kind == "scale":
            assert (leaf == 1).all(), name
        elif module == "embedding":
            # PyTorch's default of a convolution.
            bound = (config.patch_size**2 * 3) ** -0.5
            np.testing.assert_allclose(np.abs(leaf).max(), bound, rtol=0.03)
            np.testing.assert_allclose(leaf.std(), bound / 3**0.5, rtol=3 / leaf.size**0.5)
        elif kind == "bias":
            assert (leaf == 0).all(), name
        else:
            std = 192**-0.5 if kind in ("proj_patch", "proj_classes") else 0.02
            error = 5 / (2 * leaf.size) ** 0.5
            np.testing.assert_allclose(leaf.std(), std, rtol=error, err_msg=name)
    # No tail is cut at two standard deviations.
    kernel = found["encoder/encoderblock_0/mlp/Dense_0/kernel"]
    assert np.abs(kernel).max() > 4 * 0.02
