"""Models as files that are used without this package."""

import hashlib
import json
import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import segmenter_jax
from segmenter_jax import export
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.commands.export import EXPORT_FILE
from segmenter_jax.conversion import onnx_files, stablehlo
from segmenter_jax.inference.fixed_size import ids_dtype, network_function, picture_function
from segmenter_jax.inference.predictor import Predictor
from segmenter_jax.models import Segmenter
from segmenter_jax.models.params import abstract_params
from segmenter_jax.runtime.ownership import sole_owner
from tests.models_on_disk import CLASSES, golden_description, write_golden_model
from tests.tiny import tiny_network

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "docs" / "examples"
# Together all that networks differ in.
BACKBONES = {
    "dinov3": {
        "position": "rope",
        "num_registers": 2,
        "mlp": "swiglu",
        "layer_scale": True,
        "decoder": "linear",
    },
    "siglip": {"class_token": False, "gelu": "tanh", "scan_layers": True, "remat": True},
    "eomt": {
        "patch_size": 14,
        "position_size": (56, 56),
        "position_resize": "bicubic",
        "num_registers": 4,
        "decoder": "eomt",
        "num_queries": 7,
    },
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_golden_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def predictor(model_dir):
    return segmenter_jax.load(model_dir, devices=jax.local_devices()[:1])


@pytest.fixture(scope="module")
def exported(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "made"
    assert export.main([str(model_dir), str(folder), "--to=stablehlo", "--size=90x131"]) == 0
    return folder


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def function_of(folder, name):
    about = json.loads((folder / EXPORT_FILE).read_text())["functions"][name]
    content = (folder / about["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == about["sha256"]
    return jax.export.deserialize(bytearray(content)).call, about


def random_params(config):
    """Parameters that are nowhere 0 or 1, as after training; drawn, so that nothing is compiled."""
    rng = np.random.default_rng(1)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32(rng.normal(path[-1].key == "scale", 0.1, leaf.shape)),
        abstract_params(config),
    )


def own_logits(predictor, windows):
    pixels = windows / np.float32(127.5) - 1
    return jax.jit(predictor.model.apply)({"params": predictor.params}, pixels)


def test_the_files_give_the_models_answers(exported, predictor):
    segment, about = function_of(exported, "picture")
    picture = noise(*about["inputs"]["picture"]["shape"])
    found = segment(picture)
    expected = predictor.predict_maps(picture, ("ids", "confidence"))
    np.testing.assert_array_equal(found["ids"], expected["ids"])
    np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-5)
    network, about = function_of(exported, "network")
    assert about["inputs"]["pixels"]["shape"] == ["B", 64, 64, 3]
    windows = noise(3, 64, 64, 3)
    logits = network(windows)["logits"]
    np.testing.assert_allclose(logits, own_logits(predictor, windows), atol=1e-4)


def test_one_file_is_for_all_platforms_and_says_what_it_is(exported):
    content = bytearray((exported / "network.stablehlo").read_bytes())
    assert jax.export.deserialize(content).platforms == stablehlo.PLATFORMS
    about = json.loads((exported / EXPORT_FILE).read_text())
    assert tuple(about["classes"]) == CLASSES and len(about["colors"]) == len(CLASSES)
    assert about["protocol"] == "window 64, stride 48, base 64, scales 1, flip no"
    assert about["functions"]["picture"]["outputs"]["ids"] == {"dtype": "uint8", "shape": [90, 131]}
    assert about["normalization"] == {"inside": True, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ((150, 70), {}),  # Scaled down to the base size.
        ((41, 90), {}),  # Enlarged to it.
        ((70, 100), {"base_size": None}),  # As it is.
        ((30, 200), {"base_size": 40}),  # Then enlarged to the window.
    ],
)
def test_a_picture_of_any_size_is_scaled_and_cut_as_by_the_model(predictor, size, fields):
    picture, description = noise(*size, 3), golden_description(**fields)
    found = jax.jit(picture_function(description, predictor.params, size).call)(picture)
    np.testing.assert_array_equal(found["ids"], predictor.predict(picture, **fields))


def test_scores_of_pixels_are_merged_as_by_the_model():
    config = tiny_network(decoder="eomt", num_queries=7)
    description = ModelDescription(config, tuple("abcde"), ((0, 0, 0),) * 5, (0.4,), (0.2,))
    params, picture = random_params(config), noise(40, 52, 3)
    own = Predictor(description, params, devices=jax.local_devices()[:1])
    expected = own.predict_maps(picture, ("ids", "confidence"))
    found = jax.jit(picture_function(description, params, (40, 52)).call)(picture)
    np.testing.assert_array_equal(found["ids"], expected["ids"])
    np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-6)


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request):
    """The network of a backbone as a function, windows, and what it has to make of them."""
    config = tiny_network(image_size=(28, 42), **BACKBONES[request.param])
    params = random_params(config)
    description = ModelDescription(config, tuple("abcde"), ((0, 0, 0),) * 5, (0.4,), (0.2,))
    windows = noise(2, 28, 28, 3)
    pixels = (windows / np.float32(255) - 0.4) / 0.2
    expected = jax.jit(Segmenter(config).apply)({"params": params}, pixels)
    return network_function(description, params), windows, expected


