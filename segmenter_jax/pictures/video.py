"""Videos and animated GIFs, frame by frame."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image, ImageSequence

from segmenter_jax.runtime.errors import DataError
from segmenter_jax.runtime.files import write_whole

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


@contextlib.contextmanager
def write_video(
    path: os.PathLike | str, frame_rate: float
) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes a video, which exists under its name only once the block has ended well.

    MP4 files have even sides: a last row or column is repeated where a side is odd.

    Args:
      path: ends in ".mp4" or ".gif".
      frame_rate: frames per second.

    Yields:
      What appends a frame, uint8 (H, W, 3), RGB; all have one size, and there is at least one.

    Raises:
      ValueError: the name ends otherwise.
      OSError: the file cannot be written.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in WRITTEN_SUFFIXES:
        raise ValueError(f"{path}: videos are written as {' or '.join(WRITTEN_SUFFIXES)}")
    with write_whole(path) as part:
        if suffix == ".gif":
            # With a palette each, frames wait for the end at a byte per pixel.
            frames: list[Image.Image] = []
            yield lambda frame: frames.append(Image.fromarray(frame).quantize(256))
            timing = {"duration": round(1000 / frame_rate), "loop": 0}
            frames[0].save(part, save_all=True, append_images=frames[1:], **timing)
        else:
            writer = cv2.VideoWriter()
            try:
                yield functools.partial(_append_mp4, writer, part, frame_rate)
            finally:
                writer.release()


def _append_mp4(
    writer: cv2.VideoWriter, path: os.PathLike, frame_rate: float, frame: np.ndarray
) -> None:
    height, width = frame.shape[:2]
    frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    if not writer.isOpened():
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        if not writer.open(os.fspath(path), codec, frame_rate, frame.shape[1::-1]):
            raise OSError(f"{path}: cannot be written")
    writer.write(np.ascontiguousarray(frame[..., ::-1]))


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
