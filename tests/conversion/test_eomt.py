"""EoMT: logits and scores, both namings, differences from DINOv3, and the commands on it.

The goldens are of `transformers`, see tests/soak/make_backbone_goldens.py.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import segmenter_jax
from segmenter_jax import convert as convert_command
from segmenter_jax import evaluate
from segmenter_jax.conversion import convert as conversion
from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.opening import Hints
from segmenter_jax.conversion.sources import open_source
from segmenter_jax.data.datasets import build_dataset
from segmenter_jax.inference.attention_maps import (
    attention_maps,
    attention_rollout,
    attention_weights,
)
from segmenter_jax.models import Segmenter
from segmenter_jax.models.normalization import normalize
from segmenter_jax.models.resampling import resize_matrix

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden" / "backbones"


def opened_model(source, **options):
    return conversion.convert(source, conversion.ConvertOptions(**options))


def logit_errors(name, description, params, **fields):
    """Largest differences of mask and class logits from the golden ones."""
    model = Segmenter(dataclasses.replace(description.model, **fields))
    run = jax.jit(lambda params, x: model.apply({"params": params}, x, method=model.query_logits))
    with np.load(FOLDER / f"{name}.npz") as golden:
        masks, classes, _ = run(params, golden["image_nhwc"])
        return [
            float(np.abs(found - golden[key]).max())
            for found, key in ((masks, "masks"), (classes, "classes"))
        ]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("eomt_dinov2", {}),
        ("eomt_dinov3", {}),
        ("eomt_dinov3", {"scan_layers": True, "remat": True}),
    ],
)
def test_masks_and_classes_are_those_of_the_published_code(name, fields):
    description, params, report = opened_model(FOLDER / name)
    assert max(logit_errors(name, description, params, **fields)) < 2e-5
    assert "attn_mask_probs (1,): of the masks of attention in training" in str(report)


TABLE = (
    *(("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("layers.", "blocks.")),
    *(("embeddings.cls_token", "cls_token"), ("embeddings.register_tokens", "reg_token")),
    *(("embeddings.position_embeddings.weight", "pos_embed"), ("layernorm.", "norm.")),
    *(("attention.out_proj", "attn.proj"), ("layer_scale1.lambda1", "ls1.gamma")),
    ("layer_scale2.lambda1", "ls2.gamma"),
)
# DINOv3's is that of `transformers` in other modules.
DINOV3_TABLE = (
    *(("patch_embeddings", "kernels"), ("embeddings.", "patch_embed.")),
    *(("kernels", "patch_embeddings"), ("layers.", "blocks."), ("layernorm.", "norm.")),
)
HEAD_TABLE = (
    *(("query.", "q."), ("class_predictor.", "class_head."), ("upscale_block.block.", "upscale.")),
    *(("mask_head.fc1", "mask_head.0"), ("mask_head.fc2", "mask_head.2")),
    *(("mask_head.fc3", "mask_head.4"), ("layernorm2d", "norm")),
)
HEAD = ("query.", "class_predictor.", "upscale_block.", "mask_head.", "attn_mask", "criterion.")


def renamed(name, table):
    for old, new in table:
        name = name.replace(old, new)
    return name


def original(name, path):
    """The golden network under the names of the original files."""
    arrays = load_file(FOLDER / name / "model.safetensors")
    result = {"criterion.empty_weight": arrays.pop("criterion.empty_weight")}
    for i in range(2) if name == "eomt_dinov2" else ():
        for kind in ("weight", "bias"):
            parts = [arrays.pop(f"layers.{i}.attention.{n}_proj.{kind}") for n in "qkv"]
            arrays[f"layers.{i}.attn.qkv.{kind}"] = np.concatenate(parts)
    table = TABLE if name == "eomt_dinov2" else DINOV3_TABLE
    for key, array in arrays.items():
        if key.startswith(HEAD):
            result[f"network.{renamed(key, HEAD_TABLE)}"] = array
        else:
            array = array[None] if "position" in key else array
            result[f"network.encoder.backbone.{renamed(key, table)}"] = array
    result["network.encoder.pixel_mean"] = np.float32([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1)
    result["network.encoder.pixel_std"] = np.float32([0.2, 0.3, 0.4]).reshape(1, 3, 1, 1)
    save_file({key: np.ascontiguousarray(array) for key, array in result.items()}, path)
    return path


def assert_same_params(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def test_original_names_hold_the_same_network(tmp_path):
    path = original("eomt_dinov2", tmp_path / "pytorch_model.safetensors")
    description, params, report = opened_model(path, num_heads=2)
    expected, expected_params, _ = opened_model(FOLDER / "eomt_dinov2")
    assert description.model == expected.model
    assert (description.mean, description.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert (description.base_size, description.window, description.stride) == (64, 64, 64)
    # Names of classes are in the folder of the hub only.
    assert expected.classes == ("wall", "sky", "floor", "tree")
    assert_same_params(params, expected_params, rtol=0)
    assert "criterion.empty_weight (5,): beside the model's own arrays" in str(report)


@pytest.fixture
def dinov3(tmp_path):
    """Original file of differences, file of the weights they are from, and file of their sums."""
    whole = original("eomt_dinov3", tmp_path / "whole.safetensors")
    arrays, base, rng = load_file(whole), {}, np.random.default_rng(0)
    for key in [key for key in arrays if key.startswith("network.encoder.backbone.")]:
        difference = rng.normal(0, 0.01, arrays[key].shape).astype(np.float32)
        theirs = key.removeprefix("network.encoder.backbone.").replace(
            "patch_embed.", "embeddings."
        )
        base[theirs.replace("blocks.", "layer.")] = arrays[key] - difference
        arrays[key] = difference
    save_file(arrays, tmp_path / "differences.safetensors")
    save_file(base, tmp_path / "base.safetensors")
    said = {"image_size": 32, "num_blocks": 1}
    for name in ("differences", "whole"):
        (tmp_path / f"{name}.config.json").write_text(json.dumps(said))
    return tmp_path / "differences.safetensors", tmp_path / "base.safetensors", whole


def test_differences_from_dinov3_are_added_to_it(dinov3):
    path, base, whole = dinov3
    _, expected, _ = opened_model(FOLDER / "eomt_dinov3")
    description, params, report = opened_model(path, base=base, num_heads=2)
    assert description.window == 32
    assert_same_params(params, expected, atol=1e-6)
    assert max(logit_errors("eomt_dinov3", description, params)) < 1e-4
    assert "encoder/cls <- embeddings.cls_token of the base + encoder.backbone.patch" in str(report)
    # One's own training saves whole weights under the same names.
    _, params, report = opened_model(whole, base=base, num_heads=2)
    assert_same_params(params, expected, rtol=0)
    assert "warning: its encoder is whole, not a difference" in str(report)


def test_what_is_wrong_with_a_base_is_said(dinov3):
    path, base, _ = dinov3
    (path.parent / "differences.config.json").unlink()
    for source, options, message in (
        (path, {"base": base}, "says the size of its images; give image_size"),
        (path, {"image_size": (32, 32)}, "difference from DINOv3's weights: give base"),
        (path, {"image_size": (32, 32), "base": FOLDER / "dinov2"}, "found dinov2, width 32, 2 la"),
        (FOLDER / "eomt_dinov2", {"base": base}, "holds whole weights, so there is no base"),
        (FOLDER / "siglip", {"base": base}, "siglip holds whole weights, so there is no base"),
    ):
        with pytest.raises(SourceError, match=message) as error:
            opened_model(source, **{"num_heads": 2, "num_classes": 3} | options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_mask_probs": np.ones(1, np.float32)}, r"is \[1.0\]: masks of attention are on"),
        ({"query.weight": None}, "array query.weight is missing"),
        ({"class_predictor.bias": None}, "array class_predictor.bias is missing"),
        ({"upscale_block.block.1.conv2.weight": None}, "block.1.conv2.weight is missing"),
        ({"upscale_block.block.2.conv1.bias": np.ones(32, np.float32)}, "no explanation as eomt"),
        ({"embeddings.position_embeddings.weight": np.ones((17, 32), np.float32)}, "17 position"),
    ],
)
def test_damaged_folders_are_told_in_one_line(tmp_path, change, message):
    folder = shutil.copytree(FOLDER / "eomt_dinov2", tmp_path / "damaged")
    arrays = load_file(folder / "model.safetensors") | change
    arrays = {name: array for name, array in arrays.items() if array is not None}
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(SourceError, match=message) as error:
        open_source(folder, Hints())
    assert "\n" not in str(error.value)


def test_layers_with_queries_are_said_or_asked_for(tmp_path):
    folder = shutil.copytree(FOLDER / "eomt_dinov3", tmp_path / "plain")
    arrays = load_file(folder / "model.safetensors")
    del arrays["attn_mask_probs"]
    save_file(arrays, folder / "model.safetensors")
    assert open_source(folder, Hints()).config.decoder_depth == 1
    said = json.loads((folder / "config.json").read_text())
    del said["num_blocks"]
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(SourceError, match="says in how many layers there are queries"):
        open_source(folder, Hints())


def test_a_decoder_that_would_be_new_is_refused():
    for source, options in (
        (FOLDER / "dinov2", {"decoder": "eomt", "num_classes": 3}),
        (FOLDER / "eomt_dinov2", {"num_classes": 3}),
        (FOLDER / "eomt_dinov2", {"patch_size": 8}),
        (FOLDER / "eomt_dinov2", {"patch_size": 32}),
    ):
        with pytest.raises(SourceError, match="a new decoder of the kind eomt would have to be tr"):
            opened_model(source, **options)
    # Its encoder serves others.
    description, _, report = opened_model(FOLDER / "eomt_dinov2", decoder="linear")
    assert description.model.decoder == "linear"
    assert "eomt decoder of 1 layers and 5 queries in the source, linear decoder" in str(report)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    assert convert_command.main([str(FOLDER / "eomt_dinov3"), str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def predictor(model_dir):
    return segmenter_jax.load(model_dir, devices=jax.local_devices()[:1])


@pytest.fixture(scope="module")
def picture():
    small = np.random.default_rng(0).integers(0, 256, (4, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((50, 32), Image.Resampling.BICUBIC))


def published_scores(predictor, picture):
    """Masks of both windows enlarged, their shares weighted by classes, windows averaged."""
    model, d = predictor.model, predictor.description
    run = jax.jit(lambda params, x: model.apply({"params": params}, x, method=model.query_logits))
    total, count = np.zeros((32, 50, 4)), np.zeros((32, 50, 1))
    for left in (0, 18):
        image = normalize(picture[None, :, left : left + 32], None, d.mean, d.std)
        masks, classes, side = run(predictor.params, image)
        masks, classes = np.asarray(masks[0], np.float64), np.asarray(classes[0], np.float64)
        enlarge = resize_matrix(32 // int(side), 32)
        masks = np.einsum("yi,xj,ijq->yxq", enlarge, enlarge, masks)
        classes = np.exp(classes) / np.exp(classes).sum(axis=1, keepdims=True)
        total[:, left : left + 32] += 1 / (1 + np.exp(-masks)) @ classes[:, :4]
        count[:, left : left + 32] += 1
    return total / count


def test_pictures_are_scored_as_the_published_code_does(predictor, picture):
    expected = published_scores(predictor, picture)
    ids = predictor.predict(picture)
    np.testing.assert_array_equal(ids, expected.argmax(axis=2))
    assert len(np.unique(ids)) > 1
    probs = predictor.predict_probs(picture)
    np.testing.assert_allclose(probs, expected / expected.sum(axis=2, keepdims=True), atol=1e-5)


def test_several_devices_give_the_same(predictor, model_dir, picture):
    several = segmenter_jax.load(model_dir, devices=jax.local_devices()[:2])
    options = {"scales": (1.0, 1.5), "flip": True, "batch_size": 2}
    found, expected = (p.predict_probs(picture, **options) for p in (several, predictor))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_split_is_evaluated(predictor, model_dir, tmp_path, picture, capsys):
    # What the model says is its label.
    ids = predictor.predict(picture)
    for split in ("train", "validation"):
        for kind, values in (("images", picture), ("annotations", ids.astype(np.uint8))):
            folder = tmp_path / "own" / kind / split
            folder.mkdir(parents=True)
            Image.fromarray(values).save(folder / "0.png")
    names = [{"id": i, "name": f"class {i}", "color": [60 * i, 0, 9]} for i in range(4)]
    (tmp_path / "own" / "classes.json").write_text(json.dumps({"classes": names}))
    build_dataset("own", tmp_path / "built", tmp_path / "own")
    flags = [model_dir, "--dataset", "own", "--data_dir", tmp_path / "built"]
    assert evaluate.main([str(flag) for flag in flags]) == 0
    assert "100.00" in capsys.readouterr().out


def test_attention_of_layers_with_queries_is_that_of_the_patches(predictor, picture):
    shown = attention_maps(predictor, picture, layer=1)
    d = predictor.description
    model = Segmenter(dataclasses.replace(d.model, attention="xla"))
    inputs = model, predictor.params, normalize(shown.image[None], None, d.mean, d.std)
    # Before the patches are 5 queries, the class token and 4 registers.
    scores, weights = attention_weights(*inputs, "encoder", 1)
    assert scores.shape == (1, *shown.image.shape[:2], 4)
    np.testing.assert_allclose(shown.maps.reshape(2, 28), weights[0, :, 5, 10:], atol=1e-5)
    _, flow = attention_rollout(*inputs, 1)
    np.testing.assert_allclose(flow.sum(axis=2), 1, atol=1e-5)
    # What a query was before this layer, only a query can have from the one before.
    np.testing.assert_allclose(
        flow[0, :, :5], weights[0].mean(axis=0)[:, :5] / 2 + np.eye(38, 5) / 2, atol=1e-5
    )
    with pytest.raises(ValueError, match="is 'eomt' and has no attention"):
        attention_maps(predictor, picture, part="decoder", patch=(0, 0))


def test_the_references_layout_has_no_such_decoder(tmp_path, capsys):
    arguments = [str(FOLDER / "eomt_dinov3"), str(tmp_path / "out"), "--to=safetensors"]
    assert convert_command.main(arguments) == 1
    assert "error: the reference has no" in capsys.readouterr().err
