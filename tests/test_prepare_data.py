"""The command line that builds and checks datasets."""

import hashlib
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from segmenter_jax import prepare_data
from segmenter_jax.commands.prepare_data import fetch_ade20k
from segmenter_jax.configs import common
from segmenter_jax.data.datasets import DATA_DIR, open_dataset
from segmenter_jax.data.survey import records_of, survey
from tests.data import replicas
from tests.data.conftest import encode, noise

COLORS = ((0, 0, 255), (90, 90, 90), (255, 0, 0))


@pytest.fixture
def folder(tmp_path):
    """A good folder dataset of three classes 0..2 with 20 training and 2 validation pairs."""
    root = tmp_path / "mine"
    for split, count in (("train", 20), ("val", 2)):
        for i in range(count):
            for kind, suffix, content in (
                ("images", "jpg", encode(replicas.image(100 * count + i), "JPEG")),
                ("annotations", "png", encode(replicas.label(i, [0, 1, 2, 255]))),
            ):
                path = root / kind / split / f"{i:02d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    classes = [
        {"id": i, "name": name, "color": color}
        for i, (name, color) in enumerate(zip(("sky", "road", "car"), COLORS, strict=True))
    ]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    return root


def check(folder, *options):
    return prepare_data.main(["check", "--source", str(folder), "--name", "mine", *options])


def test_check_of_a_good_folder(folder, tmp_path, capsys):
    assert check(folder, "--contact_sheet", str(tmp_path / "sheet.png")) == 0
    output = capsys.readouterr()
    assert "train: 20 records, height 48..48 (median 48), width 64..64 (median 64)" in output.out
    assert re.search(r"0  sky +\d+\.\d+ % +20 img +\d+\.\d+ % +2 img\n", output.out)
    assert output.out.endswith("no problems\n")
    # 12 of the training images and both others, 4 in a row of boxes of 240 pixels.
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width // 240 == 4 and height // 180 == 4


