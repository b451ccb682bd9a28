"""Damaged, wrong and hostile sources: one clear line, exit code 1, nothing written."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from segmenter_jax import convert

GOOGLE = "google_vit_augreg.npz"
_QUERY = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (os.fspath(self.path),)


@pytest.fixture(scope="module")
def google(golden_dir):
    with np.load(golden_dir / GOOGLE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def segm(golden_dir):
    torch = pytest.importorskip("torch")
    return dict(torch.load(golden_dir / "segm_mask.pth", weights_only=True)["model"])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path


def assert_refused(folder, source, capsys, *needles, flags=()):
    """Converts `source` and checks that it fails as it should."""
    before = sorted(path.name for path in folder.rglob("*"))
    arguments = [os.fspath(source), os.fspath(folder / "out" / "model"), "--num_classes=5"]
    arguments += ["--num_heads=2", "--normalization=vit", *flags]
    assert convert.main(arguments) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "error:" in lines[0] and "Traceback" not in lines[0]
    for needle in needles:
        assert needle in lines[0]
    assert sorted(path.name for path in folder.rglob("*")) == before


def _changed(arrays, name, change):
    return arrays | {name: change(arrays[name])}


def _nan(array):
    array = array.copy()
    array.flat[3] = np.nan
    return array


NPZ_CASES = {
    "missing array": (lambda a: {k: v for k, v in a.items() if k != _QUERY}, _QUERY, "is missing"),
    "missing block": (
        lambda a: {k: v for k, v in a.items() if "encoderblock_0/" not in k},
        "block 0 is missing",
    ),
    "extra array": (lambda a: a | {"surprise": np.ones(3, np.float32)}, "surprise", "explanation"),
    "swapped axes": (
        lambda a: _changed(a, "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel", np.transpose),
        "has shape (256, 64), expected (64, 256)",
    ),
    "wrong rank": (
        lambda a: _changed(a, "embedding/kernel", np.ravel),
        "embedding/kernel has shape (49152,), expected 4 axes",
    ),
    "empty": (
        lambda a: _changed(a, "embedding/kernel", lambda x: x[:0]),
        "embedding/kernel has shape (0, 16, 3, 64), expected 4 axes, none empty",
    ),
    "patches not square": (
        lambda a: _changed(a, "embedding/kernel", lambda x: x[:8]),
        "patches that are not square",
    ),
    "positions not square": (
        lambda a: _changed(a, "Transformer/posembed_input/pos_embedding", lambda x: x[:, :-1]),
        "15 position embeddings make no square grid",
    ),
    "not finite": (lambda a: _changed(a, _QUERY, _nan), _QUERY, "1 values that are not finite"),
    "overflow": (
        lambda a: _changed(a, _QUERY, lambda x: x.astype(np.float64) * 1e300),
        "not finite",
    ),
    "integers": (lambda a: _changed(a, _QUERY, np.int32), _QUERY, "is not floating point"),
    "no known names": (lambda a: {"a": np.ones(3, np.float32)}, "none of the known naming schemes"),
    "no arrays": (lambda a: {}, "neither .npz nor"),
    "odd head split": (
        lambda a: _changed(a, _QUERY, lambda x: x.reshape(64, 4, 16)),
        "has shape (64, 4, 16), expected (64, 2, 32)",
    ),
}


@pytest.mark.parametrize("case", NPZ_CASES)
def test_npz_with_wrong_content(folder, google, capsys, case):
    change, *needles = NPZ_CASES[case]
    np.savez(folder / "in" / "w.npz", **change(google))
    assert_refused(folder, folder / "in" / "w.npz", capsys, *needles)


@pytest.mark.parametrize("keep", [0, 4, 1000, 300_000, -30])
def test_truncated_npz(folder, golden_dir, capsys, keep):
    content = (golden_dir / GOOGLE).read_bytes()
    (folder / "in" / "w.npz").write_bytes(content[:keep])
    assert_refused(folder, folder / "in" / "w.npz", capsys, "w.npz")


def test_flipped_bytes_are_found_by_the_checksum(folder, golden_dir, capsys):
    content = bytearray((golden_dir / GOOGLE).read_bytes())
    with zipfile.ZipFile(golden_dir / GOOGLE) as archive:
        middle = archive.getinfo(f"{_QUERY}.npy").header_offset + 2000
    content[middle] ^= 1
    (folder / "in" / "w.npz").write_bytes(content)
    assert_refused(folder, folder / "in" / "w.npz", capsys, _QUERY, "is damaged", "CRC")


def test_object_arrays_are_never_unpickled(folder, google, capsys):
    trap = folder / "trap"
    objects = np.array([Bomb(trap)], dtype=object)
    np.savez(folder / "in" / "w.npz", **(google | {"head/kernel": objects}))
    assert_refused(folder, folder / "in" / "w.npz", capsys, "Python objects, which are never")
    assert not trap.exists()


def test_archive_that_claims_too_much_memory(folder, google, capsys):
    path = folder / "in" / "w.npz"
    np.savez(path, **google)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)}
    )
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head/extra.npy", buffer.getvalue())
    assert_refused(folder, path, capsys, "claim", "allowed for its size")


def test_text_file_with_a_weights_name(folder, capsys):
    for name in ("w.npz", "w.pth", "w.safetensors"):
        (folder / "in" / name).write_text("<html>404 Not Found</html>")
        assert_refused(folder, folder / "in" / name, capsys, name, "not a weights file")


def test_archive_of_something_else(folder, capsys):
    with zipfile.ZipFile(folder / "in" / "w.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert_refused(folder, folder / "in" / "w.npz", capsys, "neither .npz nor a PyTorch file")


def test_nothing_there(folder, capsys):
    assert_refused(folder, folder / "in" / "none.npz", capsys, "does not exist", "augreg/L_16")


def test_plain_pickle_that_would_run_code(folder, capsys):
    pytest.importorskip("torch")
    (folder / "in" / "w.pth").write_bytes(pickle.dumps(Bomb(folder / "trap"), protocol=2))
    assert_refused(folder, folder / "in" / "w.pth", capsys, "w.pth")
    assert not (folder / "trap").exists()


def test_pth_that_would_run_code(folder, segm, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"model": segm, "args": Bomb(folder / "trap")}, folder / "in" / "w.pth")
    assert_refused(folder, folder / "in" / "w.pth", capsys, "Python objects besides weights")
    assert not (folder / "trap").exists()


@pytest.mark.parametrize("keep", [1000, 500_000, -40])
def test_truncated_pth(folder, golden_dir, capsys, keep):
    pytest.importorskip("torch")
    content = (golden_dir / "segm_mask.pth").read_bytes()
    (folder / "in" / "w.pth").write_bytes(content[:keep])
    assert_refused(folder, folder / "in" / "w.pth", capsys, "damaged")


PTH_CASES = {
    "decoder block missing": (
        lambda s: {k: v for k, v in s.items() if "decoder.blocks.0." not in k},
        "block 0 is missing",
    ),
    "extra key": (lambda s: s | {"decoder.extra": s["encoder.norm.bias"]}, "decoder.extra"),
    "not a tensor": (lambda s: s | {"decoder.proj_patch": 3}, "is no tensor but 3"),
    "class counts differ": (
        lambda s: s | {"decoder.mask_norm.bias": s["decoder.mask_norm.bias"][:5]},
        "decoder.mask_norm.bias has shape (5,), expected (7,)",
    ),
    "infinite": (
        lambda s: s | {"encoder.norm.bias": s["encoder.norm.bias"] / 0.0},
        "encoder.norm.bias holds 64 values that are not finite",
    ),
}


@pytest.mark.parametrize("case", PTH_CASES)
def test_pth_with_wrong_content(folder, segm, capsys, case):
    torch = pytest.importorskip("torch")
    change, *needles = PTH_CASES[case]
    torch.save({"model": change(segm)}, folder / "in" / "w.pth")
    assert_refused(folder, folder / "in" / "w.pth", capsys, *needles)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "net_kwargs: {", "net_kwargs: {decoder: {name: unet}}", "\x00\x01"]
)
def test_wrong_variant_yml(folder, golden_dir, capsys, text):
    pytest.importorskip("torch")
    (folder / "in" / "w.pth").write_bytes((golden_dir / "segm_mask.pth").read_bytes())
    (folder / "in" / "variant.yml").write_text(text)
    assert_refused(folder, folder / "in" / "w.pth", capsys, "variant.yml")


def test_safetensors_with_a_lying_header(folder, capsys):
    header = b'{"blocks.0.x":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'
    content = struct.pack("<Q", len(header)) + header + b"\0" * 16
    (folder / "in" / "w.safetensors").write_bytes(content)
    assert_refused(folder, folder / "in" / "w.safetensors", capsys, "damaged .safetensors")


def test_an_existing_output_is_left_alone(folder, golden_dir, capsys):
    (folder / "out" / "model").mkdir()
    (folder / "out" / "model" / "precious.txt").write_text("x")
    assert_refused(folder, golden_dir / GOOGLE, capsys, "exists; choose another name")
    assert_refused(
        folder, golden_dir / GOOGLE, capsys, "not a model directory", flags=["--overwrite"]
    )


def test_wrong_usage_is_exit_code_2(golden_dir, tmp_path):
    for flags in (["--decoder=unet"], ["--image_size=big"], ["--no_such_flag"]):
        with pytest.raises(SystemExit) as caught:
            convert.main([os.fspath(golden_dir / GOOGLE), os.fspath(tmp_path / "o"), *flags])
        assert caught.value.code == 2
