"""Folder datasets as people have them: what is taken, what is said, and what is refused."""

import io
import json
import os
import random
import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter_jax.data.datasets import build_dataset, make_builder, open_dataset
from segmenter_jax.data.labels import unpack_ids
from segmenter_jax.data.survey import Survey, records_of, survey
from segmenter_jax.runtime.errors import DataError
from tests.data import replicas
from tests.data.conftest import CLASSES, encode, noise
from tests.data.folder_faults import FAULTS, try_fault

IDS = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) // 65
COLORS = np.array([[0, 0, 255], [90, 90, 90], [255, 0, 0]], np.uint8)


def write_classes(root: Path, **fields) -> None:
    (root / "classes.json").write_text(json.dumps(CLASSES | fields))


def write_labels(root: Path, split: str, label: np.ndarray) -> None:
    for path in (root / "annotations" / split).rglob("*.png"):
        Image.fromarray(label).save(path)


def check(root: Path, tmp_path: Path) -> Survey:
    builder = make_builder("toyset", tmp_path / "nowhere", root)
    return survey(builder.scan(), builder.spec)


def labels(root: Path, tmp_path: Path, split: str) -> dict[str, np.ndarray]:
    """Trained ids by record, after a build whose warnings are those of the check."""
    found = check(root, tmp_path)
    assert not found.problems
    dataset = build_dataset("toyset", tmp_path / "data", root, overwrite=True)
    assert [*dataset.warnings] == found.warnings
    source = dataset.source(split)
    return {source[i]["name"]: unpack_ids(source[i]["label_ids"], "x") for i in range(len(source))}


def test_a_split_in_which_nothing_counts_is_refused_by_both(folder, tmp_path):
    write_labels(folder, "val", np.full((12, 16), 11, np.uint8))
    (problem,) = check(folder, tmp_path).problems
    assert problem.startswith("val: no pixel of its labels counts, all 384 are ignored; values in ")
    assert "11, 255 (ignored)" in problem
    with pytest.raises(DataError, match="val: no pixel of its labels counts"):
        build_dataset("toyset", tmp_path / "data", folder)


def test_records_and_classes_that_teach_nothing_are_named(folder, tmp_path):
    write_labels(folder, "train", np.where(IDS == 2, 255, IDS).astype(np.uint8))
    Image.fromarray(np.full((12, 16), 255, np.uint8)).save(folder / "annotations/train/a.png")
    labels(folder, tmp_path, "train")
    assert open_dataset("toyset", tmp_path / "data").warnings == (
        "train: labels have no pixel that counts (1): images/train/a.jpg",
        "classes that train never shows, but val: car",
    )


@pytest.mark.parametrize("ignore", [[255], []])
def test_masks_of_0_and_255_are_explained(ignore, folder, tmp_path):
    names = ("background", "lesion")
    classes = [{"id": i, "name": name, "color": [i, i, i]} for i, name in enumerate(names)]
    write_classes(folder, classes=classes, ignore_ids=ignore)
    for split in ("train", "val"):
        write_labels(folder, split, np.where(IDS == 1, 255, 0).astype(np.uint8))
    found = check(folder, tmp_path)
    if ignore:
        assert "if 255 in them stands for another class" in found.warnings[-1]
    else:
        assert all("mask of 0 and 255 the class has the id 255" in p for p in found.problems)
        assert len(found.problems) == 5


