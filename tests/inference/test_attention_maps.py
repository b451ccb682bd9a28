"""Attention weights against golden values, and whose attention is picked."""

import jax
import numpy as np
import pytest

from segmenter_jax.inference.attention_maps import (
    attention_maps,
    attention_rollout,
    attention_weights,
)
from segmenter_jax.inference.predictor import Predictor
from segmenter_jax.models import Segmenter
from segmenter_jax.models.normalization import normalize
from tests.golden_params import NAMES, golden_config, golden_params
from tests.models_on_disk import golden_description


@pytest.mark.parametrize(
    ("name", "part", "layer"),
    [*((name, "encoder", 1) for name in NAMES), ("segm_mask", "decoder", 0)],
)
def test_weights_are_the_references(golden_dir, name, part, layer):
    with np.load(golden_dir / f"{name}.npz") as arrays:
        image = arrays["square/image_nhwc"]
        expected = arrays[f"attention/{part}_layer{layer}"]
    model, params = Segmenter(golden_config(name)), golden_params(name)
    logits, weights = attention_weights(model, params, image, part, layer)
    np.testing.assert_allclose(weights, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(logits, model.apply({"params": params}, image), atol=1e-5)


@pytest.fixture(scope="module")
def predictor():
    return Predictor(
        golden_description(), golden_params("segm_mask"), devices=jax.local_devices()[:1]
    )


@pytest.fixture(scope="module")
def picture():
    # Scaled to 64 x 96 for the network: 4 x 6 patches.
    return np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)


def network_input(predictor, shown):
    d = predictor.description
    return normalize(shown.image[None], None, d.mean, d.std)


def test_a_patch_looks_from_where_its_pixel_lands(predictor, picture):
    shown = attention_maps(predictor, picture, layer=1, patch=(47, 0))
    assert shown.image.shape == (64, 96, 3) and shown.patch == (0, 5)
    assert shown.maps.shape == (2, 4, 6) and shown.mask is None
    assert shown.title == "encoder layer 1, patch at 47, 0"
    inputs = predictor.model, predictor.params, network_input(predictor, shown)
    _, weights = attention_weights(*inputs, "encoder", 1)
    np.testing.assert_allclose(shown.maps.reshape(2, 24), weights[0, :, 1 + 5, 1:], atol=1e-4)


def test_class_token_and_class_embeddings_attention_maps(predictor, picture):
    token = attention_maps(predictor, picture)
    assert token.title == "encoder layer 1, class token" and token.patch is None
    inputs = predictor.model, predictor.params, network_input(predictor, token)
    _, weights = attention_weights(*inputs, "encoder", 1)
    np.testing.assert_allclose(token.maps.reshape(2, 24), weights[0, :, 0, 1:], atol=1e-4)

    car = attention_maps(predictor, picture, part="decoder", layer=0, class_name="car")
    logits, weights = attention_weights(*inputs, "decoder", 0)
    np.testing.assert_allclose(car.maps.reshape(-1, 24), weights[0, :, 24 + 3, :24], atol=1e-4)
    np.testing.assert_allclose(car.mask, jax.nn.softmax(logits[0])[..., 3], atol=1e-4)


def test_rollout_multiplies_the_layers(predictor, picture):
    shown = attention_maps(predictor, picture, rollout=True)
    assert (
        shown.maps.shape == (1, 4, 6) and shown.title == "encoder rollout to layer 1, class token"
    )
    inputs = predictor.model, predictor.params, network_input(predictor, shown)
    steps = [
        0.5 * np.asarray(attention_weights(*inputs, "encoder", i)[1])[0].mean(0) + 0.5 * np.eye(25)
        for i in (0, 1)
    ]
    _, flow = attention_rollout(*inputs, 1)
    np.testing.assert_allclose(flow[0], steps[1] @ steps[0], atol=1e-6)
    np.testing.assert_allclose(flow[0].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"layer": 2}, r"layer must be in -2\.\.1 for this encoder, got 2"),
        ({"part": "decoder"}, "choose a patch or a class"),
        ({"part": "decoder", "class_name": "boat"}, r"'boat' is unknown; choose from \('sky', "),
        ({"class_name": "car"}, "classes are embedded in the decoder only"),
        ({"patch": (48, 0)}, "pixel x=48, y=0 is outside the picture of 48 x 32"),
        ({"part": "head"}, r"part='head' is unknown; choose from \('encoder', 'decoder'\)"),
        ({"part": "decoder", "class_name": "car", "rollout": True}, "a rollout follows the encod"),
    ],
)
def test_wrong_choices_are_refused(predictor, picture, choices, message):
    with pytest.raises(ValueError, match=message):
        attention_maps(predictor, picture, **choices)


def test_linear_decoders_have_no_attention(picture):
    name = "segm_linear_distilled"
    linear = Predictor(golden_description(model=golden_config(name)), golden_params(name))
    with pytest.raises(ValueError, match="is 'linear' and has no attention"):
        attention_maps(linear, picture, part="decoder", class_name="car")
    assert attention_maps(linear, picture).maps.shape == (2, 4, 6)
