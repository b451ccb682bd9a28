"""Parts of the encoder that were rewritten for speed equal what they replace."""

import collections
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segmenter_jax.models import Segmenter, layers, transformer
from segmenter_jax.models.layers import Dense, LayerNorm, gelu
from segmenter_jax.models.random_masks import random_bits
from segmenter_jax.models.transformer import Dropout
from tests.tiny import tiny_network


def tiny_config(**overrides):
    random = {"drop_path_rate": 0.3, "decoder_dropout_rate": 0.1}
    return tiny_network(**{"depth": 2, "decoder_depth": 2} | random | overrides)


@pytest.mark.parametrize("kind", ["exact", "tanh"])
def test_gelu_equals_the_library(kind):
    x = jnp.linspace(-12, 12, 4801)
    library = lambda x: nn.gelu(x, approximate=kind == "tanh")  # noqa: E731
    # One rounding of a number near 1, times |x|.
    np.testing.assert_allclose(gelu(x, kind), library(x), atol=12 * 2.0**-23)
    gradients = [jax.vmap(jax.grad(f))(x) for f in (lambda x: gelu(x, kind), library)]
    np.testing.assert_allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_and_layer_norm_equal_the_library(dtype):
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.normal(2, 3, (2, 7, 6)), dtype) for _ in range(2))
    pairs = (
        (Dense(6, dtype), nn.Dense(6, dtype=dtype)),
        (LayerNorm(1e-5, dtype), nn.LayerNorm(epsilon=1e-5, dtype=dtype)),
    )
    tolerance = 2e-6 if dtype == jnp.float32 else 2e-2
    for ours, library in pairs:
        params = library.init(jax.random.key(0), x)
        params = jax.tree.map(lambda p: p + rng.normal(size=p.shape).astype(np.float32), params)

        def run(module, params=params):
            y, backward = jax.vjp(module.apply, params, x)
            return y, *backward(cotangent)

        assert jax.tree.structure(ours.init(jax.random.key(0), x)) == jax.tree.structure(params)
        for a, b in zip(*(jax.tree.leaves(run(m)) for m in (ours, library)), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            a, b = (np.asarray(v, np.float32) for v in (a, b))
            np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def test_patch_embedding_is_the_convolution_of_the_checkpoints():
    config = tiny_config(depth=1, decoder="linear")
    model = Segmenter(config)
    image = jax.random.normal(jax.random.key(0), (2, 32, 24, 3))
    params = jax.jit(model.init)(jax.random.key(1), image)["params"]
    kernel = params["encoder"]["embedding"]["kernel"]
    assert kernel.shape == (8, 8, 3, 64)
    convolution = nn.Conv(64, (8, 8), (8, 8), "VALID")
    expected = convolution.apply({"params": params["encoder"]["embedding"]}, image)

    def embedding_only(params, image):
        # Without positions and with an empty block, tokens are the normalised embedding.
        blank = jax.tree.map(jnp.zeros_like, params)
        for name in ("embedding", "encoder_norm"):
            blank["encoder"][name] = params["encoder"][name]
        return model.apply({"params": blank}, image, method=model.encode)

    normalised = nn.LayerNorm(epsilon=config.layer_norm_eps).apply(
        {"params": params["encoder"]["encoder_norm"]}, expected.reshape(2, -1, 64)
    )
    actual = embedding_only(params, image)[:, config.num_extra_tokens :]
    np.testing.assert_allclose(actual, normalised, atol=2e-6)


def test_random_bits_are_uniform_and_differ_between_keys_and_elements():
    shape = (64, 33, 40)
    first, second = (np.asarray(random_bits(jax.random.key(i), shape)) for i in range(2))
    again = np.asarray(jax.jit(lambda: random_bits(jax.random.key(0), shape))())
    np.testing.assert_array_equal(first, again)
    count = first.size
    assert len(np.unique(first)) > 0.9999 * count
    for bits in (first, first ^ second, first[1:] ^ first[:-1], first[..., 1:] ^ first[..., :-1]):
        ones = np.unpackbits(bits.reshape(-1, 1).view(np.uint8), axis=1).mean(axis=0)
        # Five standard deviations of a fair coin, for each of the 32 bits.
        assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(bits.size)
    histogram = np.bincount(first.ravel() >> 24, minlength=256)
    chi_square = ((histogram - count / 256) ** 2 / (count / 256)).sum()
    assert 255 - 5 * np.sqrt(510) < chi_square < 255 + 5 * np.sqrt(510)


def test_random_bits_do_not_depend_on_the_split_over_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    draw = lambda: random_bits(jax.random.key(3), (16, 5, 6))  # noqa: E731
    split = jax.jit(draw, out_shardings=sharding)
    assert "all-" not in split.lower().compile().as_text()
    np.testing.assert_array_equal(split(), draw())


def test_dropout_keeps_the_mean_and_the_stated_share():
    x = jnp.ones((200, 500))
    dropout = Dropout(0.1)
    y = dropout.apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    kept = float((y != 0).mean())
    assert kept == pytest.approx(0.9, abs=5 * np.sqrt(0.09 / x.size))
    np.testing.assert_allclose(y[y != 0], 1 / 0.9, rtol=1e-6)
    np.testing.assert_array_equal(dropout.apply({}, x, deterministic=True), x)


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_have_the_same_parameters_results_and_gradients(remat):
    image = jax.random.normal(jax.random.key(0), (2, 32, 48, 3))

    def run(**options):
        model = Segmenter(tiny_config(depth=2, decoder="linear", drop_path_rate=0.0, **options))
        params = jax.jit(model.init)(jax.random.key(1), image)["params"]

        def loss(params):
            rngs = {"dropout": jax.random.key(2)}
            return (model.apply({"params": params}, image, train=True, rngs=rngs) ** 2).mean()

        logits = jax.jit(lambda p: model.apply({"params": p}, image))(params)
        return params, logits, jax.jit(jax.value_and_grad(loss))(params)

    plain, scanned = run(), run(scan_layers=True, remat=remat)
    assert jax.tree.structure(plain) == jax.tree.structure(scanned)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_scanned_layers_drop_their_branches_at_the_same_rates():
    # Rates 0 and 0.5: each branch of the second layer is there or not, which makes four outputs.
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))

    def outputs(scan_layers):
        model = Segmenter(tiny_config(depth=2, drop_path_rate=0.5, scan_layers=scan_layers))
        params = jax.jit(model.init)(jax.random.key(1), image)["params"]
        encode = lambda key: model.apply(  # noqa: E731
            {"params": params}, image, train=True, rngs={"dropout": key}, method="encode"
        )
        tokens = jax.jit(jax.vmap(encode))(jax.random.split(jax.random.key(3), 64))
        return np.unique(np.round(np.asarray(tokens[:, 0, 0, :4]), 4), axis=0)

    plain, scanned = outputs(False), outputs(True)
    assert plain.shape == (4, 4)
    np.testing.assert_allclose(scanned, plain, atol=2e-4)


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_train_in_bfloat16(remat):
    config = tiny_config(dtype="bfloat16", scan_layers=True, remat=remat, drop_path_rate=0.1)
    model, image = Segmenter(config), jnp.zeros((2, 32, 32, 3))
    params = jax.eval_shape(model.init, jax.random.key(1), image)["params"]

    def loss(params, key):
        return model.apply({"params": params}, image, train=True, rngs={"dropout": key}).sum()

    grads = jax.eval_shape(jax.grad(loss), params, jax.random.key(2))
    assert jax.tree.map(lambda g: g.dtype == jnp.float32, grads) == jax.tree.map(
        lambda p: True, params
    )


