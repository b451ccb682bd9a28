"""A trained model ready for pictures."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import numpy as np
from PIL import Image, ImageOps

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import load_model
from segmenter_jax.data.images import decode_image, to_8_bits
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.models import Segmenter
from segmenter_jax.pictures import overlay
from segmenter_jax.runtime.files import place, read_bytes

Picture = np.ndarray | Image.Image | str | os.PathLike


class Predictor:
    """A trained model ready for pictures; see `load`.

    Pictures are paths, PIL images, or arrays: uint8 (H, W), (H, W, 1), (H, W, 3), (H, W, 4), of
    which the fourth channel is dropped, or (H, W, C) for a model with C channels.

    Attributes:
      description: what the model directory says.
      model: the network.
      params: its parameters, on the devices, in the types that the network uses them in.
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
        self._engines: dict[InferenceSettings, SlidingWindow] = {}
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
        """The inference engine with the model's settings, or others: see `InferenceSettings.of`."""
        d, settings = self.description, InferenceSettings.of(self.description, **overrides)
        if settings not in self._engines:
            self._engines[settings] = SlidingWindow(
                self.model, settings, mean=d.mean, std=d.std, devices=self._devices
            )
        return self._engines[settings]

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
        return self._apply(pictures, ("ids",), overrides, lambda maps: maps["ids"])

    def predict_probs(self, pictures: Picture | Iterable[Picture], **overrides: Any) -> Any:
        """As `predict`, but class probabilities, float32 (H, W, K)."""
        return self._apply(pictures, ("probs",), overrides, lambda maps: maps["probs"])

    def predict_maps(
        self,
        pictures: Picture | Iterable[Picture],
        outputs: Sequence[str],
        *,
        top_k: int = 1,
        **overrides: Any,
    ) -> Any:
        """As `predict`, but several maps of each picture at once; probabilities stay on the device.

        Args:
          pictures: see `predict`.
          outputs: of "ids", "probs", "confidence", "entropy", "top_ids" and "top_probs", see
            `SlidingWindow.predict`.
          top_k: classes of "top_ids" and "top_probs", most probable first.
          **overrides: fields of `InferenceSettings`.

        Returns:
          A dictionary of arrays for each picture; ids are int32.
        """
        return self._apply(pictures, tuple(outputs), overrides, lambda maps: maps, top_k)

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

    def read(self, picture: Picture) -> np.ndarray:
        """Decodes a picture to uint8 (H, W, C) as the model takes it.

        Raises:
          ValueError: it cannot be read, or has another type or number of channels.
          OSError: there is no such file.
        """
        if isinstance(picture, str | os.PathLike):
            name = os.fspath(picture)
            return self.decode(read_bytes(place(name)), name)
        channels = self.description.model.in_channels
        if isinstance(picture, Image.Image):
            picture = _pixels_of(ImageOps.exif_transpose(picture), channels)
        return _channels_of(np.asarray(picture), channels)

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """As `read`, of an encoded picture; `name` is for errors."""
        return decode_image(data, name, channels=self.description.model.in_channels)

    def _apply(
        self,
        pictures: Picture | Iterable[Picture],
        outputs: tuple[str, ...],
        overrides: dict[str, Any],
        pick: Callable[[dict[str, np.ndarray]], Any],
        top_k: int = 1,
    ) -> Any:
        single = isinstance(pictures, str | os.PathLike | Image.Image) or hasattr(
            pictures, "__array__"
        )
        several = cast(Iterable[Picture], [pictures] if single else pictures)
        images = ({"image": self.read(picture)} for picture in several)
        results = self.engine(**overrides).predict(self.params, images, outputs, top_k)
        picked = (pick(_with_int32_ids(maps)) for _, maps in results)
        if single:
            return next(picked)
        return list(picked) if isinstance(pictures, list | tuple) else picked


def _with_int32_ids(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: values.astype(np.int32, copy=False) if name in ("ids", "top_ids") else values
        for name, values in maps.items()
    }


def _pixels_of(picture: Image.Image, channels: int) -> np.ndarray:
    if picture.mode in ("F", "I"):
        raise ValueError("32-bit pictures are not supported (8 or 16 bits per channel are)")
    if picture.mode.startswith("I;16"):
        # Pillow's conversion to 8 bits saturates instead of scaling.
        return to_8_bits(np.asarray(picture))
    mode = {1: "L", 3: "RGB"}.get(channels)
    return np.asarray(picture.convert(mode) if mode else picture)


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


def read_model(path: os.PathLike | str, **options: Any) -> tuple[ModelDescription, Any]:
    """Description and parameters of any model that `load` takes, with the options of `load`."""
    from segmenter_jax.conversion.locate import locate

    place = locate(path)
    if place.is_model and not options:
        return load_model(place.path)
    # Readers of foreign formats are needed here only.
    from segmenter_jax.conversion.convert import ConvertOptions, convert

    description, params, _ = convert(place, ConvertOptions(**options))
    return description, params


def load(
    path: os.PathLike | str, *, devices: Sequence[jax.Device] | None = None, **options: Any
) -> Predictor:
    """Loads a model for prediction.

    Args:
      path: a model directory, the workdir of a run, or a checkpoint of another project, converted
        on the fly; also as "hf://owner/name@revision", on the Hugging Face hub.
      devices: of this process; None takes all of them.
      **options: what the checkpoint does not say, as fields of `conversion.convert.ConvertOptions`:
        `normalization`, `num_heads`, `num_classes`, ...

    Raises:
      ValueError: no model is there, or it is damaged.
    """
    return Predictor(*read_model(path, **options), devices=devices)
