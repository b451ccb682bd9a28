"""Training that starts from foreign weights: what is taken, and what is said about it."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import save_model
from segmenter_jax.conversion import convert as conversion
from segmenter_jax.inference.predictor import read_model
from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.models.params import init_params
from tests.conversion.test_backbones import FOLDER
from tests.golden_params import golden_config
from tests.tiny import tiny_network

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


@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_init_from_takes_classes_by_their_names(tmp_path, decoder):
    def network(names):
        config = tiny_network(num_classes=len(names), image_size=(16, 16), decoder=decoder)
        return dataclasses.replace(described(config), classes=names)

    source = network(("sky", "road", "car"))
    params = jax.device_get(init_params(source.model, seed=1))
    # Distinct values also where fresh parameters are all alike.
    params = jax.tree.map(lambda x: x + np.arange(x.size, dtype="f4").reshape(x.shape), params)
    save_model(tmp_path / "source", source, params)
    target = network(("car", "Road", "tree", "sea"))
    found, _, report = conversion.load_init(tmp_path / "source", target, seed=2)
    assert_same(found["encoder"], params["encoder"])
    assert report.classes == (
        "2 taken over by name: car, Road; 2 newly initialised: tree, sea; 1 left in the source: sky"
    )
    assert f"classes: {report.classes}" in str(report)
    fresh = jax.device_get(init_params(target.model, seed=2))
    axes = (
        {"class_embedding": 1, "mask_norm/scale": 0, "mask_norm/bias": 0}
        if decoder == "mask"
        else {"head/kernel": 1, "head/bias": 0}
    )
    trees = (flatten_dict(tree["decoder"], sep="/") for tree in (found, params, fresh))
    found, params, fresh = trees
    for name in found:
        if name not in axes:
            np.testing.assert_array_equal(found[name], params[name])
            continue
        ours, theirs, new = (np.moveaxis(t[name], axes[name], 0) for t in (found, params, fresh))
        np.testing.assert_array_equal(ours[:2], theirs[[2, 1]])
        np.testing.assert_allclose(ours[2:], new[2:], atol=1e-7)


def test_init_from_says_when_classes_are_taken_by_their_order_or_not_at_all(golden_dir, tmp_path):
    config = tiny_network(num_classes=2, image_size=(16, 16), decoder="linear")
    named = dataclasses.replace(described(config), classes=("class 0", "class 1"))
    save_model(tmp_path / "source", named, init_params(config, seed=1))
    target = dataclasses.replace(named, classes=("sky", "road"))
    found, _, report = conversion.load_init(tmp_path / "source", target, seed=2)
    assert_same(found, init_params(config, seed=1))
    assert "does not name its classes" in report.warnings[0]
    save_model(tmp_path / "source", target, init_params(config, seed=1))
    found, _, report = conversion.load_init(tmp_path / "source", named, seed=2)
    assert_close(found["decoder"], init_params(config, seed=2)["decoder"])
    assert report.classes.startswith("2 newly initialised: class 0, class 1; 2 left in the source")


@pytest.mark.parametrize("field, value", [("depth", 3), ("mlp_dim", 8), ("distilled", True)])
def test_init_from_another_encoder_fails(golden_dir, field, value):
    config = golden_config("segm_mask", **{field: value})
    with pytest.raises(
        ValueError, match=rf"encoder has {field}=.*; the model wants {field}={value}"
    ):
        conversion.load_init(golden_dir / GOOGLE, described(config), seed=4)


def test_all_differences_of_another_encoder_are_told_at_once():
    fields = {"patch_size": 4, "position_size": (16, 16), "layer_scale": True}
    target = described(tiny_network(depth=3, num_heads=4, **fields), "imagenet")
    with pytest.raises(
        ValueError,
        match=r"has width=32, depth=2, num_heads=2, .*wants width=64, depth=3, num_heads=4, ",
    ):
        conversion.load_init(FOLDER / "dinov2", target, seed=4)
    # Asked for by name it is an error of its own.
    with pytest.raises(ValueError, match="num_heads=4 asked for, the source has 2"):
        conversion.convert(FOLDER / "dinov2", conversion.ConvertOptions(num_classes=2, num_heads=4))


def test_init_from_warns_of_another_normalisation(golden_dir):
    target = described(golden_config("segm_mask"), normalization="deit")
    _, _, report = conversion.load_init(golden_dir / GOOGLE, target, seed=4)
    assert [w for w in report.warnings if "normalised" in w] == [
        "the source was trained with mean=(0.5, 0.5, 0.5); images are normalised with "
        f"{NORMALIZATION['deit'][0]} here (augment.normalization)",
        "the source was trained with std=(0.5, 0.5, 0.5); images are normalised with "
        f"{NORMALIZATION['deit'][1]} here (augment.normalization)",
    ]


def test_positions_of_no_rule_give_no_warning_of_one(golden_dir):
    """An image tower of big_vision, or a `mae_pretrain` file, as the network of its own family."""
    config = golden_config("segm_mask", gelu="tanh", layer_norm_eps=1e-6, position_resize="bicubic")
    _, _, report = conversion.load_init(golden_dir / GOOGLE, described(config), seed=0)
    assert report.warnings == []


def test_wishes_that_positions_of_a_source_do_not_follow_are_told_once():
    options = {"num_classes": 2, "normalization": "vit"}
    for name, why in (
        ("dinov2", "4x4 positions have a rule of their own, bicubic"),
        ("dinov3", "positions are rotations, for images of any size"),
    ):
        given = {"image_size": (32, 32), "position_method": "bilinear", "window": 32}
        for asked in ({}, given):
            found = conversion.ConvertOptions(**options, **asked)
            _, _, report = conversion.convert(FOLDER / name, found)
            assert sum(why in warning for warning in report.warnings) == len(asked) - bool(asked)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("siglip_B/4", "class_token=True; expected .*class_token=False"),
        ("dinov3_B/4", "num_registers=0, position=learned; expected .*position=rope"),
    ],
)
def test_a_variant_that_is_insisted_on_is_compared_in_all_that_arrays_show(variant, message):
    options = conversion.ConvertOptions(num_classes=2, variant=variant)
    with pytest.raises(ValueError, match=message):
        conversion.convert(FOLDER / "dinov2", options)