def turned(pixels: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(pixels, exif=exif)


def test_turned_images_whose_labels_may_not_be_are_named(folder, tmp_path):
    (folder / "images/train/city/b.png").write_bytes(turned(noise(12, 16), 3))
    (folder / "images/val/a.webp").write_bytes(turned(noise(12, 16), 2))
    # Here the size tells.
    (folder / "images/val/d.tif").write_bytes(turned(noise(16, 12), 6))
    warnings = check(folder, tmp_path).warnings
    assert [w.rpartition(":")[2] for w in warnings] == [
        " images/train/city/b.png",
        " images/val/a.webp",
    ]
    assert "train: images are turned or mirrored by EXIF, and nothing tells" in warnings[0]
    write_classes(folder, label_orientation="shown")
    assert check(folder, tmp_path).warnings == []


@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_labels_are_turned_with_images_where_they_are_stored_as_these(
    orientation, folder, tmp_path
):
    write_classes(folder, label_orientation="stored")
    pixels = np.repeat(COLORS[IDS][..., :1], 3, axis=2)
    (folder / "images/val/a.webp").write_bytes(turned(pixels, orientation))
    palette = Image.fromarray(np.array([0, 1, 4], np.uint8)[IDS])
    palette.putpalette(noise(1, 256)[0].tobytes())
    palette.save(folder / "annotations/val/a.png")
    expected = {2: IDS[:, ::-1], 3: IDS[::-1, ::-1], 6: np.rot90(IDS, -1)}[orientation]
    ids = labels(folder, tmp_path, "val")["a"]
    np.testing.assert_array_equal(ids, expected)
    dataset = open_dataset("toyset", tmp_path / "data")
    assert survey(records_of(dataset), dataset.spec).problems == []


def test_labels_in_the_colours_of_the_classes_are_read(folder, tmp_path):
    write_classes(folder, ignore_colors=[[224, 224, 192]])
    colors = COLORS[IDS].copy()
    colors[0] = 224, 224, 192
    write_labels(folder, "val", colors)
    Image.fromarray(colors).convert("RGBA").save(folder / "annotations/val/d.png")
    expected = IDS.copy()
    expected[0] = 255
    for ids in labels(folder, tmp_path, "val").values():
        np.testing.assert_array_equal(ids, expected)
    assert (
        "val: labels are read by the colours that classes.json gives their classes (2): "
        in (open_dataset("toyset", tmp_path / "data").warnings[0])
    )


def test_colours_of_two_classes_and_transparent_pixels_are_refused(folder, tmp_path):
    classes = [{"id": i, "name": str(i), "color": c} for i, c in enumerate([[1, 1, 1]] * 2)]
    write_classes(folder, classes=[*classes, {"id": 4, "name": "car", "color": [255, 0, 0]}])
    write_labels(folder, "train", np.full((12, 16, 3), 1, np.uint8))
    write_labels(folder, "val", np.zeros((12, 16, 4), np.uint8))
    problems = check(folder, tmp_path).problems
    assert sum("stand for no single class: (1, 1, 1)." in problem for problem in problems) == 3
    assert sum("has transparent pixels" in problem for problem in problems) == 2


def test_a_split_without_labels_is_for_prediction(folder, tmp_path):
    (folder / "images/test").mkdir()
    shutil.copy(folder / "images/train/a.jpg", folder / "images/test/q.jpg")
    found = check(folder, tmp_path)
    assert found.warnings[0] == (
        "test: no labels; its images can be predicted, but neither trained on nor scored"
    )
    dataset = build_dataset("toyset", tmp_path / "data", folder)
    assert dataset.splits == {"train": 3, "val": 2, "test": 1} and dataset.unlabelled == ("test",)
    with pytest.raises(ValueError, match="split 'test' of dataset 'toyset' has no labels"):
        dataset.source("test")
    assert build_dataset("toyset", tmp_path / "data", folder) == dataset
    # Files of another kind are no sign that there are no labels.
    (folder / "annotations/test").mkdir()
    (folder / "annotations/test/q.json").write_text("{}")
    assert any(
        "q.jpg: no label annotations/test/q.png" in p for p in check(folder, tmp_path).problems
    )


def test_what_does_not_count_is_said(folder, tmp_path):
    (folder / "images/train/.ipynb_checkpoints").mkdir()
    (folder / "images/val/x.heic").touch()
    (folder / "README.md").touch()
    assert check(folder, tmp_path).warnings == [
        "left out: 1 hidden or kept by a system: images/train/.ipynb_checkpoints; "
        "1 not read (.heic): images/val/x.heic"
    ]
    for path in (folder / "images/val").iterdir():
        path.rename(path.with_suffix(".heic"))
    shutil.rmtree(folder / "annotations/val")
    assert (
        check(folder, tmp_path)
        .problems[0]
        .endswith(
            "left out: 3 not read (.heic): images/val/a.heic, images/val/d.heic, images/val/x.heic"
        )
    )


def test_names_that_are_not_utf_8_are_refused_by_both(folder, tmp_path):
    for path in (folder / "images/train/a.jpg", folder / "annotations/train/a.png"):
        os.rename(path, os.fsencode(path.parent) + b"/caf\xe9" + path.suffix.encode())
    expected = r"images/train/caf\xe9.jpg: the name is not UTF-8; rename the file"
    assert check(folder, tmp_path).problems == [expected]
    with pytest.raises(DataError) as error:
        build_dataset("toyset", tmp_path / "data", folder)
    assert str(error.value) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_classes_as_windows_writes_them(encoding, folder, tmp_path):
    text = json.dumps(CLASSES, indent=1).replace("\n", "\r\n").replace("road", "Straße")
    (folder / "classes.json").write_bytes(text.encode(encoding))
    assert make_builder("toyset", tmp_path, folder).spec.class_names[1] == "Straße"


def test_names_in_two_unicode_forms_are_paired(folder, tmp_path):
    for kind, suffix, form in (("images", ".jpg", "NFD"), ("annotations", ".png", "NFC")):
        path = folder / kind / "train" / f"a{suffix}"
        path.rename(path.with_name(unicodedata.normalize(form, f"Größe{suffix}")))
    assert "Größe" in labels(folder, tmp_path, "train")


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_an_archive_with_a_top_folder(separator, folder, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in filter(Path.is_file, folder.rglob("*")):
            entry = zipfile.ZipInfo("x")
            entry.filename = str(Path("mine") / path.relative_to(folder)).replace("/", separator)
            archive.writestr(entry, path.read_bytes())
    (tmp_path / "mine.zip").write_bytes(packed.getvalue())
    dataset = build_dataset("toyset", tmp_path / "data", tmp_path / "mine.zip")
    assert dataset.splits == {"train": 3, "val": 2}
    # What is unpacked, with or without the folder above it, is the same.
    assert build_dataset("toyset", tmp_path / "data", folder) == dataset
    shutil.copytree(folder, tmp_path / "above" / "mine")
    assert build_dataset("toyset", tmp_path / "data", tmp_path / "above") == dataset


def recipe(tool: str) -> str:
    """The code of docs/data.md that converts the export of a tool."""
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    return re.search(rf"^{tool}.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)[1]


def test_an_export_of_cvat_becomes_a_dataset_by_the_recipe(tmp_path, monkeypatch):
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "car:250,50,83::"]
    for index in range(5):
        for kind, suffix, pixels in (
            ("JPEGImages", "jpg", noise(12, 16, index)),
            ("SegmentationClass", "png", np.array([[0, 0, 0], [250, 50, 83]], np.uint8)[IDS // 2]),
        ):
            path = tmp_path / "export" / kind / f"{index}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (tmp_path / "export/labelmap.txt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    exec(recipe("Pascal VOC and CVAT"), {})
    ids = labels(tmp_path / "mine", tmp_path, "val")["4"]
    np.testing.assert_array_equal(ids, IDS // 2)


@pytest.mark.parametrize(
    ("path", "tool"),
    [
        ("SegmentationClass/a.png", "Pascal VOC or CVAT"),
        ("labelmap.txt", "CVAT"),
        ("annotations/instances_default.json", "COCO"),
    ],
)
def test_exports_of_other_tools_are_recognised(path, tool, tmp_path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).touch()
    with pytest.raises(DataError, match=f"looks like an export of {tool}: docs/data.md says how"):
        check(tmp_path, tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_a_build_refuses_or_changes_the_check_names(tmp_path):
    """Of what `tests.soak.check_superset` tries; another share with another seed."""
    for seed, fault in enumerate(random.Random(2).sample(FAULTS, 16)):
        verdict = try_fault(fault, seed, tmp_path / fault.__name__)
        assert verdict.is_right, verdict


def test_images_in_no_split_are_named(folder, tmp_path):
    shutil.copy(folder / "images/train/a.jpg", folder / "images/a.jpg")
    assert check(folder, tmp_path).warnings == ["left out: 1 in no split: images/a.jpg"]


@pytest.mark.parametrize("name", [None, 7, "", "sky"])
def test_classes_have_names_of_their_own(name, folder, tmp_path):
    write_classes(
        folder, classes=[*CLASSES["classes"][:2], {**CLASSES["classes"][2], "name": name}]
    )
    with pytest.raises(DataError, match=r"the class 'sky' is there twice|is no class name"):
        check(folder, tmp_path)


def test_names_of_a_benchmark_that_are_not_utf_8_are_refused(tmp_path):
    root = replicas.write("camvid", tmp_path / "camvid")
    image = min((root / "images/train").iterdir())
    for path in (image, root / "annotations/train" / f"{image.stem}.png"):
        os.rename(path, os.fsencode(path.parent) + b"/\xe9" + path.suffix.encode())
    builder = make_builder("camvid", tmp_path, root, allow_partial=True)
    (problem,) = survey(builder.scan(), builder.spec).problems
    assert "\\xe9" in problem and "the name is not UTF-8" in problem
    with pytest.raises(DataError, match="the name is not UTF-8; rename the file"):
        build_dataset("camvid", tmp_path / "data", root, allow_partial=True)


def test_a_generated_dataset_takes_no_source_for_both(folder, tmp_path):
    for make in (make_builder, build_dataset):
        with pytest.raises(ValueError, match="'shapes' is generated and takes no source"):
            make("shapes", tmp_path / "data", folder)


def test_lists_of_a_benchmark_as_windows_writes_them(tmp_path):
    root = replicas.write("pascal_context", tmp_path / "pascal")
    for path in root.rglob("*.txt"):
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-8-sig"))
    listing = make_builder("pascal_context", tmp_path, root, allow_partial=True).scan()
    assert not listing.problems and len(listing.readers["train"]) == 3
