"""Small replicas of the benchmark datasets, in the exact layout of their official files."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.conftest import encode

HEIGHT, WIDTH = 48, 64

# Values that label files of each dataset may hold, and the trained id of each.
LABEL_VALUES = {
    "ade20k": {0: 255, 1: 0, 2: 1, 150: 149},
    "cityscapes": {0: 255, 3: 255, 7: 0, 11: 2, 26: 13, 33: 18},
    "pascal_context": {0: 0, 1: 1, 15: 15, 59: 59},
    "camvid": {0: 0, 3: 3, 10: 10, 11: 255},
    "rgbt_glass": {0: 0, 1: 1},
}
NAMES = tuple(LABEL_VALUES)
# Records by split of each replica.
SPLITS = {
    "ade20k": {"test": 1, "train": 3, "validation": 2},
    "cityscapes": {"test": 1, "train": 3, "validation": 2},
    "pascal_context": {"train": 3, "validation": 2},
    "camvid": {"train": 3, "validation": 2},
    "rgbt_glass": {"test": 2, "train": 3},
}


def image(seed: int) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def label(seed: int, values: list[int]) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH), blocks that hold every value."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(values, (HEIGHT // 8) * (WIDTH // 8)).astype(np.uint8)
    blocks[: len(values)] = values
    return rng.permutation(blocks).reshape(HEIGHT // 8, -1).repeat(8, 0).repeat(8, 1)


def write(name: str, root: Path) -> Path:
    """Writes a replica and returns its folder."""
    for path, content in FILES[name]().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def write_zipped(name: str, root: Path) -> Path:
    """Writes the archives of a replica and returns what to give as source."""
    root.mkdir(parents=True)
    files = FILES[name]()
    for archive, top in ARCHIVES[name].items():
        with zipfile.ZipFile(root / archive, "w") as target:
            for path, content in files.items():
                if path.startswith(top):
                    target.writestr(path, content)
    return root if len(ARCHIVES[name]) > 1 else root / archive


def _label_png(name: str, seed: int) -> bytes:
    return encode(label(seed, list(LABEL_VALUES[name])))


def _ade20k() -> dict[str, bytes]:
    files = {}
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(count):
            stem = f"{split}/ADE_{short}_{i + 1:08d}"
            root = "ADEChallengeData2016"
            files[f"{root}/images/{stem}.jpg"] = encode(image(i), "JPEG")
            files[f"{root}/annotations/{stem}.png"] = _label_png("ade20k", i)
    files["ADEChallengeData2016/sceneCategories.txt"] = b"ADE_train_00000001 airport\n"
    files["release_test/testing/ADE_test_00000001.jpg"] = encode(image(9), "JPEG")
    return files


def _cityscapes() -> dict[str, bytes]:
    files = {}
    for split, city, count in (("train", "aachen", 3), ("val", "lindau", 2), ("test", "bonn", 1)):
        for i in range(count):
            stem = f"{split}/{city}/{city}_{i:06d}_000019"
            files[f"leftImg8bit/{stem}_leftImg8bit.png"] = encode(image(i))
            # The labels of the test split are dummies.
            ids = label(i, list(LABEL_VALUES["cityscapes"])) * (split != "test")
            files[f"gtFine/{stem}_gtFine_labelIds.png"] = encode(ids)
            files[f"gtFine/{stem}_gtFine_instanceIds.png"] = encode(ids.astype(np.uint16) * 1000)
            files[f"gtFine/{stem}_gtFine_color.png"] = encode(image(i))
    files["leftImg8bit/README"] = b"see www.cityscapes-dataset.com"
    return files


def _pascal_context() -> dict[str, bytes]:
    files = {}
    root = "VOCdevkit/VOC2010"
    for split, count in (("train", 3), ("val", 2)):
        stems = [f"2008_{len(split)}0000{i}" for i in range(count)]
        for i, stem in enumerate(stems):
            files[f"{root}/JPEGImages/{stem}.jpg"] = encode(image(i), "JPEG")
            files[f"{root}/SegmentationClassContext/{stem}.png"] = _label_png("pascal_context", i)
        listed = "\n".join(stems) + "\n"
        files[f"{root}/ImageSets/SegmentationContext/{split}.txt"] = listed.encode()
    # Most images of VOC are in neither list.
    files[f"{root}/JPEGImages/2010_000001.jpg"] = encode(image(7), "JPEG")
    return files


def _camvid() -> dict[str, bytes]:
    files = {}
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            files[f"images/{split}/0001TP_{i:06d}.jpg"] = encode(image(i), "JPEG")
            files[f"annotations/{split}/0001TP_{i:06d}.png"] = _label_png("camvid", i)
    return files


def _rgbt_glass() -> dict[str, bytes]:
    files = {}
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            folder = f"{split}/office/{i:03d}"
            buffer = io.BytesIO()
            np.save(buffer, 290 + image(i + 50)[..., 0] / np.float32(16))
            files[f"{folder}/rgb.png"] = encode(image(i))
            files[f"{folder}/temperature.npy"] = buffer.getvalue()
            files[f"{folder}/mask.png"] = _label_png("rgbt_glass", i)
    return files


FILES = {
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "pascal_context": _pascal_context,
    "camvid": _camvid,
    "rgbt_glass": _rgbt_glass,
}
ARCHIVES = {
    "ade20k": {
        "ADEChallengeData2016.zip": "ADEChallengeData2016/",
        "release_test.zip": "release_test/",
    },
    "cityscapes": {
        "leftImg8bit_trainvaltest.zip": "leftImg8bit/",
        "gtFine_trainvaltest.zip": "gtFine/",
    },
    "pascal_context": {"VOCdevkit.zip": ""},
    "camvid": {"camvid.zip": ""},
    "rgbt_glass": {"glass.zip": ""},
}


def read_png(data: bytes) -> np.ndarray:
    """Decodes with Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)))
