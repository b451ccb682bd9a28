"""Evaluation on benchmark datasets: binary metrics, and splits without labels."""

import json

import numpy as np
import pytest
from PIL import Image

from segmenter_jax import evaluate
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import save_model
from segmenter_jax.data.datasets import build_dataset
from segmenter_jax.data.specs import BENCHMARKS
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.evaluation.binary_metrics import binary_score, mean_binary_scores
from segmenter_jax.inference.predictor import load
from segmenter_jax.models.params import init_params
from tests.data import replicas
from tests.golden_params import golden_config


def prepare(name, root):
    """A built replica, and a model with random weights for it."""
    spec = BENCHMARKS[name]
    config = golden_config("segm_mask", num_classes=spec.num_classes, in_channels=spec.channels)
    description = ModelDescription(
        config, spec.class_names, spec.colors, mean=(0.5,), std=(0.5,), base_size=64
    )
    save_model(root / "model", description, init_params(config, 0))
    source = replicas.write(name, root / "source")
    return build_dataset(name, root / "built", source, allow_partial=True), root


@pytest.fixture(scope="module")
def glass(tmp_path_factory):
    return prepare("rgbt_glass", tmp_path_factory.mktemp("glass"))


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory):
    return prepare("ade20k", tmp_path_factory.mktemp("ade20k"))


def run(prepared, *flags, split="test", model="model"):
    dataset, root = prepared
    what = [root / model] if model else []
    flags = ["--dataset", dataset.name, "--data_dir", root / "built", "--split", split, *flags]
    return evaluate.main([str(a) for a in (*what, *flags)])


def test_binary_metrics_are_those_of_the_probabilities(glass, tmp_path, capsys):
    assert run(glass, "--binary", "--json", tmp_path / "r.json") == 0
    dataset, root = glass
    predictor, transform = load(root / "model"), EvalTransform(dataset.spec)
    scores = []
    for record in dataset.source("test"):
        example = transform(record)
        probability = predictor.predict_probs(example["image"])[..., 1]
        scores.append(binary_score(example["label"], probability))
    expected = mean_binary_scores(scores)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["num_images"] == found["binary"]["images"] == 2
    assert found["binary"]["iou"] == pytest.approx(expected["iou"], abs=1e-6)
    assert found["binary"]["mae"] == pytest.approx(expected["mae"], abs=1e-6)
    # Every replica shows glass.
    assert found["binary"]["images_without"] == 0 and found["binary"]["iou_without"] is None
    printed = capsys.readouterr().out
    row = ["with", "glass", "2", f"{100 * expected['iou']:.2f}", f"{expected['mae']:.4f}"]
    assert row in [line.split() for line in printed.splitlines()]
    assert "no glass" not in printed


def test_binary_metrics_need_two_classes(ade20k, capsys):
    assert run(ade20k, "--binary", split="validation") == 1
    assert "dataset 'ade20k' has 150 classes" in capsys.readouterr().err


def test_a_split_without_labels_is_predicted_for_the_test_server(ade20k, tmp_path, capsys):
    assert run(ade20k, "--save_predictions", tmp_path / "out") == 0
    assert "split 'test' has no labels, so no scores" in capsys.readouterr().out
    (saved,) = (tmp_path / "out").rglob("*.png")
    assert saved.name == "ADE_test_00000001.png"
    dataset, root = ade20k
    data = dataset.source("test", needs_labels=False)[0]["image"]
    (tmp_path / "image.jpg").write_bytes(data)
    ids = load(root / "model").predict(tmp_path / "image.jpg")
    np.testing.assert_array_equal(np.asarray(Image.open(saved)), ids + 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "it can only be predicted, by a model and with --save_predictions"),
        (["--save_predictions", "out", "--json", "r.json"], "without --json"),
        (["--save_predictions", "out", "--boundary_iou"], "without --boundary_iou"),
    ],
)
def test_a_split_without_labels_is_not_scored(ade20k, capsys, flags, message):
    assert run(ade20k, *flags) == 1
    printed = capsys.readouterr().err
    assert "split 'test' of dataset 'ade20k' has no labels" in printed and message in printed


def test_files_of_a_split_without_labels_cannot_be_scored(ade20k, tmp_path, capsys):
    assert run(ade20k, "--predictions", tmp_path, model=None) == 1
    assert "has no labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [("--window", 32), ("--stride", 16), ("--scales", "0.5,1"), ("--flip",), ("--native",)],
)
def test_files_of_class_ids_take_no_flags_of_models(tmp_path, capsys, flags):
    arguments = ["--predictions", tmp_path, "--dataset", "ade20k", *flags]
    assert evaluate.main([str(a) for a in arguments]) == 1
    assert "are scored as they are: --window" in capsys.readouterr().err