def plant_faults(root) -> dict[str, str]:
    """Breaks a folder in many ways; returns what must be said by the file that it names."""
    images, labels = root / "images/train", root / "annotations/train"
    label = replicas.label(0, [0, 1, 2])
    (labels / "00.png").write_bytes(encode(np.where(label == 2, 9, label).astype(np.uint8)))
    (labels / "01.png").write_bytes(encode(label.T.copy()))
    (labels / "02.png").unlink()
    (images / "03.jpg").unlink()
    (images / "04.jpg").write_bytes((images / "04.jpg").read_bytes()[:-40])
    (images / "05.jpg").write_bytes(b"")
    (labels / "06.png").write_bytes(encode(noise(48, 64)))
    (labels / "07.png").write_bytes(encode(label, "JPEG"))
    (labels / "08.png").unlink()
    (labels / "08.jpg").write_bytes(encode(label, "JPEG"))
    (labels / "09.png").write_bytes(encode(label.astype(np.uint16) * 1000 + 24000))
    damaged = bytearray((labels / "10.png").read_bytes())
    damaged[60] ^= 0xFF
    (labels / "10.png").write_bytes(damaged)
    (labels / "11.png").write_bytes(encode(np.maximum(label, 1) + np.uint8(1)))
    renumbered = Image.fromarray(label, "P")
    renumbered.putpalette(np.array([COLORS[1], COLORS[0], COLORS[2]], np.uint8).tobytes())
    renumbered.save(labels / "12.png")
    (images / "13.png").write_bytes((images / "13.jpg").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    (labels / "14.png").write_bytes(encode(label, exif=exif))
    (images / "15.jpg").write_bytes(encode(noise(64, 48), "JPEG"))
    (root / "images/test").mkdir()
    (root / "annotations/test").mkdir()
    header = encode(np.zeros((1, 1), np.uint8))
    chunk = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + header[24:29]
    huge = header[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + header[33:]
    (images / "16.jpg").write_bytes(huge)
    return {
        "annotations/train/00.png": "label value 9 (",
        "annotations/train/01.png": "the label is 64 x 48 pixels",
        "images/train/02.jpg": "no label annotations/train/02.png",
        "annotations/train/03.png": "no image images/train/03 with one of",
        "images/train/04.jpg": "truncated or corrupt JPEG",
        "images/train/05.jpg": "not a readable image (0 bytes)",
        "annotations/train/06.png": "colours are no ids",
        "annotations/train/07.png": "is a JPEG file, but a PNG, TIFF, BMP, PGM or GIF image",
        "annotations/train/08.jpg": "labels must be PNG, TIFF, BMP, PGM or GIF files; lossy compr",
        "annotations/train/09.png": "values above 255 are instance ids",
        "annotations/train/10.png": "truncated or corrupt PNG image (broken PNG file",
        "annotations/train/11.png": "the labels look one-based",
        "annotations/train/12.png": "an editor has renumbered the palette",
        "images/train/13.png": "13.jpg has the same stem",
        "annotations/train/14.png": "the label has an EXIF orientation",
        "annotations/train/15.png": "but its image images/train/15.jpg is 64 x 48",
        "images/test": "the split is empty",
        "images/train/16.jpg": "over the limit of",
    }


def test_check_lists_every_planted_fault(folder, capsys):
    faults = plant_faults(folder)
    assert len(faults) >= 15
    assert check(folder) == 1
    output = capsys.readouterr()
    lines = output.err.partition("problems:\n")[2].splitlines()
    for file, message in faults.items():
        assert [x for x in lines if x.startswith(f"  {file}: ") and message in x], (file, lines)
    assert len(lines) == len(faults)
    assert f"\n{len(faults)} problems:\n" in output.err


def test_check_warns_of_absent_classes_and_images_in_two_splits(folder, capsys):
    for path in (folder / "annotations").rglob("*.png"):
        path.write_bytes(encode(replicas.label(0, [0, 1, 255])))
    (folder / "images/val/00.jpg").write_bytes((folder / "images/train/07.jpg").read_bytes())
    assert check(folder) == 0
    error = capsys.readouterr().err
    assert "warning: classes that no label shows: car" in error
    assert (
        "warning: images/val/00.jpg: the same image as images/train/07.jpg, in another split"
        in error
    )


def test_raw_cityscapes_ids_in_a_folder_are_explained(folder, capsys):
    fields = json.loads((folder / "classes.json").read_text())
    fields["classes"] = [{"id": i, "name": str(i), "color": [i, i, i]} for i in range(19)]
    (folder / "classes.json").write_text(json.dumps(fields))
    (folder / "annotations/train/03.png").write_bytes(encode(replicas.label(1, [7, 26, 33])))
    assert check(folder) == 1
    assert "03.png: label value 26, 33" in (error := capsys.readouterr().err)
    assert "these look like raw Cityscapes ids (labelIds)" in error


def test_shifted_ade20k_labels_are_explained(tmp_path, capsys):
    root = replicas.write("ade20k", tmp_path / "source")
    path = root / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    path.write_bytes(encode(replicas.label(1, [0, 7, 149, 255])))
    arguments = ["--source", str(root), "--name", "ade20k", "--allow_partial"]
    assert prepare_data.main(["check", *arguments]) == 1
    assert "the labels look shifted already" in capsys.readouterr().err


def test_check_compares_the_counts_of_a_benchmark(tmp_path, capsys):
    root = replicas.write("cityscapes", tmp_path / "source")
    assert prepare_data.main(["check", "--source", str(root), "--name", "cityscapes"]) == 1
    error = capsys.readouterr().err
    assert "split 'train' has 3 records, the published cityscapes has 2975" in error
    assert "split 'test' has 1 records, the published cityscapes has 1525" in error


@pytest.mark.parametrize("name", replicas.NAMES)
def test_building_reports_and_can_be_checked_again(name, tmp_path, capsys):
    source = replicas.write_zipped(name, tmp_path / "source")
    data_dir = ["--data_dir", str(tmp_path / "data")]
    arguments = [name, "--source", str(source), "--allow_partial", *data_dir]
    assert prepare_data.main(arguments) == 0
    output = capsys.readouterr().out
    for split, count in replicas.SPLITS[name].items():
        assert f"{split}: {count} records, height 48..48" in output
    sheet = tmp_path / "data" / name / "1.0.0" / "contact_sheet.png"
    assert f"overlays to look at: {sheet}" in output and Image.open(sheet).size[0] > 960
    assert prepare_data.main(["check", "--name", name, *data_dir]) == 0
    assert prepare_data.main(["list", *data_dir]) == 0
    assert f"built in {tmp_path / 'data'}: {name}\n" in capsys.readouterr().out


def test_histogram_counts_pixels_and_images(folder, tmp_path):
    arguments = ["folder", "--name", "mine", "--source", str(folder), "--data_dir", str(tmp_path)]
    assert prepare_data.main(arguments) == 0
    dataset = open_dataset("mine", tmp_path)
    result = survey(records_of(dataset), dataset.spec)
    labels = np.stack([replicas.label(i, [0, 1, 2, 255]) for i in range(20)])
    statistics = result.splits["train"]
    assert statistics.class_pixels.tolist() == [(labels == i).sum() for i in range(3)]
    assert statistics.class_images.tolist() == [20, 20, 20]
    assert statistics.ignored_pixels == (labels == 255).sum()


def test_runs_look_for_datasets_where_they_are_built():
    assert common.get_config().dataset.data_dir == DATA_DIR


def test_missing_source_says_where_the_files_come_from(capsys):
    assert prepare_data.main(["cityscapes"]) == 1
    error = capsys.readouterr().err
    assert "--source is missing: log in at https://www.cityscapes-dataset.com" in error
    assert "gtFine_trainvaltest.zip" in error


def test_download_is_verified_and_then_used(tmp_path, monkeypatch, capsys):
    archive = replicas.write_zipped("ade20k", tmp_path / "server") / "ADEChallengeData2016.zip"
    fetched = []

    def fetch(url, path):
        fetched.append(url)
        path.write_bytes(archive.read_bytes())

    monkeypatch.setenv("SEGMENTER_JAX_CACHE", str(tmp_path / "cache/weights"))
    monkeypatch.setattr("segmenter_jax.commands.prepare_data.download", fetch)
    assert prepare_data.main(["ade20k", "--download", "--data_dir", str(tmp_path / "data")]) == 1
    assert "that of the published archive is 219e1696abb36c8ba3a3afe7fb2f4b4606a897c7" in (
        capsys.readouterr().err
    )
    digest = hashlib.sha1(archive.read_bytes()).hexdigest()
    assert fetch_ade20k(digest).read_bytes() == archive.read_bytes()
    assert fetched == ["http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"]
