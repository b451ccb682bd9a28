"""Decoded copies of splits: pixels instead of encoded files, for loaders that decoding holds back.

`decoded/SPLIT` inside a built dataset holds `pixels.bin`, the image and then the label in trained
ids of every record, uint8 one after the other, and `index.json`, where they lie. It is found by
being there, and goes when the dataset is built again.
"""

import functools
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segmenter_jax.runtime.errors import DataError

_FOLDER, _PIXELS, _INDEX = "decoded", "pixels.bin", "index.json"


class DecodedSource:
    """Random access to the decoded records of one split.

    Maps its file when first read and travels to worker processes as a path.

    Args:
      folder: as `write_decoded` makes it.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def __getstate__(self) -> Path:
        return self._folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)

    @functools.cached_property
    def _index(self) -> dict[str, list[Any]]:
        return json.loads((self._folder / _INDEX).read_text(encoding="utf-8"))

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        shapes = np.array(self._index["shapes"], np.int64)
        return np.concatenate([[0], np.cumsum(_record_size(shapes.T))])

    @functools.cached_property
    def _pixels(self) -> np.ndarray:
        path = self._folder / _PIXELS
        if path.stat().st_size != self._starts[-1]:
            raise DataError(f"{path}: has {path.stat().st_size} bytes, not {self._starts[-1]}")
        return np.asarray(np.memmap(path, np.uint8, mode="r"))

    def __len__(self) -> int:
        return len(self._index["names"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` uint8 (H, W, C), `label` uint8 (H, W), both read-only; and `name`."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {self._folder} with {len(self)} records")
        height, width, channels = self._index["shapes"][index]
        start, end = self._starts[index : index + 2]
        middle = end - height * width
        pixels = self._pixels
        return {
            "image": pixels[start:middle].reshape(height, width, channels),
            "label": pixels[middle:end].reshape(height, width),
            "name": self._index["names"][index],
        }

    def __repr__(self) -> str:
        return f"DecodedSource({str(self._folder)!r})"


def decoded_folder(directory: Path, split: str) -> Path:
    """Where the decoded copy of a split lies, if there is one.

    Args:
      directory: of the built dataset.
      split: name of the split.
    """
    return directory / _FOLDER / split


def write_decoded(folder: Path, examples: Iterable[Mapping[str, Any]]) -> None:
    """Writes the decoded copy of a split, whole or not at all.

    Args:
      folder: where it goes; nothing may be there.
      examples: `image` uint8 (H, W, C), `label` in trained ids, uint8 (H, W), and `name`.
    """
    folder.parent.mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".build_", dir=folder.parent))
    names, shapes = [], []
    try:
        with (staging / _PIXELS).open("wb") as file:
            for example in examples:
                names.append(example["name"])
                shapes.append(example["image"].shape)
                for part in ("image", "label"):
                    file.write(np.ascontiguousarray(example[part]).data)
        index = json.dumps({"names": names, "shapes": shapes})
        (staging / _INDEX).write_text(index, encoding="utf-8")
        staging.chmod(0o755)
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging)
        raise


def _record_size(shape: np.ndarray) -> np.ndarray:
    """Bytes of records with image shapes (3, N): height, width, channels."""
    height, width, channels = shape
    return height * width * (channels + 1)
