"""Videos and animated GIFs, frame by frame."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from types import TracebackType

import cv2
import numpy as np
from PIL import Image, ImageSequence

from segmenter_jax.runtime.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".webm", ".mov", ".avi", ".mkv", ".gif")
WRITTEN_SUFFIXES = (".mp4", ".gif")

# For files that do not say; GIF viewers take this for a frame time of 0.
_DEFAULT_RATE = 10.0


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a video's header says.

    Attributes:
      num_frames: 0 where the container does not say; of some it is an estimate.
      frame_rate: frames per second.
    """

    num_frames: int
    frame_rate: float


def video_info(path: os.PathLike | str) -> VideoInfo:
    """Reads the header of a video.

    Raises:
      DataError: the file is no video that can be read.
    """
    if _is_gif(path):
        with _open_gif(path) as gif:
            milliseconds = gif.info.get("duration", 0)
            rate = 1000 / milliseconds if milliseconds else _DEFAULT_RATE
            return VideoInfo(getattr(gif, "n_frames", 1), rate)
    capture = _open_capture(path)
    try:
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = capture.get(cv2.CAP_PROP_FPS)
        return VideoInfo(max(count, 0), rate if 0 < rate < 1000 else _DEFAULT_RATE)
    finally:
        capture.release()


def read_frames(path: os.PathLike | str) -> Iterator[np.ndarray]:
    """Decodes a video.

    Yields:
      Frames, uint8 (H, W, 3), RGB.

    Raises:
      DataError: the file is no video that can be read, or holds no frame.
    """
    count = 0
    for frame in _gif_frames(path) if _is_gif(path) else _captured_frames(path):
        count += 1
        yield frame
    if not count:
        raise DataError(f"{path}: no frame of this video can be decoded")


class VideoWriter:
    """Writes a video that exists under its name only when it is complete.

    As a context manager; on an exception nothing is left behind. MP4 files have even sides: a last
    row or column is repeated where a side is odd.
    """

    def __init__(self, path: os.PathLike | str, frame_rate: float):
        """Checks the name; the file is opened with the first frame.

        Args:
          path: ends in ".mp4" or ".gif".
          frame_rate: frames per second.

        Raises:
          ValueError: the name ends otherwise.
        """
        self._path = pathlib.Path(path)
        if self._path.suffix not in WRITTEN_SUFFIXES:
            raise ValueError(f"{path}: videos are written as {' or '.join(WRITTEN_SUFFIXES)}")
        self._rate = frame_rate
        self._partial = self._path.with_name(f".partial_{self._path.name}")
        self._gif_frames: list[Image.Image] = []
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "VideoWriter":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, uint8 (H, W, 3), RGB; all have one size."""
        if self._path.suffix == ".gif":
            # With a palette each, a frame waits for the end at a byte per pixel.
            self._gif_frames.append(Image.fromarray(frame).quantize(256))
            return
        height, width = frame.shape[:2]
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            size = frame.shape[1::-1]
            self._writer = cv2.VideoWriter(str(self._partial), codec, self._rate, size)
            if not self._writer.isOpened():
                raise OSError(f"{self._path}: cannot be written")
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None and self._gif_frames:
            first, *rest = self._gif_frames
            milliseconds = round(1000 / self._rate)
            first.save(
                self._partial, save_all=True, append_images=rest, duration=milliseconds, loop=0
            )
        if kind is None and self._partial.exists():
            self._partial.replace(self._path)
        self._partial.unlink(missing_ok=True)


def _is_gif(path: os.PathLike | str) -> bool:
    return pathlib.Path(path).suffix.lower() == ".gif"


def _open_gif(path: os.PathLike | str) -> Image.Image:
    try:
        return Image.open(path)
    # Pillow's plugins raise whatever their parsers meet in damaged headers.
    except Exception as error:
        raise DataError(f"{path}: not a readable GIF ({error})") from error


def _gif_frames(path: os.PathLike | str) -> Iterator[np.ndarray]:
    with _open_gif(path) as gif:
        frames = ImageSequence.Iterator(gif)
        while True:
            try:
                frame = np.asarray(next(frames).convert("RGB"))
            except StopIteration:
                return
            except Exception as error:
                raise DataError(f"{path}: truncated or corrupt GIF ({error})") from error
            yield frame


def _open_capture(path: os.PathLike | str) -> cv2.VideoCapture:
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    capture = cv2.VideoCapture(os.fspath(path))
    if not capture.isOpened():
        raise DataError(f"{path}: not a readable video")
    return capture


def _captured_frames(path: os.PathLike | str) -> Iterator[np.ndarray]:
    capture = _open_capture(path)
    try:
        while True:
            decoded, frame = capture.read()
            if not decoded:
                return
            yield np.ascontiguousarray(frame[..., ::-1])
    finally:
        capture.release()
