"""Model directories: what they say, and that they are whole or absent."""

import dataclasses
import json
import stat

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from segmenter_jax.checkpoints import atomic
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import (
    load_model,
    resolve_model_dir,
    save_model,
    save_portable,
)
from tests.golden_params import golden_config, golden_params


def description(**overrides):
    fields = {
        "model": golden_config("segm_linear_distilled"),
        "classes": tuple("abcdefg"),
        "colors": tuple((i, 2 * i, 3 * i) for i in range(7)),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.6, 0.7),
        "window": 64,
        "stride": 48,
        "provenance": {"step": 3, "metrics": {"mean_iou": 0.25}},
    }
    return ModelDescription(**(fields | overrides))


@pytest.fixture
def params():
    return golden_params("segm_linear_distilled")


def assert_same(params, other):
    jax.tree.map(np.testing.assert_array_equal, params, other)


def test_round_trip_is_exact(tmp_path, params):
    save_model(tmp_path / "m", description(), params)
    found, loaded = load_model(tmp_path / "m")
    assert found == description()
    assert_same(params, loaded)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_sharded_parameters_are_written_whole(tmp_path, params):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(leaf):
        spec = jax.P("fsdp") if leaf.shape[0] % 8 == 0 else jax.P()
        return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

    save_model(tmp_path / "m", description(), jax.tree.map(place, params))
    assert_same(params, load_model(tmp_path / "m")[1])


def test_replacing_a_model(tmp_path, params):
    save_model(tmp_path / "m", description(), params)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    save_model(tmp_path / "m", description(stride=32), doubled)
    found, loaded = load_model(tmp_path / "m")
    assert found.stride == 32
    assert_same(doubled, loaded)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_model_replaced_while_it_is_read_is_read_again(tmp_path, params, monkeypatch):
    save_model(tmp_path / "m", description(), params)
    read = ocp.PyTreeCheckpointHandler.restore

    def replaced_before(self, *args, **kwargs):
        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", read)
        doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
        save_model(tmp_path / "m", description(stride=32), doubled)
        raise FileNotFoundError("a file of the old model")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", replaced_before)
    found, loaded = load_model(tmp_path / "m")
    assert found.stride == 32
    assert_same(jax.tree.map(lambda leaf: 2 * leaf, params), loaded)


def test_a_failed_write_leaves_the_old_model(tmp_path, params, monkeypatch):
    save_model(tmp_path / "m", description(), params)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path / "m", description(stride=32), params)
    monkeypatch.undo()
    assert load_model(tmp_path / "m")[0].stride == 48
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_cannot_be_read_back_does_not_replace_a_model(tmp_path, params, monkeypatch):
    save_model(tmp_path / "m", description(), params)
    write = ocp.Checkpointer.save

    def write_a_part(self, folder, *args, **options):
        write(self, folder, *args, **options)
        # As where its parts are never merged.
        (folder / "manifest.ocdbt").unlink()

    monkeypatch.setattr(ocp.Checkpointer, "save", write_a_part)
    with pytest.raises(ValueError, match=r"params: (no readable|damaged) parameters"):
        save_model(tmp_path / "m", description(window=32, stride=32), params)
    assert load_model(tmp_path / "m")[0] == description()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_models_are_not_written_where_they_could_not_be_read(tmp_path, params):
    with pytest.raises(ValueError, match=r"a path with \[, which Orbax takes for a pattern"):
        save_model(tmp_path / "x[1]" / "m", description(), params)
    assert list(tmp_path.iterdir()) == []
    save_model(tmp_path / "m", description(), params)
    moved = (tmp_path / "m").rename(tmp_path / "m[1]")
    assert_same(params, load_model(moved)[1])


def test_a_replacement_that_fails_on_an_object_store_loses_nothing(tmp_path, params, monkeypatch):
    monkeypatch.setattr(atomic, "is_local", lambda path: False)
    best = tmp_path / "model" / "best"
    save_model(best, description(), params)
    assert load_model(tmp_path)[0] == description()
    copies = 0

    def fail(*arguments, **options):
        nonlocal copies
        copies += 1
        raise OSError("the connection is gone")

    with monkeypatch.context() as patched:
        patched.setattr(type(epath.Path("/")), "copy", fail)
        with pytest.raises(OSError, match="the connection is gone"):
            save_model(best, description(stride=32), jax.tree.map(lambda leaf: 2 * leaf, params))
    assert copies == 1
    found, loaded = load_model(tmp_path)
    assert found.stride == 32
    assert_same(jax.tree.map(lambda leaf: 2 * leaf, params), loaded)
    save_model(best, description(stride=16), params)
    assert load_model(best)[0].stride == 16
    assert [p.name for p in best.parent.iterdir()] == ["best"]


def test_one_file_of_parameters_is_exact_and_notices_damage(tmp_path, params):
    save_portable(tmp_path / "m", description(), params, {"README.md": b"read me"})
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "README.md",
        "model.json",
        "model.safetensors",
    ]
    file = tmp_path / "m" / "model.safetensors"
    assert file.stat().st_mode & stat.S_IROTH
    found, loaded = load_model(tmp_path / "m")
    assert found == description()
    assert_same(params, loaded)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model.safetensors: damaged parameters: their SHA-256"):
        load_model(tmp_path / "m")
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors: damaged parameters: "):
        load_model(tmp_path / "m")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ValueError, match="exists and is not a model directory; it is left"):
        save_portable(tmp_path / "thesis", description(), params, {})


