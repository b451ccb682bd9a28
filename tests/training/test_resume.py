"""Which labels a run may resume with."""

import dataclasses

import pytest

from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.training.resume import label_changes

COLORS = ((0,) * 3, (1,) * 3, (2,) * 3)
SPEC = DatasetSpec(
    "mine", ("sky", "road", "car"), COLORS, label_map=((0, 255), (1, 0), (2, 1), (3, 2))
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"class_names": ("sky", "car", "road")},
            ["class 1 was 'road', is 'car'", "class 2 was 'car', is 'road'"],
        ),
        ({"class_names": ("sky", "road", "truck")}, ["class 2 was 'car', is 'truck'"]),
        (
            {"label_map": ((0, 255), (1, 1), (2, 0), (3, 2))},
            ["label value 1 was 'sky', is 'road'", "label value 2 was 'road', is 'sky'"],
        ),
        ({"label_map": ((0, 2), (1, 0), (2, 1))}, ["label value 0 was ignored, is 'car'"]),
        # The identity, and ignore_label at 255.
        (
            {"label_map": None},
            [f"label value {i} was {a}, is {b}" for i, a, b in (
                (0, "ignored", "'sky'"), (1, "'sky'", "'road'"), (2, "'road'", "'car'"))],
        ),
        ({"channels": 4}, ["3 image channels there, 4 here"]),
        # Nothing that was learnt changes its meaning.
        ({"name": "other", "colors": COLORS[::-1]}, []),
        ({"label_map": ((*SPEC.label_map, (9, 255)))}, []),
        ({"label_map": ((11, 0), (12, 1), (13, 2))}, []),
        ({"ignore_label": 200, "label_map": ((0, 200), (1, 0), (2, 1), (3, 2))}, []),
    ],
)  # fmt: skip
def test_labels_mean_what_they_meant(fields, expected):
    assert label_changes(SPEC, dataclasses.replace(SPEC, **fields)) == expected
