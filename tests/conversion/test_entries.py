"""Weights in the wrappers that trainers put around them, and several in one file."""

import re

import numpy as np
import pytest

from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.opening import Hints
from segmenter_jax.conversion.sources import open_source

torch = pytest.importorskip("torch")

NAME = "encoder/encoderblock_0/mlp/Dense_0/bias"


@pytest.fixture(scope="module")
def state(golden_dir):
    return dict(torch.load(golden_dir / "segm_mask.pth", weights_only=True)["model"])


@pytest.fixture(scope="module")
def mmseg_state(golden_dir):
    return dict(torch.load(golden_dir / "mmseg_mask.pth", weights_only=True)["state_dict"])


@pytest.fixture
def opened(tmp_path):
    """Saves content as PyTorch does, and opens it."""

    def save_and_open(content, entry=None):
        torch.save(content, tmp_path / "w.pth")
        return open_source(tmp_path / "w.pth", Hints(num_heads=2), entry)

    return save_and_open


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def average(state):
    return {name: value + 1 for name, value in state.items()}


ADAM = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(4.0)}}, "param_groups": []}
WRAPPED = {
    "bare": lambda s: s,
    "with a number beside": lambda s: s | {"epoch": 4},
    "several devices": lambda s: {"model": prefixed("module.", s)},
    "compiled": lambda s: {"model": prefixed("_orig_mod.", s), "optimizer": ADAM},
    "both": lambda s: prefixed("module._orig_mod.", s),
    "Lightning": lambda s: {
        "state_dict": prefixed("model.", s) | {"criterion.weight": torch.ones(7)},
        "optimizer_states": [ADAM],
        "epoch": 4,
    },
    "net": lambda s: {"net": s, "best": torch.tensor(0.5)},
    "tutorial": lambda s: {"model_state_dict": s, "optimizer_state_dict": ADAM, "epoch": 4},
    "deep": lambda s: {"checkpoint": {"ema": {"shadow": prefixed("module.", s), "decay": 0.9}}},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_the_only_set_of_weights_is_taken(opened, state, wrapper):
    found = opened(WRAPPED[wrapper](state))
    assert found.format == "reference" and found.config.decoder == "mask"
    expected = state["encoder.blocks.0.mlp.fc1.bias"].numpy()
    np.testing.assert_array_equal(found.entries[NAME].read(), expected)
    beside = [name for name, _, why in found.dropped if why == "beside the model's own arrays"]
    assert beside == (["criterion.weight"] if wrapper == "Lightning" else [])


SEVERAL = {
    "beside": (lambda s: {"model": s, "model_ema": average(s)}, "model", "model_ema"),
    "timm": (
        lambda s: {"state_dict": s, "state_dict_ema": prefixed("module.", average(s))},
        "state_dict",
        "state_dict_ema.module",
    ),
    "one dictionary": (lambda s: s | prefixed("ema.", average(s)), ".", "ema"),
    "teacher": (
        lambda s: {"model": prefixed("student.", s) | prefixed("teacher.", average(s))},
        "model.student",
        "model.teacher",
    ),
    "mmengine": (
        lambda s: {
            "state_dict": s,
            "ema_state_dict": prefixed("module.", average(s)) | {"steps": torch.tensor(3)},
        },
        "state_dict",
        "ema_state_dict.module",
    ),
    "mmcv": (
        lambda s: {
            "state_dict": s | {f"ema_{k.replace('.', '_')}": v for k, v in average(s).items()}
        },
        "state_dict",
        "state_dict.ema_*",
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_sets_are_listed_and_one_is_chosen(opened, state, kind):
    wrap, first, second = SEVERAL[kind]
    content, count = wrap(state), len(state)
    listed = re.escape(f"{first} ({count}), {second} ({count})")
    with pytest.raises(SourceError, match=f"2 sets of weights; choose one with --entry.*{listed}"):
        opened(content)
    expected = state["encoder.blocks.0.mlp.fc1.bias"].numpy()
    for entry, other, values in ((first, second, expected), (second, first, expected + 1)):
        found = opened(content, entry)
        np.testing.assert_array_equal(found.entries[NAME].read(), values)
        assert f"not read: entry '{other}'" in found.notes
    with pytest.raises(SourceError, match=f"no entry 'best', but these .*{listed}"):
        opened(content, "best")


def test_an_average_of_mmsegmentation_is_seen(opened, mmseg_state):
    names = {f"ema_{name.replace('.', '_')}": value for name, value in mmseg_state.items()}
    with pytest.raises(SourceError, match=r"state_dict \(\d+\), state_dict\.ema_\* \(\d+\)$"):
        opened({"state_dict": mmseg_state | names, "meta": {"epoch": 4}})


def test_safetensors_have_prefixes_as_well(state, tmp_path):
    from safetensors.numpy import save_file

    arrays = {f"model.{name}": value.numpy() for name, value in state.items()}
    save_file(arrays, tmp_path / "w.safetensors")
    found = open_source(tmp_path / "w.safetensors", Hints(num_heads=2))
    assert found.format == "reference"