def test_scanned_layers_are_one_body():
    image = jnp.zeros((1, 32, 32, 3))

    def program(depth):
        model = Segmenter(tiny_config(depth=depth, scan_layers=True))
        params = jax.eval_shape(model.init, jax.random.key(1), image)["params"]
        step = lambda p, i: model.apply({"params": p}, i)  # noqa: E731
        return jax.jit(step).lower(params, image).as_text()

    assert program(12).count("dot_general") == program(3).count("dot_general")


def test_remat_changes_neither_parameters_nor_results():
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))

    def run(remat):
        model = Segmenter(tiny_config(remat=remat, depth=1, decoder_depth=1))
        params = jax.jit(model.init)(jax.random.key(1), image)["params"]

        def loss(params):
            rngs = {"dropout": jax.random.key(2)}
            return (model.apply({"params": params}, image, train=True, rngs=rngs) ** 2).mean()

        return params, jax.jit(jax.value_and_grad(loss))(params)

    plain, recomputed = run(False), run(True)
    assert jax.tree.structure(plain) == jax.tree.structure(recomputed)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_tpus_gradients_of_a_dense_layer_are_sums_over_tokens():
    rng = np.random.default_rng(0)
    x, d_out = (rng.normal(size=(2, 17, width)).astype(np.float32) for width in (24, 40))
    d_kernel, d_bias = jax.jit(layers._of_parameters_on_tpu)(x, d_out)
    np.testing.assert_allclose(d_kernel, np.einsum("btc,btd->cd", x, d_out), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_bias, d_out.sum(axis=(0, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "platform, kept",
    [
        ("gpu", {"projected": 3, "attended": 1, "hidden": 1}),
        ("tpu", {"statistics": 4, "attended": 1, "hidden": 1}),
    ],
)
def test_what_a_block_keeps_changes_no_gradient(platform, kept, monkeypatch, capsys):
    monkeypatch.setattr(transformer, "platform_of", lambda mesh: platform)
    config = tiny_network().encoder_block()
    x = jax.random.normal(jax.random.key(1), (2, 17, 64))
    params = transformer.Block(config, 0.0).init(jax.random.key(0), x, True)

    def loss(block, params):
        return (block(config, 0.0).apply(params, x, True) ** 2).sum()

    block = transformer.block_class(False, None)
    jax.ad_checkpoint.print_saved_residuals(lambda params: loss(block, params), params)
    names = re.findall(r"named '(\w+)'", capsys.readouterr().out)
    assert collections.Counter(names) == kept
    actual, expected = (jax.grad(loss, argnums=1)(b, params) for b in (block, transformer.Block))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
