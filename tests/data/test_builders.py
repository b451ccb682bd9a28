import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter_jax.data import datasets
from segmenter_jax.data.builders.shapes import Shapes, render_scene
from segmenter_jax.data.datasets import build_dataset, built_datasets, open_dataset
from segmenter_jax.data.labels import check_pair, decode_label, unpack_ids
from segmenter_jax.data.specs import SHAPES
from segmenter_jax.runtime.errors import DataError
from tests.data.conftest import noise


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> datasets.Dataset:
    return build_dataset("shapes", tmp_path_factory.mktemp("data"))


def test_a_dataset_leaves_nothing_in_the_folder_for_temporary_files(folder, tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    dataset = build_dataset("toyset", tmp_path / "data", folder)
    assert dataset.source("val")[0]["name"]
    assert list(temporary.iterdir()) == []


def write_label(path: Path, label: np.ndarray) -> None:
    Image.fromarray(label).save(path)


def test_shapes_has_its_splits_and_explains_itself(shapes):
    assert shapes.splits == {"train": 800, "validation": 100}
    assert shapes.spec == SHAPES
    assert shapes.directory.name == "1.0.0" and shapes.directory.parent.name == "shapes"


def test_shapes_records_are_deterministic_bytes(shapes):
    reader = Shapes(data_dir=shapes.directory.parent.parent).scan().readers["validation"][7]
    record = shapes.source("validation")[7]
    rendered = reader()
    for part in ("image", "label", "name"):
        assert record[part] == getattr(rendered, part)
    assert record["name"] == "validation_00007"


def test_packed_labels_are_those_of_the_png_files(shapes):
    record = shapes.source("validation")[7]
    label = decode_label(record["label"], shapes.spec, "label")
    np.testing.assert_array_equal(unpack_ids(record["label_ids"], "label"), label)


def test_shapes_scenes():
    scenes = [render_scene("train", index) for index in range(40)]
    assert not np.array_equal(scenes[0][0][:88, :112], render_scene("validation", 0)[0][:88, :112])
    counts = sum(np.bincount(label.ravel(), minlength=256) for _, label in scenes)
    assert (counts[:7] > 0.015 * counts.sum()).all()
    assert 0.02 < counts[255] / counts.sum() < 0.2
    for image, label in scenes:
        assert image.shape[:2] == label.shape
        assert 88 <= label.shape[0] <= 112 and 112 <= label.shape[1] <= 144


def test_every_shapes_object_has_an_ignored_border():
    for index in range(10):
        _, label = render_scene("train", index)
        for first, second in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            touching = (first != second) & (first != 255) & (second != 255)
            assert not touching.any()


def test_unknown_dataset_lists_the_choices(shapes):
    data_dir = shapes.directory.parent.parent
    with pytest.raises(
        ValueError,
        match=r"unknown dataset 'shape'; benchmarks: \['ade20k', .*\], generated: \['shapes'\], "
        r"built in .*: \['shapes'\], or ",
    ):
        open_dataset("shape", data_dir)
    with pytest.raises(ValueError, match="unknown dataset 'shape'"):
        build_dataset("shape", data_dir)
    assert built_datasets(data_dir) == ["shapes"]


def test_unknown_split_lists_the_choices(shapes):
    with pytest.raises(ValueError, match=r"no split 'val'; available: \['train', 'validation'\]"):
        shapes.source("val")


def test_shapes_takes_no_source(shapes, tmp_path):
    with pytest.raises(ValueError, match="'shapes' is generated and takes no source"):
        build_dataset("shapes", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="'shapes' is generated and takes no source"):
        open_dataset("shapes", shapes.directory.parent.parent, tmp_path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_dataset_names_stay_in_the_data_folder(name, tmp_path):
    with pytest.raises(ValueError, match="must be letters, digits"):
        build_dataset(name, tmp_path, tmp_path)


def test_not_built_yet(tmp_path):
    with pytest.raises(ValueError, match=r"'shapes' is not built in .*; build it first"):
        open_dataset("shapes", tmp_path)


def test_folder_stores_original_bytes(folder, tmp_path):
    dataset = build_dataset("toyset", tmp_path / "data", folder)
    assert dataset.splits == {"train": 3, "val": 2}
    source = dataset.source("train")
    assert [source[i]["name"] for i in range(len(source))] == ["a", "c", "city/b"]
    assert source[2]["image"] == (folder / "images/train/city/b.png").read_bytes()
    assert source[2]["label"] == (folder / "annotations/train/city/b.png").read_bytes()
    with pytest.raises(IndexError, match="record 3 of split 'train' with 3 records"):
        source[3]


def test_folder_spec_travels_with_the_built_dataset(folder, tmp_path):
    build_dataset("toyset", tmp_path / "data", folder)
    shutil.rmtree(folder)
    dataset = open_dataset("toyset", tmp_path / "data")
    assert dataset.spec.class_names == ("sky", "road", "car")
    assert dataset.spec.colors[2] == (255, 0, 0)
    assert dataset.spec.label_lookup()[[0, 1, 4, 11, 255]].tolist() == [0, 1, 2, 255, 255]
    record = dataset.source("val")[0]
    _, label = check_pair(record["image"], record["label"], dataset.spec, record["name"])
    assert set(np.unique(label)) <= {0, 1, 2, 255}


def test_any_legal_name_works(folder, tmp_path):
    build_dataset("my-data_v2.1", tmp_path / "new" / "data", folder)
    assert open_dataset("my-data_v2.1", tmp_path / "new" / "data").splits == {"train": 3, "val": 2}


def test_folder_is_not_built_twice_and_touching_is_no_change(folder, tmp_path):
    first = build_dataset("toyset", tmp_path / "data", folder)
    before = (first.directory / "metadata.json").stat().st_mtime_ns
    (folder / "images/train/a.jpg").touch()
    again = build_dataset("toyset", tmp_path / "data", folder)
    assert again == first
    assert (first.directory / "metadata.json").stat().st_mtime_ns == before


def test_folder_copied_elsewhere_is_the_same_source(folder, tmp_path):
    build_dataset("toyset", tmp_path / "data", folder)
    shutil.copytree(folder, tmp_path / "copy")
    open_dataset("toyset", tmp_path / "data", tmp_path / "copy")


def test_changed_source_is_noticed(folder, tmp_path):
    built = build_dataset("toyset", tmp_path / "data", folder)
    label = folder / "annotations/train/a.png"
    write_label(label, np.ones((12, 16), np.uint8))
    shutil.copy(folder / "images/train/a.jpg", folder / "images/train/new.jpg")
    shutil.copy(label, folder / "annotations/train/new.png")
    (folder / "images/train/c.bmp").unlink()
    (folder / "annotations/train/c.png").unlink()
    with pytest.raises(DataError) as error:
        build_dataset("toyset", tmp_path / "data", folder)
    message = str(error.value)
    assert message.startswith(f"dataset 'toyset' in {built.directory} was built from {folder}, but")
    for change in (
        "annotations/train/new.png was added",
        "images/train/c.bmp was removed",
        "annotations/train/a.png was changed",
    ):
        assert change in message
    command = f"segmenter_jax.prepare_data folder --name=toyset --source={folder} --overwrite"
    assert message.endswith(f"Build it again with `python -m {command}`, or under another name")

    rebuilt = build_dataset("toyset", tmp_path / "data", folder, overwrite=True)
    assert rebuilt.splits["train"] == 3
    assert rebuilt.source("train")[2]["name"] == "new"


def test_same_size_change_is_noticed_by_content(folder, tmp_path):
    build_dataset("toyset", tmp_path / "data", folder)
    image = folder / "images/train/c.bmp"
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    with pytest.raises(DataError, match=r"differs: images/train/c\.bmp was changed\. Build"):
        open_dataset("toyset", tmp_path / "data", folder)


def test_failed_rebuild_keeps_the_former_dataset(folder, tmp_path):
    build_dataset("toyset", tmp_path / "data", folder)
    write_label(folder / "annotations/val/d.png", np.full((12, 16), 77, np.uint8))
    with pytest.raises(DataError, match="label value 77"):
        build_dataset("toyset", tmp_path / "data", folder, overwrite=True)
    dataset = open_dataset("toyset", tmp_path / "data")
    assert dataset.splits == {"train": 3, "val": 2}
    left = sorted(path.relative_to(tmp_path / "data") for path in (tmp_path / "data").glob("*/*"))
    assert left == [Path("toyset/1.0.0")]


def break_value(root):
    label = np.zeros((12, 16), np.uint8)
    label[3, 4] = 7
    write_label(root / "annotations/train/city/b.png", label)


def break_size(root):
    write_label(root / "annotations/val/d.png", np.zeros((16, 12), np.uint8))


def break_missing_label(root):
    (root / "annotations/train/city/b.png").unlink()


def break_missing_image(root):
    (root / "images/val/d.tif").unlink()


def break_truncated(root):
    path = root / "images/train/a.jpg"
    path.write_bytes(path.read_bytes()[:-50])


def break_undecodable(root):
    (root / "annotations/train/c.png").write_bytes(b"not a png")


def break_rgb_label(root):
    write_label(root / "annotations/train/a.png", noise(12, 16))


def break_empty_split(root):
    (root / "images/test").mkdir()
    (root / "annotations/test").mkdir()


def break_unlabelled(root):
    for split in ("train", "val"):
        shutil.rmtree(root / "annotations" / split)


def break_duplicate(root):
    shutil.copy(root / "images/train/c.bmp", root / "images/train/a.bmp")


def break_split_name(root):
    (root / "images/val").rename(root / "images/val-1")
    (root / "annotations/val").rename(root / "annotations/val-1")


def break_no_images(root):
    shutil.rmtree(root / "images")


def break_no_splits(root):
    for kind in ("images", "annotations"):
        shutil.rmtree(root / kind)
        (root / kind).mkdir()


def break_no_classes(root):
    (root / "classes.json").unlink()


def break_json(root):
    (root / "classes.json").write_text("{")


def edit_classes(root, edit):
    path = root / "classes.json"
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


def break_class_key(root):
    edit_classes(root, lambda fields: fields["classes"][0].pop("name"))


def break_class_id(root):
    edit_classes(root, lambda fields: fields["classes"][0].update(id=1))


def break_ignored_class(root):
    edit_classes(root, lambda fields: fields["ignore_ids"].append(4))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            break_value,
            r"^annotations/train/city/b\.png: label value 7 \(1 pixels\) is not legal in dataset "
            r"'toyset'; legal values: 0\.\.1, 4 \(classes\), 11, 255 \(ignored\)$",
        ),
        (
            break_size,
            r"^annotations/val/d\.png: the label is 16 x 12 pixels \(height x width\), but its "
            r"image images/val/d\.tif is 12 x 16$",
        ),
        (
            break_missing_label,
            r"^images/train/city/b\.png: no label annotations/train/city/b\.png$",
        ),
        (
            break_missing_image,
            r"^annotations/val/d\.png: no image images/val/d with one of \.",
        ),
        (break_truncated, r"^images/train/a\.jpg: truncated or corrupt JPEG image \("),
        (break_undecodable, r"^annotations/train/c\.png: not a readable image \(9 bytes\)$"),
        (
            break_rgb_label,
            r"^annotations/train/a\.png: the label is an RGB image, and 192 of its colours \(192 "
            r"pixels\) stand for no single class: \(0, 90, 237\), .* Add them to classes\.json, ",
        ),
        (
            break_empty_split,
            r"^images/test: the split is empty; expected images/test/{stem} with one of \.jpg, ",
        ),
        (break_unlabelled, r"/annotations: no split has labels$"),
        (break_duplicate, r"^images/train/a\.jpg: a\.bmp has the same stem$"),
        (
            break_split_name,
            "^split 'val-1': a split's name must be letters, digits and underscores",
        ),
        (
            break_no_images,
            r"/images: missing folder; expected images/{split}/{stem}; there are: annotations/",
        ),
        (break_no_splits, r"/images: no split; expected subfolders such as train and val$"),
        (break_no_classes, r"/classes\.json: missing; it lists the classes of the dataset$"),
        (break_json, r"/classes\.json: not valid JSON \("),
        (break_class_key, r"/classes\.json: expected .* could not read it \(KeyError\('name'\)\)"),
        (break_class_id, "label value 1 is there twice: sky and road$"),
        (break_ignored_class, "label value 4 is there twice: car and ignore_ids$"),
    ],
)
def test_bad_folder_is_refused_and_leaves_nothing(damage, message, folder, tmp_path):
    damage(folder)
    with pytest.raises(DataError, match=message):
        build_dataset("toyset", tmp_path / "new" / "data", folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_all_problems_are_reported_at_once(folder, tmp_path):
    break_value(folder)
    break_truncated(folder)
    with pytest.raises(DataError) as error:
        build_dataset("toyset", tmp_path / "data", folder)
    lines = str(error.value).splitlines()
    assert lines[0] == "2 problems:"
    assert lines[1].startswith("  images/train/a.jpg: truncated")
    assert lines[2].startswith("  annotations/train/city/b.png: label value 7")


def test_missing_source_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        build_dataset("toyset", tmp_path / "data", tmp_path / "nowhere")


def test_folder_in_an_archive(folder, tmp_path):
    archive = shutil.make_archive(tmp_path / "toyset", "zip", folder)
    dataset = build_dataset("toyset", tmp_path / "data", archive)
    assert dataset.splits == {"train": 3, "val": 2}
    assert open_dataset("toyset", tmp_path / "data", folder) == dataset
    write_label(folder / "annotations/train/a.png", np.ones((12, 16), np.uint8))
    archive = shutil.make_archive(tmp_path / "changed", "zip", folder)
    with pytest.raises(DataError, match=r"differs: annotations/train/a\.png was changed"):
        open_dataset("toyset", tmp_path / "data", archive)


def test_linked_folders_are_followed_and_loops_are_not(folder, tmp_path):
    (folder / "images/train").rename(tmp_path / "elsewhere")
    (folder / "images/train").symlink_to(tmp_path / "elsewhere")
    for kind in ("images", "annotations"):
        (folder / kind / "again").symlink_to(folder / kind / "val")
    (folder / "images/val/loop").symlink_to(folder)
    dataset = build_dataset("toyset", tmp_path / "data", folder)
    assert dataset.splits == {"again": 2, "train": 3, "val": 2}
