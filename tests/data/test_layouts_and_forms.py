"""Folder datasets as they are: where files lie, how classes are written, and forms of labels."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter_jax.data.datasets import build_dataset, make_builder
from segmenter_jax.data.labels import read_ids
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.survey import survey
from segmenter_jax.runtime.errors import DataError
from tests.data.conftest import encode, noise

IDS = (np.arange(12 * 16) // 65).astype(np.uint8).reshape(12, 16)
NAMES = ["sky", "road", "car"]
COLORS = np.array([[0, 0, 255], [90, 90, 90], [255, 0, 0]], np.uint8)


def write(root: Path, classes, *paths: str) -> Path:
    """Writes classes.json, and noise or a label of `IDS` for every path."""
    for path in paths:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        is_label = any(part in path for part in ("mask", "label", "annotations"))
        Image.fromarray(IDS if is_label else noise(12, 16, zlib.crc32(path.encode()))).save(place)
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def read(root: Path):
    """Trained ids by split and name, the spec, problems and warnings, as `check` sees them."""
    builder = make_builder("mine", root / "nowhere", root)
    found: dict[str, dict[str, np.ndarray | None]] = {}

    def note(split, index, name, image, label):
        found.setdefault(split, {})[name] = label

    result = survey(builder.scan(), builder.spec, note)
    return found, builder.spec, result.problems, result.warnings


PATTERN = "{stem}_mask.png"
LAYOUTS = {
    "folders named separately": (
        {
            "images": {"train": "img_tr", "val": "img_va"},
            "labels": {"train": "mask_tr", "val": "m"},
        },
        ["img_tr/a.png", "img_tr/x/b.png", "img_va/c.png"],
        ["mask_tr/a.png", "mask_tr/x/b.tif", "m/c_label.png"],
    ),
    "split above the kind": (
        {"images": "{split}/rgb", "labels": "{split}/masks"},
        ["train/rgb/a.png", "train/rgb/x/b.png", "val/rgb/c.png"],
        ["train/masks/a.png", "train/masks/x/b.png", "val/masks/c.png"],
    ),
    "a pattern beside the images": (
        {"images": "{split}", "labels": f"{{split}}/{PATTERN}"},
        ["train/a.png", "train/x/b.jpg", "val/c.png"],
        ["train/a_mask.png", "train/x/b_mask.PNG", "val/c_mask.png"],
    ),
    "patterns of both": (
        {"images": "rgb/{split}/{stem}_rgb", "labels": "{split}_masks/{stem}_ids.png"},
        ["rgb/train/a_rgb.png", "rgb/train/x/b_rgb.jpg", "rgb/val/c_rgb.png"],
        ["train_masks/a_ids.png", "train_masks/x/b_ids.png", "val_masks/c_ids.png"],
    ),
    "one folder of labels": (
        {"labels": "masks"},
        ["images/train/a.png", "images/train/x/b.png", "images/val/c.png"],
        ["masks/a.png", "masks/x/b.png", "masks/c.png"],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, tmp_path):
    fields, images, labels = LAYOUTS[name]
    labels = [path.replace("c_label", "c") for path in labels]
    write(tmp_path, {"classes": NAMES, **fields}, *images, *labels)
    for path in labels:
        Image.fromarray(IDS).save(tmp_path / path)
    found, _, problems, warnings = read(tmp_path)
    assert not problems and not warnings
    assert {split: [*named] for split, named in found.items()} == {
        "train": ["a", "x/b"],
        "val": ["c"],
    }
    np.testing.assert_array_equal(found["train"]["x/b"], IDS)


def test_no_folder_of_validation(tmp_path):
    names = [f"{i:02}" for i in range(10)]
    paths = [path for n in names for path in (f"photos/{n}.jpg", f"masks/{n}_mask.png")]
    fields = {"classes": NAMES, "images": "photos", "labels": f"masks/{PATTERN}"}
    root = write(tmp_path / "mine", fields, *paths)
    assert "nothing to validate on" in read(root)[3][0]
    write(root, fields | {"val_share": 0.2})
    found, *_ = read(root)
    assert len(found["val"]) == 2 and sorted([*found["train"], *found["val"]]) == names
    # A further picture moves at most one of the others.
    write(root, fields | {"val_share": 0.2}, "photos/10.jpg", "masks/10_mask.png")
    assert len(found["val"].keys() - read(root)[0]["val"].keys()) <= 1
    dataset = build_dataset("mine", tmp_path / "data", root)
    assert dataset.splits == {"train": 9, "val": 2}
    # Which file belongs to which split is part of what it was built from.
    assert build_dataset("mine", tmp_path / "data", root) == dataset
    write(root, fields | {"val_share": 0.4})
    with pytest.raises(DataError, match=r"differs: classes\.json was changed"):
        build_dataset("mine", tmp_path / "data", root)


def test_a_split_without_labels_beside_others_in_one_folder(tmp_path):
    write(
        tmp_path,
        {"classes": NAMES, "labels": "masks"},
        *("images/train/a.png", "images/val/b.png", "images/test/c.png"),
        *("masks/a.png", "masks/b.png"),
    )
    found, _, problems, warnings = read(tmp_path)
    assert not problems and warnings[0].startswith("test: no labels; ")
    assert found["test"] == {"c": None}
    write(tmp_path, {"classes": NAMES, "labels": "masks"}, "masks/d.png")
    assert any("masks/d.png: no image images/" in problem for problem in read(tmp_path)[2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": "pictures"}, r"labels are by split .*, but images are not \(pictures/{stem}\)"),
        ({"images": "i", "labels": "i"}, "images and labels are the same: i/{stem}"),
        ({"labels": "/masks"}, "labels is '/masks', but a path below the folder of classes.json"),
        ({"labels": "../masks"}, "labels is '../masks', but a path below"),
        ({"labels": "masks/*_mask.png"}, 'with "{stem}" for the part of a name that image and'),
        ({"labels": "m/{name}.png"}, "placeholders are {split} and {stem}$"),
        ({"labels": "m/{stem}_{split}.png"}, '"{split}" must be in the name of a folder before'),
        ({"labels": 3}, "labels is 3, but a path"),
        ({"images": {"train": "i"}, "labels": {"train": "m", "val": "v"}}, "images has only"),
        ({"val_share": 1}, "val_share is 1, but a share between 0 and 1 is expected"),
    ],
)
def test_layouts_that_make_no_sense(fields, message, tmp_path):
    write(tmp_path, {"classes": NAMES, **fields})
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_what_lies_there_instead_is_named(tmp_path):
    write(tmp_path, NAMES, "img/train/a.png", "masks/train/a.png")
    problems = read(tmp_path)[2]
    assert "images: missing folder; expected images/{split}/{stem}; there are: " in problems[0]
    assert (
        'classes.json, img/, masks/; "images" and "labels" in classes.json name others'
        in problems[0]
    )
    fields = {"classes": NAMES, "images": "img/{split}/{stem}.ppm", "labels": "masks/{split}"}
    write(tmp_path, fields)
    (tmp_path / "masks/train/a.png").rename(tmp_path / "masks/train/a.npy")
    (problem,) = read(tmp_path)[2]
    assert problem == (
        "img/train: the split is empty; expected img/train/{stem}.ppm; left out: "
        "1 in no split: img/train/a.png; 1 not read (.npy): masks/train/a.npy"
    )
    fields = {"classes": NAMES, "images": {"train": "img", "val": "img/train"}, "labels": "masks"}
    write(tmp_path, fields, "masks/a.png", "masks/train/a.png")
    assert "img/train/a.png: in the splits train and val" in read(tmp_path)[2]
    write(tmp_path, fields | {"val_share": 0.1})
    assert (
        "val_share takes val out of train, but there is train (1 images), val (1 images)"
        in (read(tmp_path)[2])
    )


IMAGE_AND_LABEL = ("images/train/a.png", "annotations/train/a.png")


@pytest.mark.parametrize(
    ("classes", "label_map"),
    [
        (NAMES, [(0, 0), (1, 1), (2, 2), (255, 255)]),
        ({"classes": NAMES, "ignore_ids": []}, [(0, 0), (1, 1), (2, 2)]),
        ({"1": "sky", "7": "road", "255": "car"}, [(1, 0), (7, 1), (255, 2)]),
        ({"classes": {"1": "sky", "2": "road", "3": "car"}, "ignore_ids": [0]}, None),
        ({"classes": [{"name": name} for name in NAMES]}, [(0, 0), (1, 1), (2, 2), (255, 255)]),
        (
            {"classes": [{"name": "sky", "id": [3, 1]}, {"name": "road", "id": 0}]},
            [(3, 0), (1, 0), (0, 1), (255, 255)],
        ),
    ],
)
def test_ways_to_write_classes(classes, label_map, tmp_path):
    spec = make_builder("mine", tmp_path, write(tmp_path, classes)).spec
    assert spec.class_names == tuple(NAMES[: spec.num_classes])
    assert len({*spec.colors}) == spec.num_classes
    assert label_map is None or [*spec.label_map] == label_map


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"sky": 0, "road": 1}, r"expected \[\"sky\", \.\.\.\], .* could not read it"),
        ({"classes": {"sky": 0}}, "keys are no numbers"),
        ([{"name": "a", "colour": [1, 2, 3]}, "b"], r"class 'a': unknown fields \['colour'\]"),
        ([{"name": "a", "id": 0}, {"name": "b"}], r"could not read it \(KeyError\('id'\)\)"),
        ([{"name": "a", "id": []}, {"name": "b", "id": 0}], "class 'a' has no id"),
        ([{"name": "a", "id": [1, 2]}, {"name": "b", "id": 2}], "value 2 is there twice: a and b"),
        (["a", "a"], "the class 'a' is there twice"),
        (["a"], "has 1 classes; between 2 and"),
    ],
)
def test_classes_that_make_no_sense(classes, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, classes))


def test_a_number_that_is_there_twice(tmp_path):
    write(tmp_path, NAMES).joinpath("classes.json").write_text('{"0": "a", "1": "b", "0": "c"}')
    with pytest.raises(DataError, match=r"classes\.json: '0' is there twice"):
        read(tmp_path)


def test_values_and_colours_are_merged_and_left_out(tmp_path):
    classes = [
        {"name": "vehicle", "id": [2, 1000], "color": [[255, 0, 0], [90, 90, 90]]},
        {"name": "sky", "id": 0, "color": [0, 0, 255]},
    ]
    fields = {"classes": classes, "ignore_ids": [7, -9999], "ignore_colors": [[1, 1, 1]]}
    write(tmp_path, fields, *IMAGE_AND_LABEL, "images/train/b.png", "annotations/train/b.tif")
    colors = COLORS[IDS].copy()
    colors[0, :2] = 1
    Image.fromarray(colors).save(tmp_path / IMAGE_AND_LABEL[1])
    values = np.array([0, 1000, 2], np.int32)[IDS]
    values[0, :2] = -9999, 7
    Image.fromarray(values).save(tmp_path / "annotations/train/b.tif")
    found, spec, problems, _ = read(tmp_path)
    assert not problems and spec.colors == ((255, 0, 0), (0, 0, 255))
    expected = np.array([1, 0, 0], np.uint8)[IDS]
    expected[0, :2] = 255
    for label in found["train"].values():
        np.testing.assert_array_equal(label, expected)


def test_codes_beyond_a_byte(tmp_path):
    classes = {"111": "sky", "300": "road", "70000": "car"}
    root = write(tmp_path, {"classes": classes, "ignore_ids": [-1e20]}, *IMAGE_AND_LABEL)
    codes = np.array([111, 300, 70000], np.float32)[IDS]
    codes[0, 0] = -1e20
    (root / IMAGE_AND_LABEL[1]).unlink()
    Image.fromarray(codes).save(root / "annotations/train/a.tif")
    found, _, problems, _ = read(root)
    expected = IDS.copy()
    expected[0, 0] = 255
    assert not problems
    np.testing.assert_array_equal(found["train"]["a"], expected)
    # The bytes as which they are stored are no values of theirs.
    codes[5] = 0
    Image.fromarray(codes).save(root / "annotations/train/a.tif")
    assert read(root)[2] == [
        "annotations/train/a.tif: label value 0.0 (16 pixels) is none of those in classes.json: "
        "-100000000000000000000, 111, 300, 70000"
    ]


def tiff(values: np.ndarray, **tags: int) -> bytes:
    """A TIFF file of any type of numbers, which Pillow does not write."""
    height, width = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    fields = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 8}
    fields |= {277: 1, 278: height, 279: values.nbytes, 339: kind}
    fields |= {int(tag.removeprefix("t")): value for tag, value in tags.items()}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in sorted(fields.items()))
    offset = 8 + values.nbytes
    pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    header = struct.pack("<2sHI", b"II", 42, offset)
    return header + pixels + struct.pack("<H", len(fields)) + rows + bytes(4)


def pgm(maximum: int, dtype: str = "u1") -> bytes:
    return b"P5 16 12 %d\n" % maximum + IDS.astype(dtype).tobytes()


def with_palette(form: str) -> bytes:
    picture, stored = Image.fromarray(IDS), io.BytesIO()
    picture.putpalette(COLORS.tobytes())
    picture.save(stored, form)
    return stored.getvalue()


FORMS = {
    **{f"{form} grey": encode(IDS, form) for form in ("TIFF", "BMP", "GIF", "PPM")},
    **{f"{form} palette": with_palette(form) for form in ("TIFF", "BMP", "GIF")},
    **{
        f"TIFF {compression}": encode(IDS, "TIFF", compression=compression)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    **{f"TIFF {t}": tiff(IDS.astype(t)) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "f4")},
    "16-bit PNG": encode(IDS.astype(np.uint16)),
    "PGM of few values": pgm(3),
    "16-bit PGM": pgm(65535, ">u2"),
    "16-bit PGM of few values": pgm(300, ">u2"),
    **{f"{form} colours": encode(COLORS[IDS], form) for form in ("TIFF", "BMP", "PPM", "PNG")},
}


@pytest.mark.parametrize("name", FORMS)
def test_lossless_forms_of_labels(name, tmp_path, capfd):
    classes = [
        {"name": name, "color": color} for name, color in zip(NAMES, COLORS.tolist(), strict=True)
    ]
    suffix = {"16-b": "pgm", "TIFF": "tif", "PPM ": "ppm"}.get(name[:4], name[:3].lower())
    write(tmp_path, classes, IMAGE_AND_LABEL[0])
    (tmp_path / "annotations/train").mkdir(parents=True)
    (tmp_path / f"annotations/train/a.{suffix}").write_bytes(FORMS[name])
    found, _, problems, _ = read(tmp_path)
    assert not problems
    np.testing.assert_array_equal(found["train"]["a"], IDS)


def test_values_that_are_stored_as_others_are_read_back_from_the_built_dataset(tmp_path):
    root = write(tmp_path / "mine", NAMES, *IMAGE_AND_LABEL)
    (root / IMAGE_AND_LABEL[1]).unlink()
    values = IDS.astype(np.float32)
    values[0] = np.nan
    (root / "annotations/train/a.tif").write_bytes(tiff(values))
    warnings = read(root)[3]
    assert "pixels of labels that have no value (NaN) are ignored (1): images" in warnings[-1]
    record = build_dataset("mine", tmp_path / "data", root).source("train")[0]
    stored, _ = read_ids(record["label"], "x")
    assert record["label"].startswith(b"\x89PNG") and (stored[0] == 255).all()
    np.testing.assert_array_equal(stored[1:], IDS[1:])
    write(root, {"classes": NAMES, "ignore_ids": []})
    assert "label value nan (16 pixels) is not legal" in read(root)[2][0]


def pages() -> bytes:
    stored = io.BytesIO()
    picture = Image.fromarray(IDS)
    picture.save(stored, "TIFF", save_all=True, append_images=[Image.fromarray(2 - IDS)])
    return stored.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(IDS.astype(np.float32) / 4), r"label value 0\.25, 0\.5 \(\d+ pixels\) is not legal"),
        (tiff(IDS.astype(np.int16) - 5), "label value -5, -4, -3 .192 pixels. is not legal"),
        (tiff(IDS.astype(np.uint16) * 1000), "values above 255 are instance ids"),
        (
            encode(IDS, "TIFF", compression="jpeg"),
            "is a TIFF file with JPEG compression, but a PNG",
        ),
        (tiff(IDS, t262=0), "says that 0 is white, and programs disagree"),
        (pages(), "the label holds 2 pictures, but one is expected"),
        (tiff(IDS.astype(np.float32))[:200], "not a readable image|truncated or corrupt TIFF"),
        (encode(IDS, "BMP")[:-30], "truncated or corrupt BMP image"),
        (pgm(3)[:-30], "truncated or corrupt PPM image"),
        (b"P2 16 12 7\n" + b"1 " * 192, "PPM labels of this kind are not supported"),
        (b"P4 16 12\n" + bytes(24), "the label is an 1 image"),
        (encode(COLORS[IDS], "WEBP"), "is a WEBP file, but a PNG, TIFF, BMP, PGM or GIF image"),
    ],
)
def test_forms_that_are_refused(data, message, tmp_path):
    write(tmp_path, NAMES, *IMAGE_AND_LABEL)
    (tmp_path / IMAGE_AND_LABEL[1]).write_bytes(data)
    (problem,) = read(tmp_path)[2]
    assert problem.startswith("annotations/train/a.png: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem)


def test_a_dataset_with_merged_values_survives_its_metadata():
    spec = DatasetSpec("x", ("a", "b"), ((1, 1, 1), (2, 2, 2)), label_map=((3, 0), (1, 0), (0, 1)))
    assert DatasetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.raw_ids(np.array([[0, 1]])).tolist() == [[3, 0]]
