"""The command line: attention, curves, dataset."""

import json

import numpy as np
import pytest
from PIL import Image

from segmenter_jax import visualize
from tests.models_on_disk import write_golden_model
from tests.tiny_runs import write_dataset


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_golden_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)).save(path)
    return path


def run(*arguments):
    return visualize.main([str(a) for a in arguments])


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--layer", 0, "--head", 1, "--patch", "10,20"),
        ("--class", "car"),
        ("--decoder", "--layer", 0, "--patch", "10,20"),
        ("--rollout", "--cls"),
    ],
)
def test_attention_is_drawn(model_dir, photo, tmp_path, flags):
    out = tmp_path / "attention.png"
    assert run("attention", model_dir, photo, "-o", out, *flags) == 0
    assert Image.open(out).width > 600


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--head", 2), "head must be in 0..1 and not with a rollout, got 2"),
        (("--class", "boat"), "class 'boat' is unknown; choose from ('sky', 'building'"),
        (("--patch", "48,0"), "pixel x=48, y=0 is outside the picture"),
    ],
)
def test_failures_take_one_clear_line(model_dir, photo, tmp_path, capsys, flags, message):
    assert run("attention", model_dir, photo, "-o", tmp_path / "a.png", *flags) == 1
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1


def test_pixels_that_are_none_are_wrong_usage(model_dir, photo, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("attention", model_dir, photo, "-o", "a.png", "--patch", "ten")
    assert "'ten' is not a pixel such as 120,80" in capsys.readouterr().err


def test_debug_is_taken_behind_the_subcommand(tmp_path):
    with pytest.raises(ValueError, match="none"):
        run("curves", tmp_path / "none", "-o", tmp_path / "c.png", "--debug")


def test_curves_of_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [tmp_path / parent / "run" for parent in ("one", "two")]
    for path in runs:
        path.mkdir(parents=True)
        rows = [{"step": i, "train/loss": 1 / i, "train/learning_rate": 0.1} for i in (1, 2, 3)]
        (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("curves", *runs, "-o", tmp_path / "curves.png") == 0
    assert Image.open(tmp_path / "curves.png").width > 600


def test_contact_sheets_of_datasets_are_drawn(tmp_path, capsys):
    source = write_dataset(tmp_path / "scenes", train=3, val=1)
    arguments = ("dataset", "scenes", "--data_dir", tmp_path / "built", "--source", source)
    out = tmp_path / "sheet.png"
    assert run(*arguments, "-o", out, "--count", 2) == 0
    assert Image.open(out).width > 900
    assert run(*arguments, "-o", out, "--first", 3) == 1
    assert "first must be in 0..2 for split 'train', got 3" in capsys.readouterr().err
