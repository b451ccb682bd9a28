"""What a source is taken for, and how a format joins those that are known."""

import types

import numpy as np
import pytest

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import save_model
from segmenter_jax.conversion import sources
from segmenter_jax.conversion.locate import locate
from segmenter_jax.conversion.mapping import SAME, Row
from segmenter_jax.conversion.opening import Hints, bind, network
from segmenter_jax.conversion.sources import open_source
from tests.golden_params import golden_config, golden_params


def test_a_model_directory_and_its_workdir_are_models(tmp_path):
    config = golden_config("segm_mask")
    description = ModelDescription(config, tuple("abcdefg"), ((1, 2, 3),) * 7, (0.5,), (0.5,))
    save_model(tmp_path / "model" / "best", description, golden_params("segm_mask"))
    assert locate(tmp_path) == locate(tmp_path / "model" / "best")
    assert locate(tmp_path)[:2] == (tmp_path / "model" / "best", True)


def test_a_folder_of_weights_stands_for_its_only_file(tmp_path):
    with pytest.raises(ValueError, match="is no model directory or workdir; looked for"):
        locate(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    assert locate(tmp_path)[:2] == (tmp_path / "model.safetensors", False)
    # Left of a download of everything.
    (tmp_path / "pytorch_model.bin").write_text("")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    assert locate(tmp_path).path == tmp_path / "model.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert locate(tmp_path).path == tmp_path / "model.safetensors.index.json"
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "w.npz").write_text("")
    with pytest.raises(ValueError, match=r"one file of weights, found \['model.safe.*', 'w.npz'\]"):
        locate(tmp_path)


def test_names_of_a_model_trained_on_several_devices_are_understood(golden_dir, tmp_path):
    torch = pytest.importorskip("torch")
    state = torch.load(golden_dir / "segm_mask.pth", weights_only=True)["model"]
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "w.pth")
    opened = open_source(tmp_path / "w.pth", Hints(num_heads=2))
    assert opened.format == "reference"
    assert opened.entries["decoder/class_embedding"].theirs == "decoder.cls_emb"


def test_another_format_is_one_module_in_the_list(tmp_path, monkeypatch):
    """Of an encoder's parameters it has the class token; its width stands in a file beside it."""
    np.savez(tmp_path / "w.npz", token=np.ones((1, 1, 64), np.float32), step=np.zeros(()))
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "link.npz").symlink_to(tmp_path / "w.npz")
    (tmp_path / "named" / "width.txt").write_text("64")

    def open_file(file, hints):
        fields = {"width": int(file.sidecar("width.txt").read_text()), "depth": 1}
        config = network(file.path, fields | {"patch_size": 16}, patches=4, hints=hints)
        table = [Row("encoder/cls", "token", SAME)]
        return bind(file, "tokens", config, table, dropped=[("step", "no parameter")])

    tokens = types.SimpleNamespace(
        NAME="tokens", detect=lambda names: "token" in names, open=open_file
    )
    monkeypatch.setattr(sources, "FORMATS", (*sources.FORMATS, tokens))
    opened = open_source(tmp_path / "named", Hints(num_heads=2))
    assert (opened.format, opened.config.image_size) == ("tokens", (32, 32))
    assert opened.dropped == [("step", (), "no parameter")] and not opened.has_decoder
    np.testing.assert_array_equal(opened.entries["encoder/cls"].read(), np.ones((1, 1, 64)))
