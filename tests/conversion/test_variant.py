"""What a `variant.yml` of the reference may say, and what wrong ones get."""

import pytest
import yaml

from segmenter_jax import convert
from segmenter_jax.inference.predictor import read_model
from segmenter_jax.models.choices import NORMALIZATION

HOSTILE = [
    ([], None),
    (["net_kwargs"], [1]),
    (["net_kwargs", "decoder"], "mask_transformer"),
    (["net_kwargs", "decoder", "name"], ["mask_transformer"]),
    (["net_kwargs", "decoder", "name"], "unet"),
    (["net_kwargs", "decoder", "n_layers"], "2"),
    (["net_kwargs", "d_model"], [64]),
    (["net_kwargs", "n_heads"], 0),
    (["net_kwargs", "n_heads"], -2),
    (["net_kwargs", "n_heads"], 2.5),
    (["net_kwargs", "n_layers"], 10**12),
    (["net_kwargs", "patch_size"], 0),
    (["net_kwargs", "image_size"], "64"),
    (["net_kwargs", "image_size"], [0, 0]),
    (["net_kwargs", "image_size"], [-64, -64]),
    (["net_kwargs", "image_size"], [64, {}]),
    (["net_kwargs", "dropout"], float("nan")),
    (["net_kwargs", "drop_path_rate"], 7),
    (["net_kwargs", "normalization"], ["vit"]),
    (["net_kwargs", "normalization"], "imagenet"),
    (["dataset_kwargs"], "ade20k"),
    (["dataset_kwargs", "normalization"], {}),
    (["inference_kwargs"], [1, 2]),
    (["inference_kwargs", "window_size"], -64),
    (["inference_kwargs", "window_stride"], 10**9),
    (["segmenter_jax"], 5),
    (["segmenter_jax", "classes"], 5),
    (["segmenter_jax", "classes"], ["a"]),
    (["segmenter_jax", "colors"], [1, 2, 3, 4, 5, 6, 7]),
    (["segmenter_jax", "colors"], "red"),
    (["segmenter_jax", "mean"], "grey"),
    (["segmenter_jax", "mean"], 0.5),
    (["segmenter_jax", "std"], [0, 0, 0]),
    (["segmenter_jax", "ignore_label"], "none"),
    (["segmenter_jax", "aspect_bound"], []),
    (["segmenter_jax", "layer_norm_eps"], "small"),
    (["segmenter_jax", "gelu"], {}),
]


@pytest.fixture
def written(golden_dir, tmp_path):
    """Writes a variant beside golden weights, and returns the weights' path."""
    pytest.importorskip("torch")
    original = yaml.safe_load((golden_dir / "segm_mask.variant.yml").read_text())
    (tmp_path / "w.pth").write_bytes((golden_dir / "segm_mask.pth").read_bytes())

    def write(keys, value):
        tree = group = {"variant": original}
        for key, following in zip(["variant", *keys], keys, strict=False):
            group = group[key]
            group.setdefault(following, {})
        group[keys[-1] if keys else "variant"] = value
        (tmp_path / "variant.yml").write_text(yaml.safe_dump(tree["variant"]))
        return tmp_path / "w.pth"

    return write


@pytest.mark.parametrize("keys, value", HOSTILE, ids=lambda v: str(v)[:40])
def test_wrong_values_take_one_clear_line(written, keys, value, tmp_path, capsys):
    weights = written(keys, value)
    assert convert.main([str(weights), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and str(tmp_path) in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "keys, value",
    [(["dataset_kwargs", "dataset"], "my_streets"), (["dataset_kwargs"], None)],
)
def test_what_the_reference_leaves_open_is_accepted(written, keys, value):
    description, _ = read_model(written(keys, value))
    assert description.model.num_classes == 7


def test_variant_yml_describes_the_model(golden_dir):
    pytest.importorskip("torch")
    description, _ = read_model(golden_dir / "segm_linear_distilled.pth")
    assert (description.window, description.stride, description.base_size) == (64, 48, 64)
    assert description.mean == NORMALIZATION["deit"][0] and description.aspect_bound == 4
    assert description.provenance["format"] == "reference"
    assert len(description.provenance["sha256"]) == 64


def test_variant_yml_that_contradicts_the_weights(golden_dir, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "c.pth").write_bytes((golden_dir / "segm_mask.pth").read_bytes())
    text = (golden_dir / "segm_mask.variant.yml").read_text().replace("n_cls: 7", "n_cls: 8")
    (tmp_path / "variant.yml").write_text(text)
    with pytest.raises(ValueError, match=r"num_classes is 8, but the weights beside it have 7"):
        read_model(tmp_path / "c.pth")
