"""Videos and animated GIFs, frame by frame, each with its time."""

import contextlib
import datetime
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageSequence

from segmenter_jax.runtime.buckets import StoreError
from segmenter_jax.runtime.errors import DataError
from segmenter_jax.runtime.files import is_local, open_binary

VIDEO_SUFFIXES = (".mp4", ".m4v", ".webm", ".mov", ".avi", ".mkv", ".gif")

# For files that do not say; GIF viewers take this for a frame time of 0.
_DEFAULT_SECONDS = 0.1


class CutShortError(DataError):
    """A video ends before what its header declares, or frames of it are damaged."""


class Frame(NamedTuple):
    """A picture of a video.

    Attributes:
      image: uint8 (H, W, 3), RGB.
      start: seconds since the start of the first frame.
      duration: seconds; it counts for the last frame, others end where the next one starts.
    """

    image: np.ndarray
    start: float
    duration: float


def declared_frames(path: os.PathLike | str) -> int:
    """How many frames a video's header declares; of some an estimate, 0 where it does not say.

    Raises:
      DataError: the file is no video that can be read.
    """
    if _is_gif(path):
        # Of one that is cut short Pillow raises whatever it meets.
        with _open_gif(path) as gif, contextlib.suppress(Exception):
            return getattr(gif, "n_frames", 1)
        return 0
    with _open_video(path) as container:
        return _declared(container, container.streams.video[0])[0]


def read_frames(path: os.PathLike | str) -> Iterator[Frame]:
    """Decodes a video.

    Yields:
      Its frames, with the times that the file gives them.

    Raises:
      DataError: the file is no video that can be read, or holds no frame.
      CutShortError: after the last frame, if others are missing.
    """
    count = 0
    for frame in _gif_frames(path) if _is_gif(path) else _video_frames(path):
        count += 1
        yield frame
    if not count:
        raise DataError(f"{path}: no frame of this video can be decoded")


def _is_gif(path: os.PathLike | str) -> bool:
    return pathlib.Path(path).suffix.lower() == ".gif"


@contextlib.contextmanager
def _open_gif(path: os.PathLike | str) -> Iterator[Image.Image]:
    _refuse_missing(path)
    with open_binary(path) as file:
        try:
            gif = Image.open(file)
        except StoreError:
            raise
        # Pillow's plugins raise whatever their parsers meet in damaged headers.
        except Exception as error:
            raise DataError(f"{path}: not a readable GIF ({error})") from error
        yield gif


def _gif_frames(path: os.PathLike | str) -> Iterator[Frame]:
    count, start = 0, 0.0
    with _open_gif(path) as gif:
        try:
            for picture in ImageSequence.Iterator(gif):
                image = np.asarray(picture.convert("RGB"))
                duration = picture.info.get("duration", 0) / 1000 or _DEFAULT_SECONDS
                yield Frame(image, start, duration)
                count, start = count + 1, start + duration
            problem = None if _ends_as_gif(path) else "it has no end"
        except StoreError:
            raise
        except Exception as error:
            problem = str(error)
    if problem:
        kind = CutShortError if count else DataError
        raise kind(f"{path}: truncated or corrupt GIF: {count} frames could be read ({problem})")


def _ends_as_gif(path: os.PathLike | str) -> bool:
    """Whether the mark is there that ends a GIF; between frames Pillow takes any end for it."""
    with open_binary(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
        return file.read().rstrip(b"\0\r\n").endswith(b";")


@contextlib.contextmanager
def _open_video(path: os.PathLike | str) -> Iterator[av.container.InputContainer]:
    _refuse_missing(path)
    # A local one it reads itself, which is faster than through Python.
    local = contextlib.nullcontext(os.fspath(path)) if is_local(path) else None
    with local or open_binary(path) as file:
        try:
            container = av.open(file)
        except av.FFmpegError as error:
            raise DataError(f"{path}: not a readable video ({error.strerror})") from error
        with container:
            if not container.streams.video:
                raise DataError(f"{path}: not a readable video (it has no pictures)")
            yield container


def _refuse_missing(path: os.PathLike | str) -> None:
    if is_local(path) and not os.path.isfile(path):
        raise DataError(f"{path}: no such file")


def _declared(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[int, float | None]:
    """Number of frames, and seconds of which some may be missing; 0 and None if unknown."""
    rate = stream.average_rate
    if container.format.name == "avi" and stream.frames and rate:
        # The durations of these come from the size of the file as it is.
        return stream.frames, float(stream.frames / rate)
    if stream.duration:
        seconds = float(stream.duration * stream.time_base)
    elif written := stream.metadata.get("DURATION"):
        seconds = _clock_seconds(written)
    elif container.duration:
        # Sound may be longer than the pictures.
        seconds = container.duration / av.time_base - (len(container.streams) > 1)
    else:
        seconds = None
    return stream.frames or round((seconds or 0) * (rate or 0)), seconds


def _clock_seconds(text: str) -> float | None:
    """Seconds of a text such as 00:01:02.400000000."""
    with contextlib.suppress(ValueError):
        return datetime.datetime.fromisoformat(f"1970-01-01T{text[:15]}+00:00").timestamp()
    return None


def _video_frames(path: os.PathLike | str) -> Iterator[Frame]:
    with _open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        declared, seconds = _declared(container, stream)
        usual = float(1 / stream.average_rate) if stream.average_rate else _DEFAULT_SECONDS
        count = damaged = 0
        first, end = None, 0.0
        for decoded in _decoded(container, stream):
            if decoded is None:
                damaged += 1
                continue
            time = end if decoded.time is None else decoded.time
            first = time if first is None else first
            duration = float((decoded.duration or 0) * stream.time_base) or usual
            image = decoded.to_ndarray(format="rgb24")
            if turns := round(decoded.rotation / 90):
                image = np.ascontiguousarray(np.rot90(image, turns))
            yield Frame(image, time - first, duration)
            count, end = count + 1, time + duration
        # Some formats count from the first frame, others from a start before it.
        missing = 0 if seconds is None else seconds - (end - min(first or 0, 0))
        if count and (damaged or missing > 1.5 * usual):
            about = "" if stream.frames else "about "
            raise CutShortError(
                f"{path}: cut short or damaged: {count} of {about}"
                f"{max(declared, count + damaged)} frames could be read"
            )


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame | None]:
    """Frames in the order they are shown; None for packets that are damaged."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            # What is left cannot be read: the caller finds it missing.
            return
        if packet.is_corrupt:
            yield None
            continue
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            yield None
