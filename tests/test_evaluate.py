"""Evaluation of a split, and its command line."""

import csv
import itertools
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from segmenter_jax import evaluate
from segmenter_jax.data.datasets import Dataset, build_dataset
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.evaluation.metrics import confusion_matrix
from segmenter_jax.inference.predictor import load
from segmenter_jax.runtime import progress
from tests.models_on_disk import CLASSES, COLORS, write_golden_model

# Values in the label files: trained ids 0..6 are stored as 10..16, 0 is ignored.
RAW_IDS = tuple(range(10, 17))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_golden_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A built folder dataset whose two validation images have different sizes."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, sizes in {"train": [(20, 20)], "validation": [(70, 90), (50, 64)]}.items():
        for kind in ("images", "annotations"):
            (root / "streets" / kind / split).mkdir(parents=True)
        for i, (height, width) in enumerate(sizes):
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(image).save(root / "streets" / "images" / split / f"{i}.png")
            label = rng.choice([0, *RAW_IDS], (height, width)).astype(np.uint8)
            Image.fromarray(label).save(root / "streets" / "annotations" / split / f"{i}.png")
    classes = [
        {"id": raw, "name": name, "color": list(color)}
        for raw, name, color in zip(RAW_IDS, CLASSES, COLORS, strict=True)
    ]
    (root / "streets" / "classes.json").write_text(
        json.dumps({"classes": classes, "ignore_ids": [0]})
    )
    return build_dataset("streets", root / "built", root / "streets")


def run(model_dir, dataset, *arguments):
    # NAME/VERSION lies under the folder of built datasets.
    data_dir = dataset.directory.parents[1]
    flags = ["--dataset", "streets", "--data_dir", data_dir, *arguments]
    return evaluate.main([str(a) for a in (model_dir, *flags)])


def test_report_is_that_of_predictions_made_one_by_one(model_dir, dataset, tmp_path, capsys):
    out = tmp_path / "out"
    code = run(
        model_dir,
        dataset,
        *("--stride", 40, "--save_predictions", out),
        *("--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv"),
    )
    assert code == 0
    predictor = load(model_dir, devices=jax.local_devices()[:1])
    folder = dataset.directory.parents[2] / "streets"
    expected = np.zeros((7, 7), np.int64)
    for name in ("0", "1"):
        ids = predictor.predict(folder / "images" / "validation" / f"{name}.png", stride=40)
        raw = np.asarray(Image.open(folder / "annotations" / "validation" / f"{name}.png"))
        expected += confusion_matrix(np.where(raw == 0, 255, raw - 10), ids, 7, 255)
        (saved,) = out.rglob(f"{name}.png")
        np.testing.assert_array_equal(np.asarray(Image.open(saved)), ids + 10)
    report = json.loads((tmp_path / "r.json").read_text())
    np.testing.assert_array_equal(report["confusion_matrix"], expected)
    assert report["num_images"] == 2
    assert report["protocol"] == "window 64, stride 40, base 64, scales 1, flip no"
    printed = capsys.readouterr().out
    assert f"2 images, {expected.sum()} pixels" in printed and report["protocol"] in printed
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [row["class"] for row in rows] == list(CLASSES)


@pytest.mark.parametrize(("flags", "shown"), [((), True), (("--quiet",), False)])
def test_progress_is_shown_unless_it_is_not_wanted(
    model_dir, dataset, monkeypatch, capsys, flags, shown
):
    monkeypatch.setattr(progress, "_REPORT_SECONDS", 0)
    assert run(model_dir, dataset, *flags) == 0
    printed = capsys.readouterr()
    assert ("2 of 2 images" in printed.err) == shown
    assert "mean" in printed.out


def test_exactly_the_pixels_that_are_not_ignored_are_counted(dataset, model_dir, capsys):
    folder = dataset.directory.parents[2] / "streets" / "annotations" / "validation"
    counted = sum(int((np.asarray(Image.open(p)) != 0).sum()) for p in folder.glob("*.png"))
    assert run(model_dir, dataset) == 0
    assert f"2 images, {counted} pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "test"], "no split 'test'; available: ['train', 'validation']"),
        (["--window", "32", "--stride", "33"], "stride=33 must be in 1..window=32"),
        (["--dataset", "other"], "unknown dataset 'other'"),
    ],
)
def test_failures_take_one_clear_line(model_dir, dataset, capsys, flags, message):
    assert run(model_dir, dataset, *flags) == 1
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1


