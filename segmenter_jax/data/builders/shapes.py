"""Generated scenes: enough of a segmentation problem to see a model learn in minutes on a CPU."""

import functools
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from segmenter_jax.data.builders.base import Listing, RawRecord, SegmentationBuilder
from segmenter_jax.data.specs import SHAPES, DatasetSpec

# Records of each split.
COUNTS = {"train": 800, "validation": 100}
_SEED = 20210
_JPEG_QUALITY = 92


class Shapes(SegmentationBuilder, skip_registration=True):
    """Objects of six kinds on a textured background, with an ignored border around each.

    Args:
      data_dir: where built datasets live.
      counts: number of records by split, of those in `COUNTS`.
    """

    name = "shapes"

    def __init__(self, *, data_dir: Path, counts: Mapping[str, int] = COUNTS):
        self._counts = counts
        super().__init__(data_dir=data_dir)

    @property
    def spec(self) -> DatasetSpec:
        """Classes and label values of the dataset."""
        return SHAPES

    def scan(self) -> Listing:
        """One renderer per record."""
        return Listing(
            {
                split: [functools.partial(_render_record, split, index) for index in range(count)]
                for split, count in self._counts.items()
            }
        )


def _render_record(split: str, index: int) -> RawRecord:
    image, label = render_scene(split, index)
    name = f"{split}_{index:05d}"
    _, jpeg = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )
    _, png = cv2.imencode(".png", label)
    return RawRecord(name, jpeg.tobytes(), png.tobytes(), f"{name}.jpg", f"{name}.png")


def render_scene(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws scene `index` of a split; a pure function of its arguments.

    Args:
      split: "train" or "validation".
      index: number of the scene in its split.

    Returns:
      Image, uint8 (H, W, 3) RGB, and label, uint8 (H, W) with 255 on object borders. H is
      88 to 112, W 112 to 144.
    """
    rng = np.random.default_rng([_SEED, list(COUNTS).index(split), index])
    height, width = int(rng.integers(88, 113)), int(rng.integers(112, 145))
    image = _background(rng, height, width)
    label = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(6, 11))):
        class_id = int(rng.integers(1, SHAPES.num_classes))
        mask = _draw_object(rng, SHAPES.class_names[class_id], height, width)
        rows, columns = np.nonzero(mask)
        image[rows, columns] = _object_colors(rng, SHAPES.colors[class_id], rows, columns)
        label[cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0] = SHAPES.ignore_label
        label[rows, columns] = class_id
    image = cv2.GaussianBlur(image, (3, 3), 0.6) + _noise(rng, image.shape, 6)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return scale * rng.standard_normal(shape, np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Colour ramp with soft blobs, float32 (H, W, 3)."""
    start = rng.uniform(50, 190, 3)
    # Mostly grey, so that colour says something about the class.
    start = start.mean() + 0.35 * (start - start.mean())
    slope, angle = rng.normal(0, 20, 3) + rng.normal(0, 25), rng.uniform(0, 2 * np.pi)
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    ramp = (rows * np.sin(angle) + columns * np.cos(angle)).astype(np.float32)
    coarse = _noise(rng, (height // 8 + 1, width // 8 + 1), 12)
    blobs = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return ramp[..., None] * slope.astype(np.float32) + (
        blobs[..., None] + start.astype(np.float32)
    )


def _object_colors(
    rng: np.random.Generator, color: tuple[int, int, int], rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Colours of one object's N pixels, float64 (N, 3): its class's, shifted, with stripes."""
    base = (np.array(color) + rng.normal(0, 16, 3)) * rng.uniform(0.75, 1.2)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 12)
    stripes = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * (2 * np.pi / period))
    return base + rng.uniform(0, 22) * stripes[:, None]


def _draw_object(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """Mask of one object, uint8 (H, W) of 0 and 1."""
    mask = np.zeros((height, width), np.uint8)
    center = np.array([rng.uniform(0.05, 0.95) * width, rng.uniform(0.05, 0.95) * height])
    radius = rng.uniform(13, 26)
    angle = rng.uniform(0, 2 * np.pi)
    if kind == "disk":
        cv2.circle(mask, _point(center), int(radius), 1, -1)
    elif kind == "ring":
        cv2.circle(mask, _point(center), int(radius), 1, -1)
        cv2.circle(mask, _point(center), int(radius * rng.uniform(0.45, 0.6)), 0, -1)
    elif kind == "stick":
        reach = rng.uniform(1.2, 2.4) * radius * np.array([np.cos(angle), np.sin(angle)])
        thickness = int(rng.integers(4, 7))
        cv2.line(mask, _point(center - reach), _point(center + reach), 1, thickness)
    else:
        cv2.fillPoly(mask, [_outline(rng, kind, center, radius, angle)], 1)
    return mask


def _outline(
    rng: np.random.Generator, kind: str, center: np.ndarray, radius: float, angle: float
) -> np.ndarray:
    """Corners of a polygon, int32 (corners, 2) as (column, row)."""
    if kind == "box":
        half = np.arctan(rng.uniform(0.5, 1.0))
        turns = np.array([half, np.pi - half, np.pi + half, -half])
        radii = np.full(4, radius)
    elif kind == "triangle":
        turns = np.arange(3) * (2 * np.pi / 3) + rng.uniform(-0.25, 0.25, 3)
        radii = np.full(3, 1.15 * radius)
    else:
        turns = np.arange(10) * (np.pi / 5)
        radii = np.where(np.arange(10) % 2, 0.48, 1.15) * radius
    directions = np.stack([np.cos(turns + angle), np.sin(turns + angle)], axis=1)
    return np.rint(center + radii[:, None] * directions).astype(np.int32)


def _point(position: np.ndarray) -> tuple[int, int]:
    return round(float(position[0])), round(float(position[1]))
