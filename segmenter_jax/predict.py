"""Segments pictures: the `Predictor`, and the command line for files and folders.

python -m segmenter_jax.predict MODEL photo.jpg folder/ -o overlays/
"""

import argparse
import collections
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from segmenter_jax.checkpoints.model_dir import (
    ModelDescription,
    load_model,
    resolve_model_dir,
)
from segmenter_jax.command import (
    FAILED,
    add_protocol_flags,
    one_line,
    protocol_overrides,
    run_command,
    use_compilation_cache,
)
from segmenter_jax.data.images import decode_image
from segmenter_jax.inference import InferenceSettings, Request, SlidingWindow, make_request
from segmenter_jax.models import Segmenter
from segmenter_jax.visualize import legend, overlay, palette_image

Picture = np.ndarray | Image.Image | str | os.PathLike

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SAVED = ("overlay", "ids", "palette")


def model_settings(description: ModelDescription, **overrides: Any) -> InferenceSettings:
    """A model's own inference settings, single scale.

    Args:
      description: of the model.
      **overrides: fields of `InferenceSettings`. A window given without a stride keeps the stride
        if it fits, and else does not overlap.
    """
    fields = {
        "window": description.window,
        "stride": description.stride,
        "base_size": description.base_size,
        "aspect_bound": description.aspect_bound,
    }
    if "window" in overrides:
        fields["stride"] = min(description.stride, overrides["window"])
    return InferenceSettings(**(fields | overrides))


