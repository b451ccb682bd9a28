"""Training that starts from foreign weights: what is taken, and what is said about it."""

import hashlib

import jax
import numpy as np
import pytest

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.conversion import convert as conversion
from segmenter_jax.inference.predictor import read_model
from segmenter_jax.models.normalization import NORMALIZATION
from segmenter_jax.models.params import init_params
from tests.golden_params import golden_config

GOOGLE = "google_vit_augreg.npz"


def described(config, normalization="vit"):
    """A model with that network, to be trained."""
    names = tuple(map(str, range(config.num_classes)))
    mean, std = NORMALIZATION[normalization]
    return ModelDescription(config, names, ((0, 0, 0),) * config.num_classes, mean, std)


def assert_same(params, other):
    jax.tree.map(np.testing.assert_array_equal, params, other)


def assert_close(params, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), params, other)


def test_init_from_encoder_keeps_the_given_decoder(golden_dir):
    config = golden_config("segm_mask", image_size=(96, 64))
    params = init_params(config, seed=4)
    found, origin, report = conversion.load_init(golden_dir / GOOGLE, described(config), seed=4)
    assert_close(found["decoder"], params["decoder"])
    assert origin["sha256"] == hashlib.sha256((golden_dir / GOOGLE).read_bytes()).hexdigest()
    assert origin["options"] == {"position_method": "bilinear", "seed": 4}
    expected = read_model(
        golden_dir / GOOGLE, num_classes=7, decoder="linear", image_size=(96, 64), window=64
    )
    assert_same(found["encoder"], expected[1]["encoder"])
    assert [entry[0] for entry in report.resized] == ["encoder/pos_embedding"]
    assert report.warnings == [
        "the source was trained with layer_norm_eps=1e-06; the model computes with 1e-05",
        "the source was trained with gelu=tanh; the model computes with exact",
    ]


def test_init_from_another_decoder_drops_it(golden_dir):
    pytest.importorskip("torch")
    config = golden_config("segm_mask", decoder="linear")
    params = init_params(config, seed=4)
    found, _, report = conversion.load_init(golden_dir / "segm_mask.pth", described(config), seed=4)
    assert_close(found["decoder"], params["decoder"])
    assert {e[2] for e in report.initialised} == {
        "mask decoder of 2 layers in the source, linear decoder here"
    }


@pytest.mark.parametrize("field, value", [("depth", 3), ("patch_size", 8), ("distilled", True)])
def test_init_from_another_encoder_fails(golden_dir, field, value):
    config = golden_config("segm_mask", **{field: value})
    with pytest.raises(ValueError, match=rf"encoder has {field}=.*, the model wants {value}"):
        conversion.load_init(golden_dir / GOOGLE, described(config), seed=4)


def test_init_from_warns_of_another_normalisation(golden_dir):
    target = described(golden_config("segm_mask"), normalization="deit")
    _, _, report = conversion.load_init(golden_dir / GOOGLE, target, seed=4)
    assert [w for w in report.warnings if "normalised" in w] == [
        "the source was trained with mean=(0.5, 0.5, 0.5); images are normalised with "
        f"{NORMALIZATION['deit'][0]} here (augment.normalization)",
        "the source was trained with std=(0.5, 0.5, 0.5); images are normalised with "
        f"{NORMALIZATION['deit'][1]} here (augment.normalization)",
    ]
