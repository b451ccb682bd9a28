import json

import numpy as np
import pytest

from segmenter_jax.data.specs import ILLEGAL_LABEL, SHAPES, DatasetSpec

COLORS = ((1, 2, 3), (4, 5, 6))


def test_lookup_without_map_is_identity_on_classes_and_ignore():
    table = DatasetSpec("x", ("a", "b"), COLORS).label_lookup()
    assert table.dtype == np.uint8 and table.shape == (256,)
    assert table[[0, 1, 255]].tolist() == [0, 1, 255]
    assert set(table[2:255].tolist()) == {ILLEGAL_LABEL}


def test_lookup_with_map_knows_only_the_map():
    spec = DatasetSpec("x", ("a", "b"), COLORS, label_map=((0, 255), (1, 0), (2, 1)))
    table = spec.label_lookup()
    assert table[:4].tolist() == [255, 0, 1, ILLEGAL_LABEL]
    assert table[255] == ILLEGAL_LABEL
    assert spec.legal_ids() == "1..2 (classes), 0 (ignored)"


def test_palette_is_black_beyond_the_classes():
    palette = DatasetSpec("x", ("a", "b"), COLORS).palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert palette[:2].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert not palette[2:].any()


@pytest.mark.parametrize("label_map", [None, ((0, 255), (3, 0), (9, 1))])
def test_survives_json(label_map):
    spec = DatasetSpec("x", ("a", "b"), COLORS, label_map=label_map, channels=4)
    assert DatasetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": ("a",), "colors": ((0, 0, 0),)}, "'x' has 1 classes; between 2 and 253"),
        ({"colors": COLORS[:1]}, "'x' has 2 classes but 1 colours"),
        ({"colors": ((0, 0, 0), (0, 0, 256))}, r"colour \(0, 0, 256\) is not three values"),
        ({"ignore_label": 1}, r"ignore_label=1 must lie in 2..255"),
        ({"ignore_label": 254}, "not be 254"),
        ({"label_map": ((0, 0), (0, 1))}, "label value 0 in label_map is not in 0..255 or is"),
        ({"label_map": ((0, 2),)}, "sends 0 to 2, which is neither a class in 0..1 nor 255"),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        DatasetSpec(**{"name": "x", "class_names": ("a", "b"), "colors": COLORS, **fields})


def test_shapes_spec():
    assert SHAPES.num_classes == 7
    assert len(set(SHAPES.colors)) == 7
