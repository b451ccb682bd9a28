"""Records to training crops and evaluation examples, on the host.

The geometry of training (random scale, class-limited crop, flip, padding) happens here on uint8;
colour and normalisation are left to the device.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from segmenter_jax.data.images import decode_image
from segmenter_jax.data.labels import decode_label, unpack_ids
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.runtime.errors import DataError

# Number of times a crop that fails the class limit is drawn again.
_CROP_REDRAWS = 10
# A warp costs about four times a resize per pixel, so it pays when the crop is a smaller part.
_WARP_COST = 4

Record = Mapping[str, Any]


def rescaled_size(
    height: int, width: int, base_size: int, aspect_bound: float, factor: float
) -> tuple[int, int]:
    """Largest size of the same aspect ratio that fits the scaled base box.

    The box has the long side `aspect_bound * base_size * factor` and the short side
    `base_size * factor`, both truncated to whole pixels.

    Args:
      height: image height in pixels.
      width: image width in pixels.
      base_size: short side of the box in pixels, at factor 1.
      aspect_bound: long side of the box over its short side.
      factor: scale of the box.

    Returns:
      (height, width) in pixels, each rounded half up and at least 1.

    Source: mmseg's `Resize` and mmcv's `imrescale`, which the reference uses.
    """
    if min(height, width, base_size) < 1 or aspect_bound < 1 or factor <= 0:
        raise ValueError(
            "sizes must be positive, aspect_bound at least 1 and factor positive, got "
            f"{height=}, {width=}, {base_size=}, {aspect_bound=}, {factor=}"
        )
    long_side = int(aspect_bound * base_size * factor)
    short_side = int(base_size * factor)
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def decode_record(record: Record, spec: DatasetSpec) -> tuple[np.ndarray, np.ndarray]:
    """Decodes both parts of a record.

    Args:
      record: `image` and `label` as encoded bytes, `name` for errors, and `label_ids` where the
        label was packed when the dataset was built.
      spec: the dataset's classes and channels.

    Returns:
      Image, uint8 (H, W, C), and label in trained ids, uint8 (H, W).

    Raises:
      DataError: see `decode_image`, `decode_label`, `unpack_ids`; or their sizes differ.
    """
    name = record["name"]
    if "label" not in record:
        raise DataError(f"{name}: the record has no label")
    image = decode_image(record["image"], name, channels=spec.channels, strict=False)
    label = read_label(record, spec)
    if image.shape[:2] != label.shape:
        raise DataError(f"{name}: image {image.shape[:2]} and label {label.shape} differ in size")
    return image, label


def read_label(record: Record, spec: DatasetSpec) -> np.ndarray:
    """Label of a record in trained ids, uint8 (H, W); see `decode_record`."""
    if "label_ids" in record:
        return unpack_ids(record["label_ids"], record["name"])
    return decode_label(record["label"], spec, record["name"])


def _nearest(length: int, resized: int) -> np.ndarray:
    """Pixel of the original that each of a resized axis shows, as OpenCV's nearest has it."""
    positions = np.arange(resized) * (1.0 / (resized / length))
    return np.minimum(positions.astype(np.intp), length - 1)


