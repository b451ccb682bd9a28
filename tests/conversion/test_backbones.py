"""Modern pretrained encoders: tokens, every naming, and what is said of files that do not fit.

The goldens are of `transformers`, see tests/soak/make_backbone_goldens.py.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from segmenter_jax.conversion import convert as conversion
from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.opening import Hints
from segmenter_jax.conversion.sources import open_source
from segmenter_jax.models import Segmenter
from segmenter_jax.models.choices import NORMALIZATION

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden" / "backbones"
NETWORKS = ("dinov2", "dinov2_registers", "dinov3", "dinov3_gated", "siglip", "naflex", "vit")
CASES = ("native", "wide", "other")


def opened_model(source, **options):
    given = {"num_classes": 3, "decoder": "linear", "normalization": "imagenet"}
    return conversion.convert(source, conversion.ConvertOptions(**given | options))


def token_errors(source, name, cases=CASES, num_heads=None, **fields):
    """Largest difference of the tokens from the golden ones, by case."""
    description, params, _ = opened_model(source, num_heads=num_heads)
    model = Segmenter(dataclasses.replace(description.model, **fields))
    encode = jax.jit(lambda params, x: model.apply({"params": params}, x, method=model.encode))
    errors = {}
    with np.load(FOLDER / f"{name}.npz") as golden:
        for case in cases:
            tokens = encode(params, golden[f"{case}/image_nhwc"])
            errors[case] = float(np.abs(tokens - golden[f"{case}/tokens"]).max())
    return errors


@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_are_those_of_the_published_code(name):
    assert max(token_errors(FOLDER / name, name).values()) < 2e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_scanned_and_recomputed_layers_give_the_same_tokens(name):
    errors = token_errors(FOLDER / name, name, ("wide",), scan_layers=True, remat=True)
    assert errors["wide"] < 2e-5


def renamed(arrays, table):
    """Arrays under other names: (what a name begins with or holds, what stands there instead)."""
    result = {}
    for name, array in arrays.items():
        for old, new in table:
            name = name.replace(old, new)
        result[name] = array
    return result


def fused(arrays, query, block="blocks.{}.attn."):
    """Query, key and value as PyTorch fuses them; keys without a bias get one that is masked."""
    result = dict(arrays)
    names = [query.replace("query", n) for n in ("query", "key", "value")]
    if "q_proj" in query:
        names = [query.replace("q_proj", n) for n in ("q_proj", "k_proj", "v_proj")]
    for i in range(2):
        parts = [result.pop(f"{n.format(i)}.weight") for n in names]
        biases = [result.pop(f"{n.format(i)}.bias", None) for n in names]
        masked = biases[1] is None
        biases = [np.full(32, 7, np.float32) if bias is None else bias for bias in biases]
        result[f"{block.format(i)}qkv.weight"] = np.concatenate(parts)
        result[f"{block.format(i)}qkv.bias"] = np.concatenate(biases)
        if masked:
            mask = np.repeat(np.float32([1, 0, 1]), 32)
            result[f"{block.format(i)}qkv.bias_mask"] = mask
    return result


DINOV2_TABLE = (
    *(("encoder.layer.", "blocks."), ("attention.output.dense", "attn.proj")),
    *(("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma")),
    *(("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("layernorm", "norm")),
    *(("embeddings.cls_token", "cls_token"), ("embeddings.mask_token", "mask_token")),
    *(("embeddings.register_tokens", "register_tokens"),),
    *(("embeddings.position_embeddings", "pos_embed"),),
    *(("mlp.weights_in", "mlp.w12"), ("mlp.weights_out", "mlp.w3")),
)
DINOV3_TABLE = (
    *(("attention.o_proj", "attn.proj"), ("embeddings.patch_embeddings", "patch_embed.proj")),
    *(("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma")),
    *(("embeddings.cls_token", "cls_token"), ("embeddings.mask_token", "mask_token")),
    ("embeddings.register_tokens", "storage_tokens"),
)


def original(name, tmp_path, periods="float32"):
    """The golden network under the names of the original files; heads are not in them."""
    arrays = load_file(FOLDER / name / "model.safetensors")
    if name.startswith("dinov2"):
        arrays = fused(
            arrays, "encoder.layer.{}.attention.attention.query", "encoder.layer.{}.attn."
        )
        arrays = renamed(arrays, DINOV2_TABLE)
    else:
        arrays = fused(arrays, "layer.{}.attention.q_proj", "layer.{}.attn.")
        arrays = renamed(arrays, DINOV3_TABLE)
        gated = "layer.0.mlp.gate_proj.weight" in arrays
        names = ("w1", "w2", "w3") if gated else ("", "fc1", "fc2")
        old = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        arrays = renamed(arrays, [(o, f"mlp.{n}") for o, n in zip(old, names, strict=True)])
        arrays = {
            n.replace("layer.", "blocks.") if n[:6] == "layer." else n: a for n, a in arrays.items()
        }
        exact = np.float32(100) ** (np.arange(4, dtype=np.float32) / 4)
        arrays["rope_embed.periods"] = exact.astype(periods).astype(np.float32)
    path = tmp_path / f"{name}.safetensors"
    save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, path)
    return path


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers", "dinov3", "dinov3_gated"])
def test_original_names_hold_the_same_network(name, tmp_path):
    path = original(name, tmp_path)
    _, expected, _ = opened_model(FOLDER / name)
    description, params, _ = opened_model(path, num_heads=2)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], expected["encoder"])
    # The original code has a rule of its own where there are no registers.
    rules = {"dinov2": "bicubic_offset", "dinov2_registers": "bicubic_antialias"}
    if name in rules:
        assert description.model.position_resize == rules[name]
    else:
        assert description.model.rope_periods == "float32"


@pytest.mark.parametrize(("name", "prefix"), [("dinov2", "dinov2."), ("vit", "vit.")])
def test_an_encoder_inside_another_network_is_the_same(name, prefix, tmp_path):
    folder = shutil.copytree(FOLDER / name, tmp_path / name)
    arrays = load_file(folder / "model.safetensors")
    inside = {prefix + key: array for key, array in arrays.items()}
    save_file(inside | {"classifier.bias": np.zeros(3, np.float32)}, folder / "model.safetensors")
    found, expected = open_source(folder, Hints()), open_source(FOLDER / name, Hints())
    assert found.config == expected.config and found.entries.keys() == expected.entries.keys()
    for key, entry in found.entries.items():
        np.testing.assert_array_equal(entry.read(), expected.entries[key].read())


def test_originals_without_a_bias_of_queries_have_zeros_there(tmp_path):
    path = original("dinov3", tmp_path)
    arrays = {n: a for n, a in load_file(path).items() if "qkv.bias" not in n}
    save_file(arrays | {"local_cls_norm.weight": np.ones(32, np.float32)}, path)
    opened = open_source(path, Hints(num_heads=2))
    for part in ("query", "key", "value"):
        assert not opened.entries[f"encoder/encoderblock_1/attention/{part}/bias"].read().any()
    assert [name for name, _, _ in opened.dropped if "local_cls" in name]


MAE_TABLE = (
    *(("attention.output.dense", "attn.proj"), ("intermediate.dense", "mlp.fc1")),
    *(("output.dense", "mlp.fc2"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2")),
    *(("encoder.layer.", "blocks."), ("layernorm", "norm"), ("embeddings.cls_token", "cls_token")),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.position_embeddings", "pos_embed"),
)


def test_maes_own_files_hold_the_same_network_with_and_without_its_decoder(tmp_path):
    arrays = load_file(FOLDER / "vit" / "model.safetensors")
    arrays = fused(arrays, "encoder.layer.{}.attention.attention.query", "encoder.layer.{}.attn.")
    arrays = renamed(arrays, MAE_TABLE)
    names = ("mask_token", "decoder_pos_embed", "decoder_embed.bias", "decoder_blocks.0.norm1.bias")
    expected = open_source(FOLDER / "vit", Hints()).entries
    for beside in ((), names):
        whole = arrays | dict.fromkeys(beside, np.zeros(3, np.float32))
        save_file(whole, tmp_path / "mae.safetensors")
        opened = open_source(tmp_path / "mae.safetensors", Hints(num_heads=2))
        assert opened.entries.keys() == expected.keys()
        for name, entry in opened.entries.items():
            np.testing.assert_array_equal(entry.read(), expected[name].read())
        assert {name for name, _, _ in opened.dropped} == set(beside)
    del arrays["cls_token"]
    save_file(arrays, tmp_path / "siglip.safetensors")
    with pytest.raises(SourceError, match="array cls_token is missing"):
        open_source(tmp_path / "siglip.safetensors", Hints(num_heads=2))
    # Without its decoder it may be any ViT.
    assert opened.description["mean"] == NORMALIZATION["imagenet"][0]


def big_vision(arrays, heads=2):
    """SigLIP's arrays as NaFlex of big_vision has them."""
    kernel, position = "embeddings.patch_embedding", "embeddings.position_embedding.weight"
    width = arrays[position].shape[1]
    found = {"embedding/kernel": arrays[f"{kernel}.weight"].T, "pos_embedding": arrays[position]}
    found["pos_embedding"] = found["pos_embedding"].reshape(4, 4, width)
    found["embedding/bias"] = arrays[f"{kernel}.bias"]
    norms = {"Transformer/encoder_norm": "post_layernorm"}
    for i in range(2):
        block, theirs = f"Transformer/encoderblock_{i}/", f"encoder.layers.{i}."
        norms |= {f"{block}LayerNorm_{j}": f"{theirs}layer_norm{j + 1}" for j in (0, 1)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weight, bias = (
                arrays[f"{theirs}self_attn.{name}.{kind}"] for kind in ("weight", "bias")
            )
            last = name == "out_proj"
            shape = (heads, -1, width) if last else (width, heads, -1)
            ours = {"q": "query", "k": "key", "v": "value", "o": "out"}[name[0]]
            attention = f"{block}MultiHeadDotProductAttention_0/{ours}/"
            found[f"{attention}kernel"] = weight.T.reshape(shape)
            found[f"{attention}bias"] = bias if last else bias.reshape(heads, -1)
        for j in (0, 1):
            dense = f"{block}MlpBlock_0/Dense_{j}/"
            found[f"{dense}kernel"] = arrays[f"{theirs}mlp.fc{j + 1}.weight"].T
            found[f"{dense}bias"] = arrays[f"{theirs}mlp.fc{j + 1}.bias"]
    for ours, theirs in norms.items():
        found |= {
            f"{ours}/scale": arrays[f"{theirs}.weight"],
            f"{ours}/bias": arrays[f"{theirs}.bias"],
        }
    return {f"params/img/{name}": array for name, array in found.items()}


def test_naflex_of_big_vision_is_the_same_network(tmp_path):
    arrays = big_vision(load_file(FOLDER / "naflex" / "model.safetensors"))
    np.savez(tmp_path / "naflex.npz", **arrays)
    assert max(token_errors(tmp_path / "naflex.npz", "naflex").values()) < 2e-5
    arrays["params/img/embedding/kernel"] = arrays["params/img/embedding/kernel"][:-3]
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(SourceError, match=r"shape \(45, 32\); expected square patches of 3"):
        open_source(tmp_path / "odd.npz", Hints())


def test_rounded_periods_are_taken_from_the_file(tmp_path):
    description, _, _ = opened_model(original("dinov3", tmp_path, ml_dtypes.bfloat16), num_heads=2)
    assert description.model.rope_periods == "bfloat16"
    path = original("dinov3", tmp_path)
    arrays = load_file(path)
    arrays["rope_embed.periods"] *= 2
    save_file(arrays, path)
    with pytest.raises(SourceError, match=r"rope_embed.periods holds .* expected powers of 100"):
        opened_model(path, num_heads=2)


def test_a_bias_of_keys_counts_where_nothing_masks_it(tmp_path):
    path = original("dinov3", tmp_path)
    arrays = {n: a for n, a in load_file(path).items() if "bias_mask" not in n}
    save_file(arrays, path)
    entries = open_source(path, Hints(num_heads=2)).entries
    assert (entries["encoder/encoderblock_1/attention/key/bias"].read() == 7).all()


def test_the_network_is_said_by_the_folder():
    found = open_source(FOLDER / "dinov2_registers", Hints())
    config = found.config
    assert (config.num_heads, config.num_registers, config.mlp) == (2, 4, "swiglu")
    assert (config.position_size, config.layer_norm_eps) == ((16, 16), 1e-6)
    assert found.description["mean"] == NORMALIZATION["imagenet"][0]
    siglip = open_source(FOLDER / "siglip", Hints())
    assert not siglip.config.class_token and siglip.config.gelu == "tanh"
    assert siglip.description["mean"] == (0.5, 0.5, 0.5)
    vit = open_source(FOLDER / "vit", Hints())
    # A classifier of any kind may have these names.
    assert "mean" not in vit.description


def test_normalisation_beside_the_weights_counts(tmp_path):
    folder = shutil.copytree(FOLDER / "dinov3", tmp_path / "sat")
    said = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    found = open_source(folder, Hints()).description
    assert (found["mean"], found["std"]) == NORMALIZATION["sat493m"]


def test_several_files_of_weights_are_one_source(tmp_path):
    folder = shutil.copytree(FOLDER / "siglip", tmp_path / "split")
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # The text tower beside it has blocks of the same names.
    whole = {f"vision_model.{name}": a for name, a in arrays.items()}
    whole |= {f"text_model.{n}": a for n, a in arrays.items() if n.startswith("encoder.layers")}
    whole["logit_scale"] = np.zeros((), np.float32)
    index = {}
    for number in range(2):
        part = dict(sorted(whole.items())[number::2])
        save_file(part, folder / f"model-{number}.safetensors")
        index |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert token_errors(folder, "siglip", ("native",))["native"] < 2e-5
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(SourceError, match=r"names model-1.safetensors, which is not beside it"):
        open_source(folder, Hints())


@pytest.mark.parametrize(
    ("name", "removed", "message"),
    [
        ("dinov2", "encoder.layer.1.mlp.fc2.weight", "encoder.layer.1.mlp.fc2.weight is missing"),
        ("dinov3", "norm.weight", "norm.weight is missing"),
        ("siglip", "embeddings.position_embedding.weight", "position_embedding.weight is missing"),
        (
            "dinov2_registers",
            "embeddings.register_tokens",
            "num_register_tokens=4, the arrays have 0",
        ),
    ],
)
def test_damaged_folders_are_told_in_one_line(tmp_path, name, removed, message):
    folder = shutil.copytree(FOLDER / name, tmp_path / "damaged")
    arrays = load_file(folder / "model.safetensors")
    del arrays[removed]
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(SourceError, match=message) as error:
        open_source(folder, Hints())
    assert "\n" not in str(error.value)


def test_the_references_layout_has_no_such_networks(tmp_path):
    from segmenter_jax.conversion import reference

    description, params, _ = opened_model(FOLDER / "dinov2")
    with pytest.raises(ValueError, match=r"the reference has no position_size=\(16, 16\)"):
        reference.save(tmp_path / "out", description, params, "safetensors")


def test_a_saved_model_is_the_same_network(tmp_path):
    from segmenter_jax.checkpoints.model_dir import load_model, save_model

    description, params, _ = opened_model(FOLDER / "dinov2_registers")
    save_model(tmp_path / "model", description, params)
    again, loaded = load_model(tmp_path / "model")
    assert again == description
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_configuration_of_another_network_is_refused(tmp_path):
    folder = shutil.copytree(FOLDER / "vit", tmp_path / "other")
    said = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"hidden_size": 64}, "another network: hidden_size=64, the arrays have 32"),
        ({"hidden_act": "relu"}, "hidden_act='relu'; known are"),
        ({"layer_norm_eps": "a"}, "layer_norm_eps='a' is no positive number"),
    ):
        (folder / "config.json").write_text(json.dumps(said | change))
        with pytest.raises(SourceError, match=message):
            open_source(folder, Hints())
    gated = shutil.copytree(FOLDER / "dinov3_gated", tmp_path / "gated")
    said = json.loads((gated / "config.json").read_text())
    (gated / "config.json").write_text(json.dumps(said | {"hidden_act": "gelu"}))
    with pytest.raises(SourceError, match=r"hidden_act='gelu'; known are \('silu'"):
        open_source(gated, Hints())
    # Beside files with the original names it is somebody else's.
    path = original("dinov2", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    assert open_source(path, Hints(num_heads=2)).config.num_heads == 2


def test_dinov3_says_what_its_files_do_not(tmp_path):
    folder = shutil.copytree(FOLDER / "dinov3", tmp_path / "any")
    _, _, report = opened_model(folder)
    (note,) = report.warnings
    assert "how images were normalised: taken for ImageNet's" in note
    assert "LayerNorm_0/bias <- layer.*.norm1.bias (32,), blocks 0 to 1" in str(report)
    named = shutil.copytree(FOLDER / "dinov3", tmp_path / "dinov3-vitl16-pretrain-sat493m")
    found = open_source(named, Hints())
    assert found.description["mean"] == NORMALIZATION["sat493m"][0] and not found.notes
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"rope_theta": "many"}))
    with pytest.raises(SourceError, match="rope_theta='many' is no positive number"):
        open_source(folder, Hints())


def test_a_clip_tower_is_no_siglip(tmp_path):
    arrays = load_file(FOLDER / "siglip" / "model.safetensors")
    arrays["embeddings.class_embedding"] = np.zeros(32, np.float32)
    save_file(arrays, tmp_path / "clip.safetensors")
    with pytest.raises(SourceError, match="none of the known naming schemes"):
        open_source(tmp_path / "clip.safetensors", Hints())