def test_models_of_another_number_of_classes_are_refused(model_dir, tmp_path, capsys):
    arguments = [str(model_dir), "--dataset", "shapes", "--data_dir", str(tmp_path)]
    spec = DatasetSpec("toy", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    with pytest.MonkeyPatch.context() as patch:
        # Building the generated dataset would take longer than all other tests here.
        fake = Dataset("toy", spec, tmp_path, {"validation": 1})
        patch.setattr("segmenter_jax.commands.evaluate.build_dataset", lambda *_: fake)
        assert evaluate.main(arguments) == 1
    message = "dataset 'toy' has 2 classes and 3 image channels, the model 7 and 3"
    assert message in capsys.readouterr().err


def test_usage_errors_leave_with_code_2(model_dir):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([str(model_dir)])


def score_files(dataset, folder, *flags):
    data_dir = dataset.directory.parents[1]
    arguments = ["--predictions", folder, "--dataset", "streets", "--data_dir", data_dir, *flags]
    return evaluate.main([str(a) for a in arguments])


def test_saved_predictions_score_as_the_model_that_made_them(model_dir, dataset, tmp_path, capsys):
    folder, reports = tmp_path / "predictions", [tmp_path / "1.json", tmp_path / "2.json"]
    flags = ("--boundary_iou", "--json")
    assert run(model_dir, dataset, "--save_predictions", folder, *flags, reports[0]) == 0
    assert score_files(dataset, folder, *flags, reports[1]) == 0
    assert f"predictions of {folder}" in capsys.readouterr().out
    made, scored = (json.loads(path.read_text()) for path in reports)
    assert scored.pop("protocol") != made.pop("protocol")
    assert scored == made and 0 < made["mean_boundary_iou"] < 1


def test_predictions_may_hold_trained_ids(model_dir, dataset, tmp_path, capsys):
    folder, reports = tmp_path / "predictions", [tmp_path / "1.json", tmp_path / "2.json"]
    assert run(model_dir, dataset, "--save_predictions", folder, "--json", reports[0]) == 0
    for path in folder.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) - np.uint8(10)).save(path)
    assert score_files(dataset, folder) == 1
    assert "label value" in capsys.readouterr().err
    flags = ("--prediction_ids", "trained", "--json", reports[1])
    assert score_files(dataset, folder, *flags) == 0
    first, second = (json.loads(path.read_text()) for path in reports)
    assert first["confusion_matrix"] == second["confusion_matrix"]


def test_files_are_there_whatever_becomes_of_the_terminal(dataset, tmp_path, monkeypatch):
    folder = dataset.directory.parents[2] / "streets" / "annotations" / "validation"
    shutil.copytree(folder, tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        # 0 is no class, but ignored in the labels.
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.maximum(ids, RAW_IDS[0])).save(path)
    files = {f"--{kind}": tmp_path / f"r.{kind}" for kind in ("json", "csv")}
    files["--confusion"] = tmp_path / "confusion.png"
    terminal = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", terminal)
    assert score_files(dataset, tmp_path / "saved", *itertools.chain(*files.items())) == 1
    assert all(path.exists() for path in files.values())


def test_predictions_that_are_missing_of_other_size_or_no_class_are_named(
    model_dir, dataset, tmp_path, capsys
):
    folder = tmp_path / "predictions"
    assert run(model_dir, dataset, "--save_predictions", folder) == 0
    path = sorted(folder.rglob("*.png"))[0]
    ids = np.asarray(Image.open(path))
    for wrong, message in (
        (ids[1:], "differ in size"),
        (np.zeros_like(ids), "labelled pixels have no class"),
        (None, "no such file (prediction for"),
    ):
        path.unlink()
        if wrong is not None:
            Image.fromarray(wrong).save(path)
        assert score_files(dataset, folder) == 1
        printed = capsys.readouterr().err
        assert str(path) in printed and message in printed
    assert score_files(dataset, folder, "--calibration", tmp_path / "c.png") == 1
    assert "have no confidence" in capsys.readouterr().err


def test_pictures_of_an_evaluation_are_drawn(model_dir, dataset, tmp_path, capsys):
    files = {kind: tmp_path / f"{kind}.png" for kind in ("confusion", "calibration", "worst")}
    flags = [flag for kind, path in files.items() for flag in (f"--{kind}", path)]
    assert run(model_dir, dataset, *flags) == 0
    assert "calibration error" in capsys.readouterr().out
    for path in files.values():
        assert min(Image.open(path).size) > 200
