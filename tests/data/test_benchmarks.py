"""Every published dataset from a replica of its official files, as folder and as archive."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter_jax.data.builders.files import MAX_FILE_BYTES, SourceFiles
from segmenter_jax.data.datasets import build_dataset, open_dataset
from segmenter_jax.data.labels import decode_label, unpack_ids
from segmenter_jax.data.pipeline import eval_examples, train_batches
from segmenter_jax.data.specs import BENCHMARKS
from segmenter_jax.data.transforms import EvalTransform, ImageTransform, TrainTransform
from segmenter_jax.runtime.errors import DataError
from tests.conftest import GOLDEN
from tests.data import replicas
from tests.data.conftest import encode, noise

EVAL_SPLITS = {name: "validation" for name in replicas.NAMES} | {"rgbt_glass": "test"}


def build(name: str, data_dir: Path, source: Path, **options):
    return build_dataset(name, data_dir, source, allow_partial=True, **options)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("name", replicas.NAMES)
def test_replica_builds_and_feeds_training_and_evaluation(name, kind, tmp_path):
    writer = replicas.write if kind == "folder" else replicas.write_zipped
    dataset = build(name, tmp_path / "data", writer(name, tmp_path / "source"))
    assert dataset.splits == replicas.SPLITS[name]
    spec = dataset.spec
    assert spec == BENCHMARKS[name]

    source = dataset.source(EVAL_SPLITS[name])
    with eval_examples(source, EvalTransform(spec), num_threads=0) as examples:
        for i, example in enumerate(examples):
            raw = replicas.label(i, list(replicas.LABEL_VALUES[name]))
            expected = np.vectorize(replicas.LABEL_VALUES[name].get)(raw)
            np.testing.assert_array_equal(example["label"], expected)
            assert example["image"].shape == (*raw.shape, spec.channels)
    assert i + 1 == len(source)

    transform = TrainTransform(spec, crop_size=40, base_size=48, aspect_bound=4.0)
    options = {"global_batch_size": 2, "seed": 0, "num_threads": 0}
    with train_batches(dataset.source("train"), transform, **options) as batches:
        batch = next(batches)
    assert batch["image"].shape == (2, 40, 40, spec.channels)
    assert set(np.unique(batch["label"])) <= {*replicas.LABEL_VALUES[name].values(), 255}


@pytest.mark.parametrize("name", replicas.NAMES)
def test_archive_and_folder_are_the_same_source(name, tmp_path):
    folder = replicas.write(name, tmp_path / "folder")
    archive = replicas.write_zipped(name, tmp_path / "zip")
    build(name, tmp_path / "data", folder)
    first = open_dataset(name, tmp_path / "data", archive)
    build(name, tmp_path / "other", archive)
    second = open_dataset(name, tmp_path / "other", folder)
    for split in first.splits:
        ours, theirs = (d.source(split, needs_labels=False) for d in (first, second))
        assert [ours[i] for i in range(len(ours))] == [theirs[i] for i in range(len(theirs))]


@pytest.mark.parametrize("name", replicas.NAMES)
def test_changed_benchmark_source_is_noticed(name, tmp_path):
    folder = replicas.write(name, tmp_path / "folder")
    build(name, tmp_path / "data", folder)
    image = [path for path in sorted(folder.rglob("*")) if path.suffix in (".jpg", ".png")][-1]
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(DataError, match=f"dataset '{name}' in .* differs: files were added"):
        open_dataset(name, tmp_path / "data", folder)


@pytest.mark.parametrize("name", [n for n in replicas.NAMES if n != "rgbt_glass"])
def test_counts_are_those_published(name, tmp_path):
    folder = replicas.write(name, tmp_path / "folder")
    with pytest.raises(DataError, match=rf"split 'train' has 3 records, the published {name} has"):
        build_dataset(name, tmp_path / "data", folder)
    assert not (tmp_path / "data").exists()


def test_original_bytes_are_stored(tmp_path):
    folder = replicas.write("ade20k", tmp_path / "folder")
    source = build("ade20k", tmp_path / "data", folder).source("train")
    root = folder / "ADEChallengeData2016"
    record = source[1]
    packed = record.pop("label_ids")
    label = decode_label(record["label"], BENCHMARKS["ade20k"], "label")
    np.testing.assert_array_equal(unpack_ids(packed, "label"), label)
    assert record == {
        "image": (root / "images/training/ADE_train_00000002.jpg").read_bytes(),
        "label": (root / "annotations/training/ADE_train_00000002.png").read_bytes(),
        "name": "ADE_train_00000002",
    }


@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_split_without_labels_predicts_and_refuses_scores(name, tmp_path):
    dataset = build(name, tmp_path / "data", replicas.write(name, tmp_path / "folder"))
    assert dataset.unlabelled == ("test",)
    with pytest.raises(ValueError, match=f"split 'test' of dataset '{name}' has no labels: it can"):
        dataset.source("test")
    source = dataset.source("test", needs_labels=False)
    assert source[0].keys() == {"image", "name"}
    example = ImageTransform(dataset.spec)(source[0])
    assert example["image"].shape == (replicas.HEIGHT, replicas.WIDTH, 3)
    with pytest.raises(DataError, match=f"{source[0]['name']}: the record has no label"):
        EvalTransform(dataset.spec)(source[0])


def test_cityscapes_from_train_ids(tmp_path):
    folder = replicas.write("cityscapes", tmp_path / "folder")
    lookup = BENCHMARKS["cityscapes"].label_lookup()
    for path in list(folder.rglob("*_labelIds.png")):
        ids = lookup[np.asarray(Image.open(path))]
        Image.fromarray(ids).save(str(path).replace("labelIds", "labelTrainIds"))
        path.unlink()
    dataset = build("cityscapes", tmp_path / "data", folder)
    label = EvalTransform(dataset.spec)(dataset.source("validation")[1])["label"]
    expected = lookup[replicas.label(1, list(replicas.LABEL_VALUES["cityscapes"]))]
    np.testing.assert_array_equal(label, expected)


def test_pascal_context_without_background(tmp_path):
    folder = replicas.write("pascal_context", tmp_path / "folder")
    dataset = build("pascal_context_59", tmp_path / "data", folder)
    assert dataset.spec.num_classes == 59 and dataset.spec.class_names[0] == "aeroplane"
    label = EvalTransform(dataset.spec)(dataset.source("train")[0])["label"]
    assert set(np.unique(label)) == {0, 14, 58, 255}


def test_glass_has_the_thermal_image_as_fourth_channel(tmp_path):
    folder = replicas.write("rgbt_glass", tmp_path / "folder")
    # Masks of 0 and 255 mean the same as those of 0 and 1.
    mask = folder / "test/office/000/mask.png"
    Image.fromarray(np.asarray(Image.open(mask)) * np.uint8(255)).save(mask)
    dataset = build("rgbt_glass", tmp_path / "data", folder)
    example = EvalTransform(dataset.spec)(dataset.source("test")[0])
    assert example["name"] == "office/000"
    np.testing.assert_array_equal(example["image"][..., :3], replicas.image(0))
    heat = replicas.image(50)[..., 0].astype(float)
    scaled = (heat - heat.min()) / (heat.max() - heat.min()) * 255
    np.testing.assert_allclose(example["image"][..., 3], scaled, atol=0.51)
    np.testing.assert_array_equal(example["label"], replicas.label(0, [0, 1]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((48, 63)), r"temperature\.npy: shape \(48, 63\), but its image .*rgb\.png has"),
        (np.zeros((48, 64, 3)), r"shape \(48, 64, 3\), but \(height, width\) is expected"),
        (np.full((48, 64), np.nan), "holds values that are not finite"),
        (np.array([{}], object), r"not a readable \.npy file \(Object arrays cannot be loaded"),
        (np.array([["a"]]), "not an array of numbers"),
    ],
)
def test_wrong_thermal_images(array, message, tmp_path):
    folder = replicas.write("rgbt_glass", tmp_path / "folder")
    np.save(folder / "train/office/001/temperature.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        build("rgbt_glass", tmp_path / "data", folder)


def test_changed_thermal_image_is_noticed(tmp_path):
    folder = replicas.write("rgbt_glass", tmp_path / "folder")
    build("rgbt_glass", tmp_path / "data", folder)
    np.save(folder / "test/office/000/temperature.npy", np.ones((48, 64), np.float64))
    with pytest.raises(DataError, match="files were added, removed or changed in size"):
        build("rgbt_glass", tmp_path / "data", folder)


def test_missing_thermal_image(tmp_path):
    folder = replicas.write("rgbt_glass", tmp_path / "folder")
    (folder / "train/office/001/temperature.npy").unlink()
    with pytest.raises(DataError, match=r"001/rgb\.png: no temperature\.npy beside it"):
        build("rgbt_glass", tmp_path / "data", folder)


def test_ade20k_sample_has_the_right_classes_by_name(tmp_path):
    dataset = build("ade20k", tmp_path / "data", GOLDEN / "ade20k_sample")
    source = dataset.source("validation")
    seen = {}
    for i in range(3):
        example = EvalTransform(dataset.spec)(source[i])
        counts = np.bincount(example["label"].ravel(), minlength=256)[:150]
        order = np.argsort(-counts)[:4]
        seen[example["name"]] = [dataset.spec.class_names[j].split(",")[0] for j in order]
    # The three photographs show a church by a lawn, a house and an escalator by a road.
    assert seen == {
        "ADE_val_00000001": ["sky", "building", "grass", "wall"],
        "ADE_val_00000002": ["sky", "building", "tree", "wall"],
        "ADE_val_00000003": ["road", "sky", "sidewalk", "escalator"],
    }


def test_unbuilt_benchmark_says_how_to_build_it(tmp_path):
    with pytest.raises(ValueError, match=r"'ade20k' is not built in .*prepare_data ade20k"):
        build_dataset("ade20k", tmp_path)


def test_empty_source_says_what_is_expected(tmp_path):
    for name in replicas.NAMES:
        with pytest.raises(DataError, match=r"(no images found; expected|0 files ImageSets)"):
            build(name, tmp_path / "data", tmp_path)


def test_unpaired_files_are_all_named(tmp_path):
    folder = replicas.write("ade20k", tmp_path / "folder") / "ADEChallengeData2016"
    (folder / "annotations/training/ADE_train_00000001.png").unlink()
    (folder / "images/validation/ADE_val_00000002.jpg").unlink()
    with pytest.raises(DataError) as error:
        build("ade20k", tmp_path / "data", folder)
    message = str(error.value)
    assert "images/training/ADE_train_00000001.jpg: no label" in message
    assert "annotations/validation/ADE_val_00000002.png: no image" in message


def test_train_split_must_not_hold_records_of_a_damaged_archive(tmp_path):
    archive = replicas.write_zipped("camvid", tmp_path / "zip")
    data = bytearray(archive.read_bytes())
    data[200:260] = bytes(60)
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"(cannot be read|not a readable zip archive)"):
        build("camvid", tmp_path / "data", archive)


def add_entry(name: str, content: bytes = b"x", mode: int = 0o100644):
    def write(archive: zipfile.ZipFile) -> None:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, content)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (add_entry("../../evil.png"), "points outside of the archive"),
        (add_entry("/etc/evil.png"), "points outside of the archive"),
        (add_entry("images\\..\\..\\evil.png"), "points outside of the archive"),
        (add_entry("C:/evil.png"), "points outside of the archive"),
        (add_entry("images/link.png", b"/etc/passwd", 0o120777), "is a link"),
    ],
)
def test_archives_are_not_trusted(write, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        write(archive)
    with pytest.raises(DataError, match=rf"evil\.zip: entry .* {message}; refused"):
        SourceFiles(tmp_path / "evil.zip")


def test_archive_bombs_are_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images/bomb.png", "w", force_zip64=True) as entry,
    ):
        for _ in range(MAX_FILE_BYTES // 2**24 + 1):
            entry.write(bytes(2**24))
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match=r"'images/bomb\.png' has \d+ bytes, over the limit of"):
        SourceFiles(path)


def test_hidden_files_are_left_out(tmp_path):
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        for name in ("a/b.png", "__MACOSX/a/b.png", "a/._b.png", ".DS_Store"):
            archive.writestr(name, b"content")
    files = SourceFiles(tmp_path / "mac.zip")
    assert files.paths == ["a/b.png"] and files.read("a/b.png") == b"content"


def trap_scene_parse150(root):
    (root / "scene_parse150/1.0.0").mkdir(parents=True)
    (root / "scene_parse150/1.0.0/dataset_info.json").write_text("{}")


def trap_full_ade20k(root):
    for name in ("ADE_train_1.jpg", "ADE_train_1_seg.png"):
        (root / "images/training/a/abbey").mkdir(parents=True, exist_ok=True)
        (root / "images/training/a/abbey" / name).write_bytes(encode(noise(8, 8)))


def trap_instances(root):
    replicas.write("ade20k", root)
    shutil.move(
        root / "ADEChallengeData2016/annotations",
        root / "ADEChallengeData2016/annotations_instance",
    )


@pytest.mark.parametrize(
    ("trap", "message"),
    [
        (trap_scene_parse150, "TFDS's scene_parse150 holds the instance annotations of 100 class"),
        (trap_full_ade20k, r"_seg\.png: this is the full ADE20K release"),
        (trap_instances, "annotations_instance holds instance annotations"),
    ],
)
def test_traps_of_ade20k_are_explained(trap, message, tmp_path):
    (tmp_path / "source").mkdir()
    trap(tmp_path / "source")
    with pytest.raises(DataError, match=message):
        build("ade20k", tmp_path / "data", tmp_path / "source")


def test_name_of_the_tfds_dataset_is_explained(tmp_path):
    with pytest.raises(ValueError, match="scene_parse150 holds the instance annotations"):
        build_dataset("scene_parse150", tmp_path)


def test_cityscapes_without_class_ids_is_explained(tmp_path):
    folder = replicas.write("cityscapes", tmp_path / "folder")
    for path in folder.rglob("*_labelIds.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no \*_gtFine_labelIds\.png; \*_instanceIds\.png and"):
        build("cityscapes", tmp_path / "data", folder)
