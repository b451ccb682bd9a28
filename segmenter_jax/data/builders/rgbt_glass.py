"""Glass in pairs of colour and thermal images, stored as images of four channels."""

import io
import zipfile
from pathlib import PurePosixPath

import cv2
import numpy as np

from segmenter_jax.data import specs
from segmenter_jax.data.builders.base import RawRecord
from segmenter_jax.data.builders.benchmark import Benchmark, Paths
from segmenter_jax.data.images import decode_image
from segmenter_jax.runtime.errors import DataError

_RGB, _THERMAL, _MASK = "rgb.png", "temperature.npy", "mask.png"


class RGBTGlass(Benchmark, skip_registration=True):
    """RGB-T glass segmentation.

    A record's image is a PNG whose fourth channel is the thermal image, see `join_thermal`.
    """

    dataset_spec = specs.RGBT_GLASS
    layout = f"{{train,test}}/SCENE/IMAGE/{{{_RGB},{_THERMAL},{_MASK}}}"

    def find_files(self, problems: list[str]) -> tuple[Paths, Paths]:
        """See `layout`; records are named SCENE/IMAGE."""
        folder = "(?P<split>train|test)/(?P<name>[^/]+/[^/]+)"
        images = self.match(f"{folder}/{_RGB}", problems)
        labels = self.match(f"{folder}/{_MASK}", problems)
        for paths in images.values():
            for path in paths.values():
                if _sibling(path, _THERMAL) not in self._files:
                    problems.append(f"{path}: no {_THERMAL} beside it")
        return images, labels

    def companions(self, images: Paths) -> dict[str, Paths]:
        """The thermal images."""
        found = {
            split: {
                name: thermal
                for name, path in paths.items()
                if (thermal := _sibling(path, _THERMAL)) in self._files
            }
            for split, paths in images.items()
        }
        return {"thermal": found}

    def read(self, name: str, image: str, label: str | None) -> RawRecord:
        """Reads one record and joins its two images."""
        record = super().read(name, image, label)
        thermal = _sibling(image, _THERMAL)
        joined = join_thermal(record.image, self._files.read(thermal), image, thermal)
        return RawRecord(name, joined, record.label, image, label)


def join_thermal(
    rgb: bytes, thermal: bytes, rgb_name: str = "the image", thermal_name: str = "the thermal image"
) -> bytes:
    """Joins a colour and a thermal image to a PNG of four channels, which models here read.

    Args:
      rgb: an encoded colour image of H x W pixels.
      thermal: a .npy file with numbers (H, W) or (H, W, 1); they are scaled to 0..255 between the
        image's own smallest and largest value.
      rgb_name, thermal_name: names for messages.

    Returns:
      An encoded PNG, (H, W, 4): red, green, blue, thermal.

    Raises:
      DataError: one of the two cannot be decoded, or their sizes differ.
    """
    pixels = decode_image(rgb, rgb_name)
    values = _read_npy(thermal, thermal_name)
    if values.shape != pixels.shape[:2]:
        raise DataError(
            f"{thermal_name}: shape {values.shape}, but its image {rgb_name} has "
            f"{pixels.shape[:2]} pixels (height, width)"
        )
    low, high = float(values.min()), float(values.max())
    scaled = np.rint((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
    joined = np.dstack([pixels[..., ::-1], scaled])
    return cv2.imencode(".png", joined)[1].tobytes()


def _read_npy(data: bytes, name: str) -> np.ndarray:
    """Finite numbers (H, W), float64; never unpickles."""
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: not a readable .npy file ({error})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise DataError(f"{name}: not an array of numbers")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not values.size:
        raise DataError(f"{name}: shape {values.shape}, but (height, width) is expected")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{name}: holds values that are not finite")
    return values


def _sibling(path: str, name: str) -> str:
    return str(PurePosixPath(path).with_name(name))
