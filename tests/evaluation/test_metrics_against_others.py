"""Our numbers against scikit-learn's and against the official Cityscapes scorer."""

import numpy as np
import pytest
from PIL import Image

from segmenter_jax.data.labels import decode_label
from segmenter_jax.data.specs import CITYSCAPES
from segmenter_jax.evaluation.metrics import SegmentationReport, confusion_matrix
from segmenter_jax.evaluation.submission import encode_submission, submission_name


def report(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> SegmentationReport:
    matrix = confusion_matrix(label, prediction, num_classes, 255)
    return SegmentationReport(matrix, tuple(map(str, range(num_classes))), "", 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_classes", [2, 7, 150])
def test_equals_scikit_learn(num_classes, seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    # The last class is absent from both; the one before it is predicted only.
    label = rng.integers(0, max(num_classes - 2, 1), (64, 48)).astype(np.uint8)
    prediction = rng.integers(0, max(num_classes - 1, 1), (64, 48)).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.6, label, prediction)
    label[rng.random(label.shape) < 0.2] = 255
    ours = report(label, prediction, num_classes)

    truth, guess = label[label != 255], prediction[label != 255]
    classes = np.arange(num_classes)
    matrix = sklearn.confusion_matrix(truth, guess, labels=classes)
    np.testing.assert_array_equal(ours.matrix, matrix)
    assert ours.pixel_accuracy == pytest.approx(sklearn.accuracy_score(truth, guess), abs=1e-12)
    recall = sklearn.recall_score(truth, guess, labels=np.unique(truth), average=None)
    assert ours.mean_accuracy == pytest.approx(recall.mean(), abs=1e-12)
    present = np.union1d(truth, guess)
    jaccard = sklearn.jaccard_score(truth, guess, labels=present, average=None)
    np.testing.assert_allclose(ours.iou[present], jaccard, rtol=0, atol=1e-12)
    assert np.isnan(np.delete(ours.iou, present)).all()
    assert ours.mean_iou == pytest.approx(jaccard.mean(), abs=1e-12)


@pytest.fixture
def official():
    """The module of the official scorer."""
    return pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")


def test_cityscapes_table_is_the_official_one(official):
    assert CITYSCAPES.label_map == tuple(
        (label.id, label.trainId) for label in official.labels if label.id >= 0
    )
    scored = [label for label in official.labels if label.id >= 0 and label.trainId != 255]
    assert CITYSCAPES.class_names == tuple(label.name for label in scored)
    assert CITYSCAPES.colors == tuple(label.color for label in scored)


def test_cityscapes_mean_iou_is_the_official_one(official, tmp_path):
    rng = np.random.default_rng(0)
    ground_truth, matrix = [], 0
    for i in range(4):
        name = f"lindau_{i:06d}_000019"
        raw = rng.integers(0, 34, (64, 128)).astype(np.uint8)
        ground_truth.append(tmp_path / "gtFine" / f"{name}_gtFine_labelIds.png")
        ground_truth[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(raw).save(ground_truth[-1])
        label = decode_label(ground_truth[-1].read_bytes(), CITYSCAPES, name)
        # "train" is never predicted, and neither are ignored pixels.
        ids = np.where(rng.random(raw.shape) < 0.7, label, rng.integers(0, 19, raw.shape))
        ids = np.where((ids == 255) | (ids == 16), 3, ids).astype(np.uint8)
        prediction = tmp_path / "results" / submission_name(CITYSCAPES, name)
        prediction.parent.mkdir(exist_ok=True)
        prediction.write_bytes(encode_submission(ids, CITYSCAPES))
        matrix = matrix + confusion_matrix(label, ids, 19, 255)
    ours = SegmentationReport(matrix, CITYSCAPES.class_names, "", 4)

    official.args.predictionPath = str(tmp_path / "results")
    official.args.predictionWalk = None
    official.args.evalInstLevelScore = False
    official.args.quiet = True
    official.args.JSONOutput = False
    truths = [str(path) for path in ground_truth]
    predictions = [official.getPrediction(official.args, path) for path in truths]
    results = official.evaluateImgLists(predictions, truths, official.args)
    assert ours.mean_iou == pytest.approx(results["averageScoreClasses"], abs=1e-6)
    for name, iou in zip(ours.classes, ours.iou, strict=True):
        assert iou == pytest.approx(results["classScores"][name], abs=1e-6)
