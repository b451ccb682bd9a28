"""Pascal Context from its published MATLAB files, made here in their layout."""

import io

import numpy as np
import pytest
from scipy.io import savemat

from segmenter_jax.data.builders.pascal_context import read_label_map
from segmenter_jax.data.datasets import build_dataset, make_builder
from segmenter_jax.data.specs import PASCAL_CONTEXT
from segmenter_jax.data.survey import survey
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.runtime.errors import DataError
from tests.data import replicas
from tests.data.conftest import encode

CLASSES = PASCAL_CONTEXT.class_names[1:]
# What `59_labels.txt` calls three of them.
THEIRS = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes"}
NAMES = sorted([*CLASSES, "accordion", "unknown", "window blinds"])
SHAPE = (replicas.HEIGHT, replicas.WIDTH)
# Every name's id, 0, and some of them often.
PUBLISHED = np.resize(np.arange(len(NAMES) + 1, dtype=np.uint16), SHAPE)


def expected_ids():
    """The ids of the 60 classes, written out by hand from the names."""
    meant = [CLASSES.index(n) + 1 if n in CLASSES else 0 for n in NAMES]
    return np.array([0, *meant])[PUBLISHED]


def mat(**arrays):
    file = io.BytesIO()
    savemat(file, arrays, do_compression=True)
    return file.getvalue()


def numbered(names):
    return "".join(f"{i}: {name}\n" for i, name in enumerate(names, 1)).encode()


def write(root, **changed):
    """Writes train 2, validation 1 as published; `changed` has other contents by file name."""
    voc = "VOCdevkit/VOC2010"
    files = {
        "labels.txt": numbered(NAMES),
        "59_labels.txt": numbered(THEIRS.get(name, name) for name in CLASSES),
        f"{voc}/ImageSets/Main/train.txt": b"2008_000002\n2008_000003\n",
        f"{voc}/ImageSets/Main/val.txt": b"2008_000005\n",
    }
    for name in ("2008_000002", "2008_000003", "2008_000005"):
        files[f"{voc}/JPEGImages/{name}.jpg"] = encode(replicas.image(0), "JPEG")
        files[f"trainval/{name}.mat"] = mat(LabelMap=PUBLISHED)
    for path, content in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(changed.get(place.name, content))
    return root


def problems(root, **options):
    name = "pascal_context"
    builder = make_builder(name, root / "built", root, **{"allow_partial": True} | options)
    return survey(builder.scan(), builder.spec).problems


@pytest.mark.parametrize("name", ["pascal_context", "pascal_context_59"])
def test_published_files_build_with_and_without_background(name, tmp_path):
    root = write(tmp_path / "source")
    dataset = build_dataset(name, tmp_path / "data", root, allow_partial=True)
    assert dataset.splits == {"train": 2, "validation": 1}
    label = EvalTransform(dataset.spec)(dataset.source("train")[1])["label"]
    expected = expected_ids()
    if name.endswith("59"):
        expected = np.where(expected == 0, 255, expected - 1)
    np.testing.assert_array_equal(label, expected)


def test_lists_of_voc_have_counts_of_their_own(tmp_path):
    found = problems(write(tmp_path), allow_partial=False)
    assert [p for p in found if "'train' has 2 records, the published pascal_context has 4998" in p]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"2008_000003.mat": mat(LabelMap=PUBLISHED)[:200]}, "2008_000003.mat: not a readable MAT"),
        ({"2008_000003.mat": b""}, "2008_000003.mat: not a readable MATLAB file"),
        # As MATLAB saves large files: HDF5 behind a header of its own.
        (
            {"2008_000003.mat": b"MATLAB 7.3".ljust(124) + b"\0\2IM" + bytes(64)},
            "2008_000003.mat: not a readable MATLAB file (Please use HDF reader",
        ),
        ({"2008_000003.mat": mat(Other=PUBLISHED)}, "the array LabelMap is none, but whole"),
        ({"2008_000003.mat": mat(LabelMap="sky")}, "the array LabelMap is <U3 (1,), but whole"),
        ({"2008_000003.mat": mat(LabelMap=PUBLISHED / 2)}, "is float64 (48, 64), but whole"),
        (
            {"2008_000003.mat": mat(LabelMap=PUBLISHED + np.uint16(1))},
            "2008_000003.mat: LabelMap holds 63 (48 pixels), which labels.txt does not name",
        ),
        ({"2008_000003.mat": mat(LabelMap=PUBLISHED[:9])}, "2008_000003.mat: the label is 9 x 64"),
        ({"labels.txt": b"1: bag\ntwo\n"}, "labels.txt: line 2 is 'two', but an id of its own"),
        ({"labels.txt": b"1: bag\n1: bed\n"}, "labels.txt: line 2 is '1: bed', but an id of its"),
        ({"labels.txt": numbered(NAMES[:-1])}, "labels.txt: not there once: wood"),
        (
            {"59_labels.txt": numbered([*CLASSES[:-1], "wool"])},
            "59_labels.txt: not the 59 classes of the dataset: 59 names; no 'wood', 'wool'",
        ),
    ],
)
def test_damaged_files_are_one_clear_line(changed, message, tmp_path):
    found = problems(write(tmp_path, **changed))
    assert len(found) == 1 and message in found[0] and "\n" not in found[0]


@pytest.mark.parametrize("missing", ["labels.txt", "59_labels.txt", "2008_000005.mat"])
def test_missing_files_are_named(missing, tmp_path):
    root = write(tmp_path)
    next(root.rglob(missing)).unlink()
    reason = "2008_000005.jpg: no label" if missing.endswith(".mat") else f"0 files {missing}, but"
    assert any(reason in problem for problem in problems(root))


def test_any_damage_is_a_data_error():
    data = bytearray(mat(LabelMap=PUBLISHED))
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        try:
            assert read_label_map(bytes(damaged), "a.mat").ndim == 2
        except DataError as error:
            assert str(error).startswith("a.mat: ")
