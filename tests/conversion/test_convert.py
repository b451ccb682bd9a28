"""Conversion of every format, against outputs of the original implementations."""

import os

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import segmenter_jax
from segmenter_jax import convert
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import load_model, save_model
from segmenter_jax.conversion import convert as conversion
from segmenter_jax.conversion.adapt import inflate_patch_kernel
from segmenter_jax.conversion.opening import Hints
from segmenter_jax.conversion.sources import open_source
from segmenter_jax.inference.predictor import read_model
from segmenter_jax.models import Segmenter, upsample
from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.models.params import init_params, init_some_params
from segmenter_jax.models.resampling import resize_matrix
from segmenter_jax.models.vit import resize_position_embedding
from segmenter_jax.runtime.ownership import sole_owner
from tests.golden_params import golden_config, golden_params

GOOGLE = "google_vit_augreg.npz"


@pytest.fixture(scope="module")
def google(golden_dir):
    with np.load(golden_dir / GOOGLE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def deit(golden_dir):
    torch = pytest.importorskip("torch")
    state = torch.load(golden_dir / "deit_distilled.pth", weights_only=True)["model"]
    return {name: tensor.numpy() for name, tensor in state.items()}


def token_error(description, params, expected_file):
    with np.load(expected_file) as expected:
        tokens = Segmenter(description.model).apply(
            {"params": params}, expected["image_nhwc"], method=Segmenter.encode
        )
        return np.abs(tokens - expected["encoder_tokens"]).max()


def assert_same(params, other):
    jax.tree.map(np.testing.assert_array_equal, params, other)


def test_a_wanted_size_with_as_many_patches_is_not_taken_for_that_of_the_source(golden_dir):
    # 2 x 8 patches are wanted, the source has 4 x 4.
    _, params, report = conversion.convert(
        golden_dir / GOOGLE, conversion.ConvertOptions(num_classes=5, image_size=(32, 128))
    )
    with np.load(golden_dir / GOOGLE) as data:
        source = data["Transformer/posembed_input/pos_embedding"]
    expected = resize_position_embedding(source, 1, (4, 4), (2, 8), "bilinear")
    np.testing.assert_allclose(params["encoder"]["pos_embedding"], expected, atol=1e-6)
    assert len(report.resized) == 1


def test_load_takes_options_for_what_the_source_does_not_say(golden_dir):
    segmenter = segmenter_jax.load(golden_dir / GOOGLE, num_classes=3)
    assert segmenter.predict(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30)
    assert len(segmenter.classes) == 3


@pytest.mark.parametrize("name", [GOOGLE, "google_vit_i21k_prelogits.npz"])
def test_google_tokens_match(golden_dir, name):
    description, params, report = conversion.convert(
        golden_dir / name, conversion.ConvertOptions(num_classes=5, decoder="linear")
    )
    assert (description.model.layer_norm_eps, description.model.gelu) == (1e-6, "tanh")
    assert description.mean == (0.5, 0.5, 0.5)
    assert token_error(description, params, golden_dir / "google_vit_expected.npz") < 5e-6
    dropped = {entry[0].split("/")[0] for entry in report.dropped}
    assert dropped == ({"head"} if name == GOOGLE else {"head", "pre_logits"})


def test_newer_numbering_and_missing_head_give_the_same(golden_dir, google, tmp_path):
    renamed = {
        name.replace("LayerNorm_2", "LayerNorm_1")
        .replace("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0")
        .replace("MlpBlock_3", "MlpBlock_0"): array
        for name, array in google.items()
        if not name.startswith("head/")
    }
    np.savez(tmp_path / "newer.npz", **renamed)
    first = read_model(golden_dir / GOOGLE, num_classes=5, decoder="linear")
    assert_same(read_model(tmp_path / "newer.npz", num_classes=5, decoder="linear")[1], first[1])


@pytest.mark.parametrize("with_class_token", [True, False])
def test_big_vision_separate_position_embedding(google, tmp_path, with_class_token):
    position = google["Transformer/posembed_input/pos_embedding"]
    arrays = {f"params/{k}": v for k, v in google.items() if "posembed" not in k}
    arrays["params/pos_embedding"] = position if with_class_token else position[:, 1:]
    arrays["opt/count"] = np.zeros((), np.int32)
    np.savez(tmp_path / "big_vision.npz", **arrays)
    _, params, report = conversion.convert(
        tmp_path / "big_vision.npz", conversion.ConvertOptions(num_classes=5, decoder="linear")
    )
    expected = position.copy()
    if not with_class_token:
        expected[:, 0] = 0
    np.testing.assert_array_equal(params["encoder"]["pos_embedding"], expected)
    assert ("opt/count", (), "outside of 'params/': no parameter of the encoder") in report.dropped


def test_a_lost_class_token_is_an_error(google, tmp_path):
    np.savez(tmp_path / "gap.npz", **{k: v for k, v in google.items() if k != "cls"})
    with pytest.raises(ValueError, match="17 position embeddings make no square grid"):
        read_model(tmp_path / "gap.npz", num_classes=5, decoder="linear")


@pytest.mark.parametrize("prefix", ["params/img/", "img/", ""])
def test_image_towers_of_big_vision_have_no_class_token(google, tmp_path, prefix):
    numbers = {
        "LayerNorm_2": "LayerNorm_1",
        "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
        "MlpBlock_3": "MlpBlock_0",
    }
    plain, stacked = {}, {}
    for name, array in google.items():
        for old, new in numbers.items():
            name = name.replace(old, new)
        if name == "Transformer/posembed_input/pos_embedding":
            plain["pos_embedding"] = array[:, 1:]
        elif name != "cls" and not name.startswith("head/"):
            plain[name] = array
    for name in [n for n in plain if "encoderblock_0" in n]:
        parts = [plain[name.replace("block_0", f"block_{i}")] for i in range(2)]
        stacked[name.replace("block_0", "block")] = np.stack(parts)
    stacked |= {n: a for n, a in plain.items() if "encoderblock" not in n}
    beside = (
        {"params/txt/embedding": np.zeros(2), "params/t": np.zeros(1)} if "params" in prefix else {}
    )
    models = []
    for kind, arrays in (("plain", plain), ("stacked", stacked)):
        path = tmp_path / f"{kind}.npz"
        np.savez(path, **{f"{prefix}{n}": a for n, a in arrays.items()}, **beside)
        description, params = read_model(path, num_classes=5, decoder="linear")
        assert not description.model.class_token
        models.append(params)
    assert_same(*models)
    np.testing.assert_array_equal(models[0]["encoder"]["pos_embedding"], plain["pos_embedding"])


def test_deit_tokens_match(golden_dir):
    pytest.importorskip("torch")
    options = conversion.ConvertOptions(
        num_classes=5, decoder="linear", num_heads=2, layer_norm_eps=1e-5
    )
    description, params, report = conversion.convert(golden_dir / "deit_distilled.pth", options)
    assert description.model.distilled and description.mean == NORMALIZATION["deit"][0]
    assert token_error(description, params, golden_dir / "deit_distilled_expected.npz") < 2e-5
    assert "the source was trained with layer_norm_eps=1e-06" in str(report)


def test_timm_from_safetensors_needs_no_torch(golden_dir, deit, tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    expected = read_model(
        golden_dir / "deit_distilled.pth", num_classes=5, decoder="linear", num_heads=2
    )
    # The name says otherwise on purpose: content decides.
    save_file(deit, tmp_path / "weights.npz")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    found = read_model(tmp_path / "weights.npz", num_classes=5, decoder="linear", num_heads=2)
    assert_same(found[1], expected[1])


def test_timm_without_distillation_asks_for_normalisation(deit, tmp_path):
    from safetensors.numpy import save_file

    plain = {name: array for name, array in deit.items() if "dist" not in name}
    plain["pos_embed"] = plain["pos_embed"][:, 1:].copy()
    save_file(plain, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"does not say how images are normalised.*vit, deit"):
        read_model(tmp_path / "vit.safetensors", num_classes=5, decoder="linear", num_heads=2)
    description, _ = read_model(
        tmp_path / "vit.safetensors",
        num_classes=5,
        decoder="linear",
        num_heads=2,
        normalization="vit",
    )
    assert not description.model.distilled and description.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["segm_mask", "segm_linear_distilled", "mmseg_mask"])
def test_segmenter_checkpoints_match(golden_dir, name):
    pytest.importorskip("torch")
    description, params = read_model(golden_dir / f"{name}.pth", num_heads=2)
    golden = name.replace("mmseg", "segm")
    assert_same(params, golden_params(golden))
    config = golden_config(golden)
    for field in ("width", "depth", "num_heads", "distilled", "decoder", "num_classes", "grid"):
        assert getattr(description.model, field) == getattr(config, field)
    with np.load(golden_dir / f"{golden}.npz") as data:
        image = data["padded/image_nhwc"]
        logits = Segmenter(description.model).apply({"params": params}, image)
        logits = upsample(logits, image.shape[1:3], 16)
        np.testing.assert_allclose(logits, data["padded/logits_nhwc"], atol=1e-5)


def test_reference_alone_asks_for_what_it_cannot_tell(golden_dir, tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "checkpoint.pth"
    path.write_bytes((golden_dir / "segm_mask.pth").read_bytes())
    with pytest.raises(ValueError, match="width 64 is not a standard one; give num_heads"):
        read_model(path)
    with pytest.raises(ValueError, match="give normalization"):
        read_model(path, num_heads=2)
    _, params = read_model(path, num_heads=2, normalization="vit")
    assert_same(params, golden_params("segm_mask"))


def test_mmseg_linear_head(golden_dir, tmp_path):
    torch = pytest.importorskip("torch")
    content = torch.load(golden_dir / "mmseg_mask.pth", weights_only=True)
    state = {k: v for k, v in content["state_dict"].items() if k.startswith("backbone")}
    weight = torch.arange(5 * 64, dtype=torch.float32).reshape(5, 64, 1, 1)
    state["decode_head.conv_seg.weight"] = weight
    state["decode_head.conv_seg.bias"] = torch.arange(5.0)
    torch.save({"state_dict": state}, tmp_path / "fcn.pth")
    description, params = read_model(tmp_path / "fcn.pth", num_heads=2)
    assert (description.model.decoder, description.model.num_classes) == ("linear", 5)
    np.testing.assert_array_equal(params["decoder"]["head"]["kernel"], weight[:, :, 0, 0].T)


def test_mmseg_classes_are_kept(golden_dir):
    pytest.importorskip("torch")
    description, _ = read_model(golden_dir / "mmseg_mask.pth", num_heads=2)
    assert description.classes == ("a", "b", "c", "d", "e", "f", "g")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions(google, tmp_path, dtype):
    np.savez(tmp_path / "w.npz", **{name: array.astype(dtype) for name, array in google.items()})
    _, params = read_model(tmp_path / "w.npz", num_classes=5, decoder="linear")
    kernel = params["encoder"]["embedding"]["kernel"]
    assert kernel.dtype == np.float32
    expected = google["embedding/kernel"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(kernel, expected)


def test_bfloat16_pth(golden_dir, tmp_path):
    torch = pytest.importorskip("torch")
    state = torch.load(golden_dir / "segm_mask.pth", weights_only=True)["model"]
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    torch.save(half, tmp_path / "half.pth")
    _, params = read_model(tmp_path / "half.pth", num_heads=2, normalization="vit")
    expected = half["decoder.cls_emb"].float().numpy()
    np.testing.assert_array_equal(params["decoder"]["class_embedding"], expected)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "corner_linear"])
def test_position_embeddings_resize_to_a_grid_that_is_not_square(google, tmp_path, method):
    np.savez(tmp_path / "w.npz", **google)
    options = conversion.ConvertOptions(
        num_classes=5, decoder="linear", image_size=(48, 96), window=48, position_method=method
    )
    description, params, report = conversion.convert(tmp_path / "w.npz", options)
    source = google["Transformer/posembed_input/pos_embedding"]
    found = params["encoder"]["pos_embedding"]
    assert found.shape == (1, 1 + 3 * 6, 64)
    np.testing.assert_array_equal(found[:, 0], source[:, 0])
    expected = np.einsum(
        "yh,xw,hwd->yxd",
        resize_matrix(4, 3, method),
        resize_matrix(4, 6, method),
        source[0, 1:].reshape(4, 4, 64).astype(np.float64),
    )
    np.testing.assert_allclose(found[0, 1:], expected.reshape(18, 64), atol=1e-6)
    assert report.resized == [("encoder/pos_embedding", (1, 17, 64), (1, 19, 64), method)]
    assert description.provenance["options"]["position_method"] == method


def test_extra_channels_at_zero_change_no_token(golden_dir):
    rgb = read_model(golden_dir / GOOGLE, num_classes=5, decoder="linear")
    more = read_model(golden_dir / GOOGLE, num_classes=5, decoder="linear", in_channels=5)
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    padded = np.concatenate([image, np.zeros((1, 64, 64, 2), np.float32)], axis=-1)
    tokens = [
        Segmenter(description.model).apply({"params": params}, x, method=Segmenter.encode)
        for (description, params), x in ((rgb, image), (more, padded))
    ]
    np.testing.assert_allclose(tokens[0], tokens[1], atol=1e-5)
    assert more[0].mean == (0.5,) * 5


def test_patch_kernels_inflate_by_the_documented_rule():
    kernel = np.arange(2 * 2 * 3 * 1, dtype=np.float32).reshape(2, 2, 3, 1)
    more = inflate_patch_kernel(kernel, 4)
    np.testing.assert_array_equal(more[..., :3, :], kernel)
    np.testing.assert_array_equal(more[..., 3, :], kernel.mean(axis=2))
    np.testing.assert_array_equal(inflate_patch_kernel(kernel, 1)[..., 0, :], kernel.sum(axis=2))


def test_another_class_count_keeps_all_that_does_not_depend_on_it(tmp_path):
    pytest.importorskip("torch")
    description, params = load_golden_model(tmp_path)
    new, found, report = conversion.convert(
        tmp_path / "m", conversion.ConvertOptions(num_classes=9)
    )
    changed = {"decoder/class_embedding", "decoder/mask_norm/scale", "decoder/mask_norm/bias"}
    assert {entry[0] for entry in report.initialised} == changed
    assert {entry[0] for entry in report.dropped} == changed
    before, after = (flatten_dict(tree, sep="/") for tree in (params, found))
    for name in before.keys() - changed:
        np.testing.assert_array_equal(before[name], after[name])
    assert after["decoder/class_embedding"].shape == (1, 9, 64)
    assert np.std(after["decoder/class_embedding"]) > 0.005
    assert len(new.classes) == 9 and description.window == new.window
    assert "7 classes in the source, 9 here" in str(report)


def load_golden_model(folder):
    description = ModelDescription(
        model=golden_config("segm_mask"),
        classes=tuple("abcdefg"),
        colors=((1, 2, 3),) * 7,
        mean=(0.5,),
        std=(0.5,),
    )
    save_model(folder / "m", description, golden_params("segm_mask"))
    return load_model(folder / "m")


def test_an_encoder_alone_asks_for_the_number_of_classes(golden_dir, tmp_path, capsys):
    source, output = os.fspath(golden_dir / GOOGLE), os.fspath(tmp_path / "m")
    assert convert.main([source, output]) == 1
    assert capsys.readouterr().err == (
        f"python -m segmenter_jax.convert: error: {source}: holds an encoder only; give "
        "num_classes (--num_classes of python -m segmenter_jax.convert) for a new decoder\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, capsys):
    for name, message in (
        ("m", "m: in use by process"),
        ("x[1]", "which Orbax takes for a pattern"),
    ):
        with sole_owner(tmp_path / "m", beside=True):
            assert convert.main(["no such source", os.fspath(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_directory_loads_as_it_is(tmp_path):
    description, params = load_golden_model(tmp_path)
    found, same, _ = conversion.convert(tmp_path / "m", conversion.ConvertOptions())
    assert_same(params, same)
    assert (found.model, found.classes) == (description.model, description.classes)


def test_seed_decides_the_new_decoder(golden_dir):
    options = {"num_classes": 5, "decoder": "linear"}
    first, again, other = (
        read_model(golden_dir / GOOGLE, seed=seed, **options)[1] for seed in (0, 0, 1)
    )
    assert_same(first, again)
    kernels = [params["decoder"]["head"]["kernel"] for params in (first, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_a_new_decoder_is_that_of_the_models_own_initialisation():
    config = golden_config("segm_linear_distilled")
    expected = init_params(config, seed=4)
    found = init_some_params(config, ["decoder/head/kernel"], seed=4)
    expected = expected["decoder"]["head"]["kernel"]
    np.testing.assert_allclose(found["decoder/head/kernel"], expected, atol=1e-7)


def test_standard_widths_know_their_heads(tmp_path):
    from safetensors.numpy import save_file

    width = 192
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    shapes |= {f"blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()}
    save_file({k: np.zeros(s, np.float16) for k, s in shapes.items()}, tmp_path / "ti")
    assert open_source(tmp_path / "ti", Hints()).config.num_heads == 3
    options = conversion.ConvertOptions(num_classes=2, normalization="vit", variant="S/16")
    with pytest.raises(
        ValueError,
        match="not a S/16: has width=192, num_heads=3, mlp_dim=768; expected width=384, ",
    ):
        conversion.convert(tmp_path / "ti", options)