def test_other_directories_are_not_touched(tmp_path, params):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ValueError, match="exists and is not a model directory; it is left"):
        save_model(tmp_path / "thesis", description(), params)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"


def test_parameters_must_be_those_of_the_network(tmp_path, params):
    wrong = params | {"decoder": {}}
    with pytest.raises(ValueError, match="2 parameters are missing: decoder/head/bias"):
        save_model(tmp_path / "m", description(), wrong)
    wrong = params | {"decoder": {"head": {"kernel": np.ones((64, 8)), "bias": np.ones(7)}}}
    with pytest.raises(ValueError, match=r"decoder/head/kernel has shape \(64, 8\), the model"):
        save_model(tmp_path / "m", description(), wrong)
    assert list(tmp_path.iterdir()) == []


def test_json_that_describes_other_parameters(tmp_path, params):
    save_model(tmp_path / "m", description(), params)
    file = tmp_path / "m" / "model.json"
    fields = json.loads(file.read_text())
    fields["model"]["depth"] = 3
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="16 parameters are missing: encoder/encoderblock_2"):
        load_model(tmp_path / "m")


def test_damaged_parameters(tmp_path, params):
    save_model(tmp_path / "m", description(), params)
    for file in (tmp_path / "m" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"params: (damaged|no readable) parameters"):
        load_model(tmp_path / "m")


def test_workdirs_resolve_to_the_best_model_then_the_latest(tmp_path, params):
    save_model(tmp_path / "model" / "latest", description(), params)
    assert resolve_model_dir(tmp_path).name == "latest"
    save_model(tmp_path / "model" / "best", description(), params)
    assert resolve_model_dir(tmp_path).name == "best"
    assert resolve_model_dir(tmp_path / "model" / "latest").name == "latest"


def test_a_place_without_a_model_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"is no model directory or workdir; looked for .*best"):
        resolve_model_dir(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        resolve_model_dir(tmp_path / "none")


BAD_JSON = {
    "not JSON": (lambda f: "{", "not valid JSON"),
    "no object": (lambda f: [], "found list, expected a JSON object"),
    "version": (lambda f: f | {"format_version": 9}, "'format_version': found 9, expected 1"),
    "unknown": (lambda f: f | {"windoww": 1}, r"unknown fields \['windoww'\]"),
    "missing": (lambda f: {k: v for k, v in f.items() if k != "std"}, r"missing fields \['std'\]"),
    "type": (lambda f: f | {"window": "64"}, r"'window': found '64', expected int | None"),
    "true is no number": (lambda f: f | {"stride": True}, "'stride': found True"),
    "color": (lambda f: f | {"colors": [[1, 2]] * 7}, r"'colors': found .* expected tuple"),
    "model type": (
        lambda f: f | {"model": f["model"] | {"decoder": "unet"}},
        "model: field 'decoder': found 'unet'",
    ),
    "model unknown": (lambda f: f | {"model": f["model"] | {"x": 1}}, "model: unknown fields"),
    "model value": (
        lambda f: f | {"model": f["model"] | {"num_heads": 3}},
        "self.width=64 must be divisible by self.num_heads=3",
    ),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_wrong_model_json_names_file_and_field(case):
    change, message = BAD_JSON[case]
    content = change(json.loads(description().to_json()))
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(ValueError, match=message) as caught:
        ModelDescription.from_json(text, source="x/model.json")
    assert str(caught.value).startswith("x/model.json")


BAD_VALUES = [
    ({"classes": ("a",)}, "classes must have num_classes=7 entries, got 1"),
    ({"colors": ((0, 0, 300),) * 7}, "in 0..255"),
    ({"ignore_label": 3}, "ignore_label=3 must not be one of the classes"),
    ({"std": (0.0, 1.0, 1.0)}, "must be positive"),
    ({"mean": (float("nan"),)}, "must be finite"),
    ({"mean": (0.1, 0.2)}, "mean must have 1, 3 or in_channels=3 values, got 2"),
    ({"window": 0}, "window=0 must be at least 1 pixel"),
    ({"stride": 65}, r"stride=65 must be in 1..window=64"),
    ({"base_size": 0}, "base_size=0 must be None or at least 1"),
    ({"aspect_bound": 0.5}, "aspect_bound=0.5 must be at least 1"),
    ({"provenance": {"x": np.ones(2)}}, "provenance must hold JSON values only"),
]


@pytest.mark.parametrize("overrides, message", BAD_VALUES)
def test_wrong_values(overrides, message):
    with pytest.raises(ValueError, match=message):
        description(**overrides)


def test_normalisation_of_other_channels():
    model = golden_config("segm_linear_distilled")
    for channels, mean in (
        (1, (0.2,)),
        (3, (0.1, 0.2, 0.3)),
        (5, (0.1, 0.2, 0.3, 0.2, 0.2)),
    ):
        found = description(model=dataclasses.replace(model, in_channels=channels))
        np.testing.assert_allclose(found.mean, mean)
    assert description(mean=(0.5,)).mean == (0.5, 0.5, 0.5)


def test_window_defaults_to_the_training_size():
    found = description(window=None, stride=None)
    assert (found.window, found.stride) == (64, 64)