class Predictor:
    """A trained model ready for pictures; see `load`.

    Pictures are paths, PIL images, or arrays: uint8 (H, W), (H, W, 1), (H, W, 3), (H, W, 4), of
    which the fourth channel is dropped, or (H, W, C) for a model with C channels.

    Attributes:
      description: what the model directory says.
      model: the network.
      params: its parameters, on the devices.
    """

    def __init__(
        self,
        description: ModelDescription,
        params: Any,
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Places the parameters on the devices.

        Args:
          description: of the model.
          params: the tree under "params".
          devices: of this process; None takes all of them.
        """
        self.description = description
        self._devices = devices
        self.model = Segmenter(description.model)
        self.params = self.engine().place(params)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.description.classes

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """One (red, green, blue) in 0..255 per class."""
        return self.description.colors

    def engine(self, **overrides: Any) -> SlidingWindow:
        """The inference engine with the model's settings, or others; see `model_settings`."""
        return SlidingWindow(
            self.model,
            model_settings(self.description, **overrides),
            mean=self.description.mean,
            std=self.description.std,
            devices=self._devices,
        )

    def predict(self, pictures: Picture | Iterable[Picture], **overrides: Any) -> Any:
        """Class ids of one picture or of several.

        Args:
          pictures: one picture, a list or tuple of them, or any other iterable.
          **overrides: fields of `InferenceSettings`, for example `scales` and `flip`.

        Returns:
          int32 (H, W) at the picture's own size; a list of them for a list or tuple; an iterator
          over them, reading as it goes, for any other iterable.

        Raises:
          ValueError: a picture cannot be read or is not what the model takes.
        """
        return self._apply(pictures, "ids", np.int32, overrides)

    def predict_probs(self, pictures: Picture | Iterable[Picture], **overrides: Any) -> Any:
        """As `predict`, but class probabilities, float32 (H, W, K)."""
        return self._apply(pictures, "probs", np.float32, overrides)

    def overlay(self, picture: Picture, alpha: float = 0.5, **overrides: Any) -> Image.Image:
        """The picture with its classes painted over.

        Args:
          picture: one picture.
          alpha: weight of the class colours, 0..1.
          **overrides: fields of `InferenceSettings`.
        """
        image = self.read(picture)
        ids = self.predict(image, **overrides)
        return Image.fromarray(overlay(image, ids, self.colors, alpha))

    def stream(
        self, requests: Iterable[Request], outputs: tuple[str, ...] = ("ids",), **overrides: Any
    ) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """Runs requests; see `SlidingWindow.run`."""
        return self.engine(**overrides).run(self.params, requests, outputs)

    def read(self, picture: Picture) -> np.ndarray:
        """Decodes a picture to uint8 (H, W, C) as the model takes it.

        Raises:
          ValueError: it cannot be read, or has another type or number of channels.
          OSError: there is no such file.
        """
        channels = self.description.model.in_channels
        if isinstance(picture, str | os.PathLike):
            path = pathlib.Path(picture).expanduser()
            return decode_image(path.read_bytes(), os.fspath(picture), channels=channels)
        if isinstance(picture, Image.Image):
            mode = {1: "L", 3: "RGB"}.get(channels)
            picture = ImageOps.exif_transpose(picture)
            picture = np.asarray(picture.convert(mode) if mode else picture)
        return _channels_of(np.asarray(picture), channels)

    def _apply(
        self,
        pictures: Picture | Iterable[Picture],
        output: str,
        dtype: type,
        overrides: dict[str, Any],
    ) -> Any:
        single = isinstance(pictures, str | os.PathLike | Image.Image) or hasattr(
            pictures, "__array__"
        )
        images = ({"image": self.read(p)} for p in ([pictures] if single else pictures))
        results = self.engine(**overrides).predict(self.params, images, (output,))
        arrays = (maps[output].astype(dtype, copy=False) for _, maps in results)
        if single:
            return next(arrays)
        return list(arrays) if isinstance(pictures, list | tuple) else arrays


def _channels_of(image: np.ndarray, channels: int) -> np.ndarray:
    if image.dtype != np.uint8:
        raise ValueError(f"arrays must be uint8 with values in 0..255, got {image.dtype}")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim == 3 and image.shape[2] == 1 and channels == 3:
        image = np.repeat(image, 3, axis=2)
    if image.ndim == 3 and image.shape[2] == 4 and channels == 3:
        image = image[..., :3]
    if image.ndim != 3 or image.shape[2] != channels:
        raise ValueError(f"arrays must be (H, W, {channels}) for this model, got {image.shape}")
    return image


def read_model(path: os.PathLike | str) -> tuple[ModelDescription, Any]:
    """Description and parameters of any model that `load` takes."""
    try:
        resolve_model_dir(path)
    except ValueError:
        if not os.path.exists(os.path.expanduser(path)):
            raise
        # Readers of foreign formats are needed here only.
        from segmenter_jax.convert import load_any

        return load_any(path)
    return load_model(path)


def load(path: os.PathLike | str, *, devices: Sequence[jax.Device] | None = None) -> Predictor:
    """Loads a model for prediction.

    Args:
      path: a model directory, the workdir of a run, or a checkpoint of another project that has a
        decoder, converted on the fly.
      devices: of this process; None takes all of them.

    Raises:
      ValueError: no model is there, or it is damaged.
    """
    return Predictor(*read_model(path), devices=devices)


def planned_outputs(inputs: Sequence[str]) -> dict[pathlib.Path, pathlib.PurePath]:
    """What to read, and the name of its results without suffix, relative to the output folder.

    Args:
      inputs: files, and folders, whose pictures are taken recursively and mirrored.

    Returns:
      A mapping in the order of the inputs, folders sorted.

    Raises:
      ValueError: an input does not exist, a folder has no pictures, or two files would have the
        same results.
    """
    found: dict[pathlib.Path, pathlib.PurePath] = {}
    for name in inputs:
        path = pathlib.Path(name).expanduser()
        if not path.is_dir():
            if not path.exists():
                raise ValueError(f"{name}: no such file or folder")
            found[path] = pathlib.PurePath(path.name)
            continue
        pictures = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not pictures:
            raise ValueError(f"{name}: no pictures in this folder ({', '.join(IMAGE_SUFFIXES)})")
        found |= {p: p.relative_to(path) for p in pictures}

    stems = collections.Counter(relative.with_suffix("") for relative in found.values())
    planned = {}
    for path, relative in found.items():
        stem = relative.with_suffix("")
        if stems[stem] > 1:
            stem = stem.with_name(f"{stem.name}_{relative.suffix[1:]}")
        planned[path] = stem
    taken: dict[pathlib.PurePath, pathlib.Path] = {}
    for path, stem in planned.items():
        if stem in taken:
            raise ValueError(f"{taken[stem]} and {path} would both write {stem}")
        taken[stem] = path
    return planned


class _Writer:
    """Writes the results of one picture after the other, and remembers the classes seen."""

    def __init__(self, predictor: Predictor, folder: pathlib.Path, saved: set[str], alpha: float):
        self._predictor, self._folder, self._saved, self._alpha = predictor, folder, saved, alpha
        self._seen = np.zeros(len(predictor.classes), bool)

    def write(self, stem: pathlib.PurePath, image: np.ndarray, ids: np.ndarray) -> None:
        self._seen[np.unique(ids)] = True
        colors = self._predictor.colors
        if "overlay" in self._saved:
            picture = Image.fromarray(overlay(image, ids, colors, self._alpha))
            picture.save(self._path("overlay", stem, ".jpg"), quality=92)
        if "ids" in self._saved:
            path = self._path("ids", stem, ".png")
            if not cv2.imwrite(str(path), ids.astype(np.uint8 if ids.max() < 256 else np.uint16)):
                raise OSError(f"{path}: cannot be written")
        if "palette" in self._saved:
            palette_image(ids, colors).save(self._path("palette", stem, ".png"))

    def write_legend(self) -> None:
        present = np.flatnonzero(self._seen).tolist()
        predictor = self._predictor
        columns = 1 + len(present) // 30
        picture = legend(present, predictor.classes, predictor.colors, columns)
        picture.save(self._folder / "legend.png")

    def _path(self, kind: str, stem: pathlib.PurePath, suffix: str) -> pathlib.Path:
        path = self._folder / kind / stem.with_name(stem.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _command(arguments: argparse.Namespace) -> int:
    use_compilation_cache()
    planned = planned_outputs(arguments.inputs)
    predictor = load(arguments.model)
    overrides = protocol_overrides(arguments)
    settings = model_settings(predictor.description, **overrides)
    folder = pathlib.Path(arguments.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(predictor, folder, set(arguments.save), arguments.alpha)
    failures = []
    bar = tqdm(total=len(planned), unit="image", disable=None)

    def requests() -> Iterator[Request]:
        for path, stem in planned.items():
            try:
                example = {"image": predictor.read(path), "stem": stem}
                yield make_request(example, settings, predictor.description.model.in_channels)
            except (ValueError, OSError) as error:
                failures.append(path)
                bar.update()
                message = one_line(error)
                text = message if str(path) in message else f"{path}: {message}"
                tqdm.write(f"skipped: {text}", file=sys.stderr)

    with bar:
        for example, maps in predictor.stream(requests(), **overrides):
            writer.write(example["stem"], example["image"], maps["ids"])
            bar.update()
    done = len(planned) - len(failures)
    if done:
        writer.write_legend()
    print(f"{done} of {len(planned)} images segmented into {folder} ({settings.protocol()})")
    return FAILED if failures else 0


def _saved_list(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(SAVED)):
        raise argparse.ArgumentTypeError(f"unknown results {unknown}; choose from {SAVED}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.predict",
        description="Segments pictures. OUTPUT gets the folders overlay/, ids/ (class ids as grey "
        "values) and palette/ (class ids that show in their colours), and legend.png. A file that "
        "cannot be read is reported and skipped; the exit code is then 1.",
    )
    parser.add_argument("model", help="model directory, workdir of a run, or checkpoint")
    parser.add_argument("inputs", nargs="+", help="files, or folders, which are mirrored")
    parser.add_argument("-o", "--output", required=True, help="folder of the results")
    parser.add_argument(
        "--save",
        type=_saved_list,
        default=("overlay", "ids"),
        help=f"results to write, of {','.join(SAVED)}; default: overlay,ids",
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the colours, 0..1")
    add_protocol_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
