"""timm's own names of DINOv2, DINOv3 and DeiT-III: the same networks, and what timm leaves out."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.opening import Hints
from segmenter_jax.conversion.sources import open_source
from segmenter_jax.models.choices import NORMALIZATION
from tests.conversion.test_backbones import original, renamed, token_errors

DINOV2 = (("register_tokens", "reg_token"), ("mlp.w12", "mlp.fc1"), ("mlp.w3", "mlp.fc2"))
DINOV3 = (
    *(("storage_tokens", "reg_token"), ("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")),
    *(("mlp.w1", "mlp.fc1_g"), ("mlp.w2", "mlp.fc1_x"), ("mlp.w3", "mlp.fc2")),
)


def timm_file(name, tmp_path, table, bare_class_token=False, separate_biases=False):
    """The golden network under timm's names."""
    arrays = renamed(load_file(original(name, tmp_path)), table)
    arrays.pop("mask_token")
    arrays.pop("rope_embed.periods", None)
    if bare_class_token:
        arrays["cls_token"] = arrays["cls_token"] + arrays["pos_embed"][:, :1]
        arrays["pos_embed"] = arrays["pos_embed"][:, 1:].copy()
    if separate_biases:
        for i in range(2):
            q, _, v = np.split(arrays.pop(f"blocks.{i}.attn.qkv.bias"), 3)
            arrays |= {f"blocks.{i}.attn.q_bias": q, f"blocks.{i}.attn.v_bias": v}
            del arrays[f"blocks.{i}.attn.qkv.bias_mask"]
    (tmp_path / "timm").mkdir()
    path = tmp_path / "timm" / "model.safetensors"
    save_file(arrays, path)
    return path


@pytest.mark.parametrize(
    ("name", "table", "options"),
    [
        ("dinov2_registers", DINOV2, {"bare_class_token": True}),
        ("dinov3_gated", DINOV3, {"separate_biases": True}),
        ("dinov3", DINOV3, {"separate_biases": True}),
    ],
)
def test_timms_names_hold_the_same_network(name, table, options, tmp_path):
    path = timm_file(name, tmp_path, table, **options)
    opened = open_source(path, Hints(num_heads=2))
    assert opened.format == "timm_scaled"
    rotated = name != "dinov2_registers"
    assert any("float32, as timm computes them" in note for note in opened.notes) == rotated
    assert max(token_errors(path, name, num_heads=2).values()) < 2e-5


def test_networks_of_timm_without_biases_have_zeros(tmp_path):
    path = timm_file("dinov3", tmp_path, DINOV3, separate_biases=True)
    arrays = {n: a for n, a in load_file(path).items() if "q_bias" not in n and "v_bias" not in n}
    save_file(arrays, path)
    entries = open_source(path, Hints(num_heads=2)).entries
    for name in ("query", "key", "value"):
        assert not entries[f"encoder/encoderblock_1/attention/{name}/bias"].read().any()


def test_deit_iii_has_layer_scale_and_no_position_of_its_class_token(tmp_path):
    scales = (("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"))
    path = timm_file("dinov2", tmp_path, scales, bare_class_token=True)
    opened = open_source(path, Hints(num_heads=2))
    config = opened.config
    assert (config.layer_scale, config.num_registers, config.grid) == (True, 0, (4, 4))
    assert not opened.entries["encoder/pos_embedding"].read()[:, 0].any()


def test_timms_configuration_says_how_images_are_normalised(tmp_path):
    path = timm_file("dinov3", tmp_path, DINOV3, separate_biases=True)
    assert any("images were normalised" in n for n in open_source(path, Hints(2)).notes)
    mean, std = NORMALIZATION["sat493m"]
    said = {"architecture": "any", "pretrained_cfg": {"mean": mean, "std": std}}
    (path.parent / "config.json").write_text(json.dumps(said))
    opened = open_source(path, Hints(2))
    assert opened.description == {"mean": mean, "std": std}
    assert not any("images were normalised" in note for note in opened.notes)
    said["pretrained_cfg"]["mean"] = "?"
    (path.parent / "config.json").write_text(json.dumps(said))
    with pytest.raises(SourceError, match=r"config.json: pretrained_cfg.mean='\?'"):
        open_source(path, Hints(2))
