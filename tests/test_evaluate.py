"""Evaluation of a split, and its command line."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

from segmenter_jax import evaluate
from segmenter_jax.data.datasets import build_dataset
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.inference import InferenceSettings, SlidingWindow
from segmenter_jax.metrics import confusion_matrix
from segmenter_jax.predict import load
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


def test_exactly_the_pixels_that_are_not_ignored_are_counted(dataset, model_dir, capsys):
    folder = dataset.directory.parents[2] / "streets" / "annotations" / "validation"
    counted = sum(int((np.asarray(Image.open(p)) != 0).sum()) for p in folder.glob("*.png"))
    assert run(model_dir, dataset) == 0
    assert f"2 images, {counted} pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "test"], "no split 'test'; choose from ['train', 'validation']"),
        (["--window", "32", "--stride", "33"], "got stride=33, window=32"),
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
        fake = evaluate.Dataset("toy", spec, tmp_path, {"validation": 1})
        patch.setattr(evaluate, "build_dataset", lambda *_: fake)
        assert evaluate.main(arguments) == 1
    message = "dataset 'toy' has 2 classes and 3 image channels, the model 7 and 3"
    assert message in capsys.readouterr().err


def test_usage_errors_leave_with_code_2(model_dir):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([str(model_dir)])


def test_halves_carry_64_bit_counts():
    counts = np.array([[0, 1], [2**32 - 1, 2**32], [2**33 + 5, 2**62 + 3]], np.int64)
    halves = evaluate.split_halves(counts)
    assert halves.dtype == np.uint32
    np.testing.assert_array_equal(evaluate.join_halves(np.stack([halves, halves]))[1], counts)
    np.testing.assert_array_equal(evaluate.sum_over_processes(counts), counts)


def test_results_are_handed_out_as_they_are_counted(model_dir):
    predictor = load(model_dir, devices=jax.local_devices()[:1])
    engine = predictor.engine()
    spec = DatasetSpec("toy", CLASSES, COLORS)
    image = np.random.default_rng(0).integers(0, 256, (64, 70, 3), np.uint8)
    examples = [{"image": image, "label": np.zeros((64, 70), np.uint8), "name": n} for n in "ab"]
    seen = []
    report = evaluate.evaluate_split(
        engine, predictor.params, examples, spec, lambda e, ids: seen.append((e["name"], ids.shape))
    )
    assert seen == [("a", (64, 70)), ("b", (64, 70))]
    assert report.matrix[0].sum() == report.num_pixels == 2 * 64 * 70


def test_empty_splits_give_an_empty_report(model_dir):
    predictor = load(model_dir)
    engine = SlidingWindow(
        predictor.model, InferenceSettings(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    spec = DatasetSpec("toy", CLASSES, COLORS)
    report = evaluate.evaluate_split(engine, predictor.params, [], spec)
    assert report.num_images == 0 and np.isnan(report.mean_iou)