def test_every_backbone_is_exported(backbone):
    function, windows, expected = backbone
    content = stablehlo.serialize(function.call, function.dtype, function.shape)
    found = stablehlo.deserialize(content)(windows)["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_every_backbone_gives_the_same_in_onnxruntime(backbone):
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package, reason="the extra [export] is not installed")
    f, windows, expected = backbone
    content = onnx_files.serialize(f.call, f.dtype, f.shape, f.argument, f.results)
    found = onnx_files.deserialize(content)(windows)["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found.argmax(axis=-1), expected.argmax(axis=-1))


def test_ids_have_the_smallest_type():
    assert [ids_dtype(k) for k in (256, 257, 65536, 65537)] == [
        "uint8",
        "uint16",
        "uint16",
        "int32",
    ]


@pytest.fixture
def unchecked(monkeypatch):
    """Exports that trace and compile nothing: their files hold another function."""
    content = stablehlo.serialize(lambda x: x + noise(2**18), "uint8", (1,))
    monkeypatch.setattr(stablehlo, "serialize", lambda *_: content)
    monkeypatch.setattr(
        "segmenter_jax.commands.export.differences", lambda *_: {"logits": 0.0, "ids": 0.0}
    )


def test_nothing_is_left_or_lost_where_an_export_fails(
    model_dir, tmp_path, capsys, small_files, unchecked
):
    def fails(*arguments):
        assert export.main([str(model_dir), *map(str, arguments)]) == 1
        return capsys.readouterr().err

    there = tmp_path / "there"
    there.mkdir()
    assert "exists; choose another name or give --overwrite" in fails(there, "--to=stablehlo")
    (there / "notes.txt").write_text("mine")
    assert "is no export; it is left" in fails(there, "--to=stablehlo", "--overwrite")
    new = tmp_path / "new"
    assert "is for --to=onnx" in fails(new, "--to=stablehlo", "--precision=int8")
    for size in ("9x900000", "40000x40000"):
        assert "GB to merge at once, over" in fails(new, "--to=stablehlo", f"--size={size}")
    with sole_owner(new, beside=True):
        assert "in use by process" in fails(new, "--to=stablehlo")
    with small_files(100_000):
        assert f"{new}/network.stablehlo" in fails(new, "--to=stablehlo")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with pytest.raises(SystemExit, match="2"):
        export.main([str(model_dir), str(new), "--to=stablehlo", "--size=big"])


def test_a_missing_converter_is_told_before_anything_else(model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert export.main([str(model_dir), str(tmp_path / "new"), "--to=onnx"]) == 1
    assert "pip install 'segmenter_jax[export]'" in capsys.readouterr().err


def test_an_export_replaces_an_older_one(model_dir, tmp_path, unchecked):
    folder = tmp_path / "made"
    arguments = [str(model_dir), str(folder), "--to=stablehlo", "--overwrite"]
    for size in (64, 96):
        assert export.main([*arguments, f"--size=64x{size}"]) == 0
        about = json.loads((folder / EXPORT_FILE).read_text())["functions"]["picture"]
        assert about["inputs"]["picture"]["shape"] == [64, size, 3]


def test_a_file_that_is_not_the_model_is_not_written(
    model_dir, tmp_path, unchecked, monkeypatch, capsys
):
    wrong = {"logits": 2e-4, "ids": 0.0}
    monkeypatch.setattr("segmenter_jax.commands.export.differences", lambda *_: wrong)
    assert export.main([str(model_dir), str(tmp_path / "new"), "--to=stablehlo"]) == 1
    assert "gives other logits, by 2.0e-04 of the largest" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_example_runs_an_export(exported, predictor, tmp_path, monkeypatch):
    picture, target = noise(90, 131, 3), tmp_path / "ids.npy"
    np.save(tmp_path / "picture.npy", picture)
    run_example(monkeypatch, "run_stablehlo.py", exported, tmp_path / "picture.npy", target)
    np.testing.assert_array_equal(np.load(target), predictor.predict(picture))


def run_example(monkeypatch, name, *arguments):
    assert len((EXAMPLES / name).read_text().splitlines()) <= 31
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name))


def test_onnx_files_give_the_models_answers(model_dir, predictor, tmp_path, monkeypatch, capsys):
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package, reason="the extra [export] is not installed")
    folder, picture = tmp_path / "made", noise(70, 90, 3)
    arguments = [str(model_dir), str(folder), "--to=onnx", "--size=70x90"]
    assert export.main(arguments) == 0
    Image.fromarray(picture).save(tmp_path / "picture.png")
    target = tmp_path / "classes.png"
    run_example(monkeypatch, "run_onnx.py", folder, tmp_path / "picture.png", target)
    np.testing.assert_array_equal(np.asarray(Image.open(target)), predictor.predict(picture))

    content, windows = (folder / "network.onnx").read_bytes(), noise(3, 64, 64, 3)
    expected = own_logits(predictor, windows)
    largest = np.abs(expected).max()
    for smaller, tolerance in (
        (None, 2e-5),
        (onnx_files.halved, 5e-3),
        (onnx_files.quantized, 0.2),
    ):
        file = smaller(content) if smaller else content
        logits = onnx_files.deserialize(file)(windows)["logits"]
        np.testing.assert_allclose(logits, expected, atol=tolerance * largest)
    assert "ids in 0.000 %" in capsys.readouterr().out
