"""The network: golden parity, sizes, stochastic parts, configuration errors, resampling."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segmenter_jax.models import VARIANTS, Segmenter, SegmenterConfig, upsample
from segmenter_jax.models.decoders import MaskTransformerDecoder
from segmenter_jax.models.resampling import resize_matrix
from segmenter_jax.models.transformer import ATTENTION_MAPS, DropPath
from segmenter_jax.models.vit import resize_position_embedding, rope_rotation
from tests.golden_params import NAMES, golden_config, golden_params
from tests.tiny import tiny_network

# Parameters of the ViT alone, in millions, by published size.
PUBLISHED_MILLIONS = {"Ti": 5.7, "S": 22, "B": 86, "L": 307}

# Those of pretrained encoders, without a head, by patch size.
_DINOV2 = {"S": 22.1, "B": 86.6, "L": 304.4, "g": 1136.5}
_DINOV3 = {"S": 21.6, "S+": 28.7, "B": 85.7, "L": 303.1, "H+": 840.5, "7B": 6716}
ENCODER_MILLIONS = {
    **{
        f"{family}_{size}/14": n
        for family in ("dinov2", "dinov2reg")
        for size, n in _DINOV2.items()
    },
    **{f"dinov3_{size}/16": n for size, n in _DINOV3.items()},
    **{"siglip_B/16": 85.8, "siglip_L/16": 303.4, "siglip_So400m/14": 412.4},
    **{"naflex_B/16": 85.8, "naflex_So400m/16": 412.6},
    **{"loca_S/16": 21.7, "loca_B/16": 85.8, "loca_L/16": 303.3, "loca_H/16": 630.9},
    **{"siglip_g-opt/16": 1134.8, "mae_B/16": 85.8, "mae_L/16": 303.3, "mae_H/14": 630.8},
}


@pytest.fixture(scope="module", params=NAMES)
def golden(request, golden_dir):
    with np.load(golden_dir / f"{request.param}.npz") as arrays:
        variables = {"params": golden_params(request.param)}
        return Segmenter(golden_config(request.param)), variables, dict(arrays)


@pytest.mark.parametrize("case", ["square", "padded", "wide"])
def test_tokens_and_logits_are_the_references(golden, case):
    model, variables, arrays = golden
    image = arrays[f"{case}/image_nhwc"]

    @jax.jit
    def tokens_and_logits(v, x):
        return model.apply(v, x, method=model.encode), model.apply(v, x)

    tokens, logits = tokens_and_logits(variables, image)
    np.testing.assert_allclose(tokens, arrays[f"{case}/encoder_tokens"], atol=1e-4, rtol=0)
    logits = upsample(logits, image.shape[1:3], model.config.patch_size)
    np.testing.assert_allclose(logits, arrays[f"{case}/logits_nhwc"], atol=1e-4, rtol=0)


def test_attention_maps_are_the_references(golden):
    model, variables, arrays = golden
    image = arrays["square/image_nhwc"]
    apply = jax.jit(lambda v, x: model.apply(v, x, mutable=[ATTENTION_MAPS]))
    _, state = apply(variables, image)
    maps = state[ATTENTION_MAPS]
    encoder = maps["encoder"]["encoderblock_1"]["attention"]["weights"][0]
    np.testing.assert_allclose(encoder, arrays["attention/encoder_layer1"], atol=1e-5, rtol=0)
    if model.config.decoder == "mask":
        decoder = maps["decoder"]["block_0"]["attention"]["weights"][0]
        np.testing.assert_allclose(decoder, arrays["attention/decoder_layer0"], atol=1e-5, rtol=0)


def abstract_params(config):
    image = jnp.zeros((1, *config.image_size, config.in_channels))
    return jax.eval_shape(lambda: Segmenter(config).init(jax.random.key(0), image))["params"]


def num_params(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_every_variant_has_a_published_size():
    encoders = {name.partition("/")[0] for name in ENCODER_MILLIONS}
    assert set(VARIANTS) == set(PUBLISHED_MILLIONS) | encoders


# Registers are some vectors more.
@pytest.mark.parametrize("variant", [v for v in ENCODER_MILLIONS if v[:10] != "dinov2reg_"])
def test_parameter_counts_of_pretrained_encoders_are_the_published_ones(variant):
    config = SegmenterConfig.from_variant(variant, num_classes=2, image_size=(224, 224))
    count = num_params(abstract_params(dataclasses.replace(config, decoder="linear"))["encoder"])
    assert count / 1e6 == pytest.approx(ENCODER_MILLIONS[variant], rel=0.005)


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_parameter_counts_are_the_published_ones(name):
    config = SegmenterConfig.from_variant(f"{name}/16", num_classes=150, image_size=(384, 384))
    params = abstract_params(config)
    head = config.width * 1000 + 1000
    count = num_params(params["encoder"]) + head
    # The published sizes are those of classifiers at 224 pixels: 14 x 14 positions, 1000 classes.
    count -= config.width * (24 * 24 - 14 * 14)
    assert count / 1e6 == pytest.approx(PUBLISHED_MILLIONS[name], rel=0.01)


@pytest.mark.parametrize("patch_size", [8, 16, 32])
@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_logits_have_one_value_per_patch_and_class(patch_size, decoder):
    config = tiny_network(
        image_size=(64, 96), num_heads=1, patch_size=patch_size, in_channels=4, decoder=decoder
    )
    model = Segmenter(config)
    image = jax.ShapeDtypeStruct((2, 70, 33, 4), jnp.float32)
    logits = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], image)
    assert logits.shape == (2, -(-70 // patch_size), -(-33 // patch_size), 5)
    assert logits.dtype == jnp.float32


def test_distillation_token_adds_one_token_and_one_position():
    plain, distilled = (
        abstract_params(golden_config("segm_mask", distilled=d))["encoder"] for d in (False, True)
    )
    assert set(distilled) - set(plain) == {"dist"}
    assert distilled["pos_embedding"].shape[1] == plain["pos_embedding"].shape[1] + 1


def test_padding_on_the_outside_changes_nothing(golden_dir):
    model = Segmenter(golden_config("segm_linear_distilled"))
    variables = {"params": golden_params("segm_linear_distilled")}
    with np.load(golden_dir / "segm_linear_distilled.npz") as arrays:
        image = arrays["padded/image_nhwc"]
    padded = np.pad(image, ((0, 0), (0, 14), (0, 10), (0, 0)))
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(variables, image), apply(variables, padded), atol=1e-6)


def test_masks_that_differ_little_are_normalised_exactly():
    config = tiny_network()
    decoder = MaskTransformerDecoder(config)
    patches = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 64)), jnp.float32)
    params = decoder.init(jax.random.key(0), patches, True)["params"]
    # Tokens that point almost the same way.
    params["decoder_norm"]["bias"] += 10.0
    params["proj_classes"] = params["proj_patch"]
    found, state = jax.jit(
        lambda p, x: decoder.apply(
            {"params": p},
            x,
            True,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "decoder_norm",
        )
    )(params, patches)
    tokens = np.float64(jax.tree.leaves(state)[0])
    pairs = (tokens[:, :16], "proj_patch"), (tokens[:, 16:], "proj_classes")
    units = (x @ np.float64(params[name]) for x, name in pairs)
    units = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in units]
    masks = np.einsum("bnd,bkd->bnk", *units)
    assert masks.std(axis=-1).max() < 0.05 * np.abs(masks).min()
    expected = masks - masks.mean(axis=-1, keepdims=True)
    expected /= np.sqrt(masks.var(axis=-1, keepdims=True) + config.layer_norm_eps)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_upsample_refuses_a_size_of_another_grid():
    with pytest.raises(ValueError, match=r"size=\(65, 64\) at patch_size=16 does not belong"):
        upsample(jnp.zeros((1, 4, 4, 2)), (65, 64), 16)


def test_encoder_refuses_another_number_of_channels(golden):
    model, variables, _ = golden
    with pytest.raises(ValueError, match=r"image must be \(B, H, W, 3\), got \(1, 64, 64, 1\)"):
        model.apply(variables, jnp.zeros((1, 64, 64, 1)))


def test_drop_path_drops_whole_samples_and_scales_the_rest():
    branch = jnp.ones((4000, 2, 3))
    out = DropPath(0.25).apply({}, branch, False, rngs={"dropout": jax.random.key(0)})
    per_sample = np.asarray(out).reshape(4000, -1)
    assert set(np.unique(per_sample)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (per_sample == per_sample[:, :1]).all()
    assert np.mean(per_sample[:, 0] > 0) == pytest.approx(0.75, abs=0.03)
    np.testing.assert_array_equal(DropPath(0.25).apply({}, branch, True), branch)


@pytest.mark.parametrize(
    "rates",
    [
        {"drop_path_rate": 0.5},
        {"dropout_rate": 0.5},
        {"attention_dropout_rate": 0.5},
        {"attention_dropout_rate": 0.5, "scan_layers": True},
        {"decoder_dropout_rate": 0.5},
        {"decoder_attention_dropout_rate": 0.5},
    ],
)
def test_stochastic_parts_act_in_training_only_and_follow_the_key(rates):
    model = Segmenter(golden_config("segm_mask", **rates))
    plain = Segmenter(golden_config("segm_mask", scan_layers=model.config.scan_layers))
    variables = {"params": golden_params("segm_mask")}
    image = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    # The same program, hence the same numbers.
    assert str(jax.make_jaxpr(model.apply)(variables, image)) == str(
        jax.make_jaxpr(plain.apply)(variables, image)
    )

    @jax.jit
    def train(seed):
        return model.apply(variables, image, train=True, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(train(1), train(1))
    assert np.abs(train(1) - train(2)).max() > 1e-2


def test_gradients_are_finite_in_bfloat16_and_parameters_stay_float32():
    model = Segmenter(golden_config("segm_mask", dtype="bfloat16"))

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = model.apply({"params": params}, jnp.ones((1, 64, 64, 3)))
        assert logits.dtype == jnp.float32
        return jax.nn.log_softmax(logits)[..., 0].mean()

    params = golden_params("segm_mask")
    decoder = params["decoder"]
    # Class tokens of length 0 have no direction; the norm must survive them.
    directionless = decoder | {"proj_classes": np.zeros_like(decoder["proj_classes"])}
    for case in (params, params | {"decoder": directionless}):
        for leaf in jax.tree.leaves(gradient(case)):
            assert leaf.dtype == jnp.float32
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"image_size": (64,)}, "image_size must be two positive sizes in pixels, got (64,)"),
        ({"num_heads": 3}, "self.width=64 must be divisible by self.num_heads=3"),
        ({"decoder": "upernet"}, "'upernet' is unknown; choose from ('mask', 'linear', "),
        ({"decoder": "eomt", "decoder_depth": 3}, "decoder_depth=3 must be in 1..depth=2 with the"),
        ({"decoder": "eomt", "patch_size": 7}, "needs a patch_size that 2 divides, got 7"),
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ({"gelu": "erf"}, "gelu='erf' is unknown; choose from ('exact', 'tanh')"),
        ({"dtype": "float16"}, "choose from ('auto', 'float32', 'bfloat16')"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be in [0, 1), got 1.0"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps must be positive, got -1.0"),
        ({"decoder_depth": -1}, "decoder_depth must be at least 0, got -1"),
        ({"mlp_dim": 0}, "mlp_dim must be positive, got 0"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        golden_config("segm_mask", **fields)


@pytest.mark.parametrize("variant", ["H/14", "S", "S/x", "S16"])
def test_unknown_variants_are_refused(variant):
    with pytest.raises(ValueError, match=re.escape("choose a size from ('Ti', 'S', 'B', 'L', ")):
        SegmenterConfig.from_variant(variant, num_classes=2, image_size=(64, 64))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("bilinear", [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]),
        ("corner_linear", [[1, 0], [2 / 3, 1 / 3], [1 / 3, 2 / 3], [0, 1]]),
        # Cubic weights at distance 0.25: taps -0.10546875, 0.87890625, 0.26171875, -0.03515625.
        (
            "bicubic",
            [
                [1.10546875, -0.10546875],
                [0.7734375, 0.2265625],
                [0.2265625, 0.7734375],
                [-0.10546875, 1.10546875],
            ],
        ),
        # Of PyTorch's `interpolate` with `scale_factor=4.1 / 2`, as DINOv2's code calls it.
        (
            "bicubic_offset",
            [
                [1.1062915330596, -0.1062915330596],
                [0.7921732853557, 0.2078267146443],
                [0.2583374443203, 0.7416625556797],
                [-0.0977001748379, 1.0977001748379],
            ],
        ),
    ],
)
def test_resize_matrix_values(method, expected):
    np.testing.assert_allclose(resize_matrix(2, 4, method), expected, atol=1e-12)


def test_resize_matrix_shrinks_without_antialiasing():
    expected = np.zeros((2, 8))
    expected[0, [1, 2]] = expected[1, [5, 6]] = 0.5
    np.testing.assert_allclose(resize_matrix(8, 2), expected)


def test_periods_that_a_file_holds_rounded_are_rounded():
    config = tiny_network(num_heads=1, position="rope", rope_periods="bfloat16")
    sine, cosine = rope_rotation(config, (3, 5))
    # 100 ** (1 / 16) is 1.3335; the first patch is in row -2/3 and column -4/5.
    for index, place in ((1, -2 / 3), (17, -4 / 5)):
        angle = 2 * np.pi * place / 1.3359375
        np.testing.assert_allclose(sine[0, index], np.sin(angle), atol=1e-6)
        np.testing.assert_allclose(cosine[0, index + 32], np.cos(angle), atol=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "corner_linear"])
@pytest.mark.parametrize("sizes", [(1, 5), (5, 1), (7, 7), (3, 11), (11, 3)])
def test_resize_matrix_keeps_constants(method, sizes):
    np.testing.assert_allclose(resize_matrix(*sizes, method).sum(axis=1), 1)


def test_resize_matrix_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="sizes must be at least 1, got in_size=0"):
        resize_matrix(0, 4)
    with pytest.raises(ValueError, match="method='area' is unknown"):
        resize_matrix(4, 2, "area")


def test_position_embedding_keeps_extra_tokens_and_its_own_grid():
    embedding = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2 + 6, 4)), jnp.float32)
    same = resize_position_embedding(embedding, 2, (2, 3), (2, 3))
    np.testing.assert_array_equal(same, embedding)
    wide = resize_position_embedding(embedding, 2, (2, 3), (2, 6))
    np.testing.assert_array_equal(wide[:, :2], embedding[:, :2])
    expected = resize_matrix(3, 6) @ np.asarray(embedding[0, 2:5])
    np.testing.assert_allclose(wide[0, 2:8], expected, atol=1e-6)
