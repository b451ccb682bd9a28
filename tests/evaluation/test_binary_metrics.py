import math

import numpy as np
import pytest

from segmenter_jax.evaluation.binary_metrics import binary_score, mean_binary_scores


def test_score_computed_by_hand():
    label = np.array([[1, 1, 0], [0, 255, 1]], np.uint8)
    probability = np.array([[0.9, 0.2, 0.5], [0.1, 1.0, 0.7]], np.float32)
    score = binary_score(label, probability)
    # Of the five counted pixels three are glass and three are predicted; two of them agree.
    assert score.iou == 2 / 4
    assert score.mae == pytest.approx((0.1 + 0.8 + 0.5 + 0.1 + 0.3) / 5)
    assert score.has_foreground


def test_images_without_foreground():
    empty = np.zeros((2, 2), np.uint8)
    assert binary_score(empty, np.full((2, 2), 0.25)).iou == 1
    score = binary_score(empty, np.array([[0.5, 0, 0, 0]]).reshape(2, 2))
    assert (score.iou, score.mae, score.has_foreground) == (0, 0.125, False)


def test_means_are_over_images_and_apart():
    ones, zeros = np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint8)
    scores = [
        binary_score(ones, np.array([[1.0, 1.0], [1.0, 0.0]])),
        binary_score(ones, np.full((2, 2), 0.75)),
        binary_score(zeros, np.full((2, 2), 0.1)),
        binary_score(np.full((2, 2), 255), np.zeros((2, 2))),
    ]
    assert mean_binary_scores(scores) == pytest.approx(
        {
            "images": 3,
            "iou": (0.75 + 1 + 1) / 3,
            "mae": (0.25 + 0.25 + 0.1) / 3,
            "images_with": 2,
            "iou_with": 0.875,
            "mae_with": 0.25,
            "images_without": 1,
            "iou_without": 1.0,
            "mae_without": 0.1,
        }
    )
    assert math.isnan(mean_binary_scores([])["iou"])


@pytest.mark.parametrize(
    ("label", "probability", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), r"label \(2, 2\) and probability \(2, 3\) differ"),
        (np.full((2, 2), 2), np.zeros((2, 2)), "label has value 2, which is neither 0, 1 nor 255"),
    ],
)
def test_refuses(label, probability, message):
    with pytest.raises(ValueError, match=message):
        binary_score(label, probability)
