"""Writing the reference's layout: exact there and back, and the same keys."""

import dataclasses
import os

import jax
import numpy as np
import pytest
import yaml

from segmenter_jax import convert
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import load_model, save_model
from segmenter_jax.conversion.variant import make_variant
from segmenter_jax.inference.predictor import read_model
from tests.golden_params import golden_config

torch = pytest.importorskip("torch")


def run(*arguments):
    return convert.main([os.fspath(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["segm_mask", "segm_linear_distilled"])
@pytest.mark.parametrize("kind", ["reference", "safetensors"])
def test_round_trip_is_bit_exact(golden_dir, tmp_path, name, kind):
    assert run(golden_dir / f"{name}.pth", tmp_path / "a") == 0
    description, params = load_model(tmp_path / "a")
    assert run(tmp_path / "a", tmp_path / "b", f"--to={kind}") == 0
    assert run(tmp_path / "b", tmp_path / "c") == 0
    again, same = load_model(tmp_path / "c")
    jax.tree.map(np.testing.assert_array_equal, params, same)
    for field in ("model", "classes", "colors", "mean", "std", "window", "stride", "base_size"):
        assert getattr(again, field) == getattr(description, field)


@pytest.mark.parametrize("name", ["segm_mask", "segm_linear_distilled"])
def test_exported_keys_values_and_description_are_the_references(golden_dir, tmp_path, name):
    assert run(golden_dir / f"{name}.pth", tmp_path / "a") == 0
    assert run(tmp_path / "a", tmp_path / "b", "--to=reference") == 0
    original = torch.load(golden_dir / f"{name}.pth", weights_only=True)["model"]
    exported = torch.load(tmp_path / "b" / "checkpoint.pth", weights_only=True)["model"]
    assert set(exported) == set(original)
    for key, tensor in original.items():
        assert exported[key].shape == tensor.shape
        if not key.startswith(("encoder.head.", "encoder.head_dist.")):
            assert torch.equal(exported[key], tensor)
    variants = [
        yaml.safe_load(path.read_text())
        for path in (golden_dir / f"{name}.variant.yml", tmp_path / "b" / "variant.yml")
    ]
    for group in ("inference_kwargs", "net_kwargs"):
        ours, theirs = variants[1][group], variants[0][group]
        assert ours | {"backbone": ""} == theirs | {"backbone": ""}


def test_what_only_we_know_survives(golden_dir, tmp_path):
    description, params = read_model(
        golden_dir / "segm_mask.pth", layer_norm_eps=1e-6, gelu="tanh", normalization="deit"
    )
    description = dataclasses.replace(description, classes=tuple("abcdefg"), mean=(0.4, 0.5, 0.6))
    save_model(tmp_path / "a", description, params)
    assert run(tmp_path / "a", tmp_path / "b", "--to=safetensors") == 0
    # For others to read as well.
    assert (tmp_path / "b" / "model.safetensors").stat().st_mode & 0o004
    found, _ = read_model(tmp_path / "b")
    assert found.model == description.model
    assert (found.classes, found.mean) == (description.classes, description.mean)


def test_differences_are_told(golden_dir, tmp_path, capsys):
    flags = ("--to=reference", "--gelu=tanh")
    assert run(golden_dir / "segm_mask.pth", tmp_path / "b", *flags) == 0
    assert "the reference always computes with layer_norm_eps=1e-05" in capsys.readouterr().out


def test_networks_the_reference_lacks_are_refused(tmp_path, golden_dir, capsys):
    with np.load(golden_dir / "google_vit_augreg.npz") as data:
        arrays = dict(data)
    for name, array in arrays.items():
        if "MlpBlock_3/Dense_0" in name:
            arrays[name] = array[..., :100]
        elif name.endswith("MlpBlock_3/Dense_1/kernel"):
            arrays[name] = array[:100]
    np.savez(tmp_path / "w.npz", **arrays)
    flags = ("--to=reference", "--num_classes=2", "--decoder=linear")
    assert run(tmp_path / "w.npz", tmp_path / "b", *flags) == 1
    assert "the reference has no mlp_dim=100" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("width", [192, 384, 768, 1024])
def test_every_published_width_has_a_name_of_a_backbone(width):
    heads = width // 64
    config = golden_config("segm_mask", width=width, num_heads=heads, depth=1)
    names = tuple(map(str, range(7)))
    colors = tuple((i, i, i) for i in range(7))
    text, _ = make_variant(ModelDescription(config, names, colors, (0.5,), (0.5,)))
    size = {192: "tiny", 384: "small", 768: "base", 1024: "large"}[width]
    assert f"backbone: vit_{size}_patch16_384" in text