def resize_crop(
    image: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]
) -> np.ndarray:
    """Bilinear resize followed by a crop, paying only for the pixels of the crop.

    Args:
      image: uint8 (H, W, C).
      size: (height, width) of the whole resized image.
      box: (top, left, height, width) of the crop within it, in pixels of the resized image.

    Returns:
      uint8 (crop height, crop width, C), within one grey level of the crop of
      `cv2.resize(image, ...)`: half-pixel centres, no antialiasing, edges clamped.
    """
    top, left, height, width = box
    if size == image.shape[:2]:
        crop = image[top : top + height, left : left + width]
    elif size[0] * size[1] < _WARP_COST * height * width:
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        crop = resized[top : top + height, left : left + width]
    else:
        scale_y, scale_x = image.shape[0] / size[0], image.shape[1] / size[1]
        crop = cv2.warpAffine(
            image,
            np.array(
                [
                    [scale_x, 0.0, (left + 0.5) * scale_x - 0.5],
                    [0.0, scale_y, (top + 0.5) * scale_y - 0.5],
                ]
            ),
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return crop.reshape(height, width, image.shape[2])


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Record -> random training crop.

    In order: resize to the base box scaled by a random factor, random crop that shows at least two
    classes and none over `category_max_ratio` of the counted pixels (up to 10 redraws, then the
    last), horizontal flip, padding at the bottom and right.

    Attributes:
      spec: the dataset's classes and channels.
      crop_size: side of the crop in pixels.
      base_size: short side of the base box in pixels.
      aspect_bound: long side of the base box over its short side.
      scale_range: range of the uniform factor on the base box.
      category_max_ratio: share of one class from which on a crop is redrawn; 1 switches it off.
      flip_prob: probability of the flip.
    """

    spec: DatasetSpec
    crop_size: int
    base_size: int
    aspect_bound: float
    scale_range: tuple[float, float] = (0.5, 2.0)
    category_max_ratio: float = 0.75
    flip_prob: float = 0.5

    def __post_init__(self):
        if self.crop_size < 1 or self.base_size < 1 or self.aspect_bound < 1:
            raise ValueError(
                f"crop_size={self.crop_size}, base_size={self.base_size} and "
                f"aspect_bound={self.aspect_bound} must all be at least 1"
            )
        factors = self.scale_range
        numbers = all(isinstance(factor, int | float) for factor in factors)
        if len(factors) != 2 or not numbers or not 0 < factors[0] <= factors[1]:
            raise ValueError(
                f"scale_range={factors} must be two numbers (low, high) with 0 < low <= high"
            )
        if not 0 < self.category_max_ratio <= 1 or not 0 <= self.flip_prob <= 1:
            raise ValueError(
                f"category_max_ratio={self.category_max_ratio} must lie in (0, 1] and "
                f"flip_prob={self.flip_prob} in [0, 1]"
            )

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws one crop.

        Args:
          record: `image` and `label` as encoded bytes, `name`.
          rng: source of all randomness.

        Returns:
          `image` uint8 (crop, crop, C) with 0 in the padding, `label` uint8 (crop, crop) with
          `ignore_label` there, `valid_size` int32 (2,): height and width of what is not padding.
        """
        image, label = decode_record(record, self.spec)
        factor = rng.uniform(*self.scale_range)
        size = rescaled_size(*label.shape, self.base_size, self.aspect_bound, factor)
        box, label = self._draw_crop(label, size, rng)
        image = resize_crop(image, size, box)
        if rng.random() < self.flip_prob:
            # Copying a view with reversed columns takes OpenCV's time tenfold.
            image, label = cv2.flip(image, 1).reshape(image.shape), cv2.flip(label, 1)
        return self._pad(image, label)

    def _draw_crop(
        self, label: np.ndarray, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[tuple[int, int, int, int], np.ndarray]:
        """Box of a crop in the resized image, see `resize_crop`, and the label there."""
        height, width = (min(side, self.crop_size) for side in size)
        rows, columns = (_nearest(*sides) for sides in zip(label.shape, size, strict=True))
        for _ in range(1 + _CROP_REDRAWS):
            top = int(rng.integers(size[0] - height + 1))
            left = int(rng.integers(size[1] - width + 1))
            # Whole rows are copied fast, so columns are taken as rows of the transposed crop.
            part = cv2.transpose(label[rows[top : top + height]])
            crop = cv2.transpose(part[columns[left : left + width]])
            if self._accepts(crop):
                break
        return (top, left, height, width), crop

    def _accepts(self, label: np.ndarray) -> bool:
        if self.category_max_ratio == 1:
            return True
        # Exact in its float32 up to crops of 4096 pixels, and faster than NumPy's counting.
        counts = cv2.calcHist([label], [0], None, [256], [0, 256])[: self.spec.num_classes]
        # Strictly below, as in the reference.
        return np.count_nonzero(counts) > 1 and bool(
            counts.max() < self.category_max_ratio * counts.sum()
        )

    def _pad(self, image: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
        height, width = label.shape
        if height == width == self.crop_size:
            return {
                "image": np.ascontiguousarray(image),
                "label": np.ascontiguousarray(label),
                "valid_size": np.array([height, width], np.int32),
            }
        padded_image = np.zeros((self.crop_size, self.crop_size, image.shape[2]), np.uint8)
        padded_image[:height, :width] = image
        padded_label = np.full((self.crop_size, self.crop_size), self.spec.ignore_label, np.uint8)
        padded_label[:height, :width] = label
        return {
            "image": padded_image,
            "label": padded_label,
            "valid_size": np.array([height, width], np.int32),
        }


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Record -> image and label at their own size.

    Attributes:
      spec: the dataset's classes and channels.
    """

    spec: DatasetSpec

    def __call__(self, record: Record) -> dict[str, Any]:
        """Decodes one record.

        Args:
          record: `image` and `label` as encoded bytes, `name`.

        Returns:
          `image` uint8 (H, W, C), `label` uint8 (H, W) in trained ids, `name`.
        """
        image, label = decode_record(record, self.spec)
        return {"image": image, "label": label, "name": record["name"]}


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Record -> image at its own size; the label, if there is one, is left alone.

    Attributes:
      spec: the dataset's channels.
    """

    spec: DatasetSpec

    def __call__(self, record: Record) -> dict[str, Any]:
        """Decodes one record.

        Args:
          record: `image` as encoded bytes, `name`.

        Returns:
          `image` uint8 (H, W, C), `name`.
        """
        name = record["name"]
        image = decode_image(record["image"], name, channels=self.spec.channels, strict=False)
        return {"image": image, "name": name}
