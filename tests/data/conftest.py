"""Small encoded images and a folder dataset that tests may break."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter_jax.data.specs import DatasetSpec

CLASSES = {
    "classes": [
        {"id": 0, "name": "sky", "color": [0, 0, 255]},
        {"id": 1, "name": "road", "color": [90, 90, 90]},
        {"id": 4, "name": "car", "color": [255, 0, 0]},
    ],
    "ignore_ids": [11, 255],
}


def encode(array: np.ndarray, image_format: str = "PNG", mode: str | None = None, **save) -> bytes:
    """Encodes an array with Pillow."""
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, image_format, **save)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def three_classes() -> DatasetSpec:
    return DatasetSpec("toy", ("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder dataset: 3 training pairs (one in a subfolder) and 2 validation pairs."""
    root = tmp_path / "toyset"
    rng = np.random.default_rng(1)
    files = {"train": ("a.jpg", "city/b.png", "c.bmp"), "val": ("a.webp", "d.tif")}
    for split, names in files.items():
        for name in names:
            image = root / "images" / split / name
            label = (root / "annotations" / split / name).with_suffix(".png")
            image.parent.mkdir(parents=True, exist_ok=True)
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(12, 16)).save(image)
            ids = rng.choice([0, 1, 4, 11, 255], (12, 16)).astype(np.uint8)
            Image.fromarray(ids).save(label)
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root
