"""Videos and animated GIFs, frame by frame, each with its time."""

import contextlib
import datetime
import os
import pathlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageSequence

from segmenter_jax.runtime.errors import DataError
from segmenter_jax.runtime.files import is_local, open_binary, write_whole

VIDEO_SUFFIXES = (".mp4", ".m4v", ".webm", ".mov", ".avi", ".mkv", ".gif")
WRITTEN_SUFFIXES = (".mp4", ".gif")

# For files that do not say; GIF viewers take this for a frame time of 0.
_DEFAULT_SECONDS = 0.1

# A multiple of the usual frame rates, of 1000 and of 90000: their times need no rounding.
_TICKS_PER_SECOND = 360_000

# A GIF says 1/100 s, in 16 bits.
_GIF_TICKS_PER_SECOND = 100
_GIF_MOST_TICKS = 65535


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


@contextlib.contextmanager
def write_video(path: os.PathLike | str) -> Iterator[Callable[[Frame], None]]:
    """Writes a video, which exists under its name only once the block has ended well.

    MP4 files have even sides: a last row or column is repeated where a side is odd. GIF files say
    times in hundredths of a second, to which starts are rounded; of frames that then start at once
    the last stays.

    Args:
      path: ends in ".mp4" or ".gif".

    Yields:
      What appends a frame; all have one size, there is at least one, and starts increase.

    Raises:
      ValueError: the name ends otherwise.
      OSError: the file cannot be written.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in WRITTEN_SUFFIXES:
        raise ValueError(f"{path}: videos are written as {' or '.join(WRITTEN_SUFFIXES)}")
    with write_whole(path) as part:
        if suffix == ".gif":
            gif = _GifWriter()
            yield gif.append
            gif.save(part)
        else:
            mp4 = _Mp4Writer(part)
            with contextlib.closing(mp4):
                yield mp4.append
            if (found := declared_frames(part)) != mp4.count:
                raise OSError(f"{path}: {found} of {mp4.count} written frames are in the file")


class _GifWriter:
    """Keeps frames until the end, with a palette each: at a byte per pixel."""

    def __init__(self) -> None:
        self._frames: dict[int, Image.Image] = {}
        self._end = 0

    def append(self, frame: Frame) -> None:
        start, end = (
            round(_GIF_TICKS_PER_SECOND * t) for t in (frame.start, frame.start + frame.duration)
        )
        self._frames[start], self._end = Image.fromarray(frame.image).quantize(256), end

    def save(self, path: os.PathLike) -> None:
        ticks = np.diff([*self._frames, self._end]).clip(0, _GIF_MOST_TICKS)
        milliseconds = (1000 // _GIF_TICKS_PER_SECOND * ticks).tolist()
        first, *rest = self._frames.values()
        first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0)


class _Mp4Writer:
    """Encodes frames into an MP4 file.

    Attributes:
      count: frames appended.
    """

    def __init__(self, path: os.PathLike) -> None:
        self._container = av.open(os.fspath(path), "w")
        self._stream: av.VideoStream | None = None
        self._durations: dict[int, int] = {}
        self._last = -1
        self.count = 0

    def append(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        image = np.pad(frame.image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._open_stream(*image.shape[:2])
        encoded = av.VideoFrame.from_ndarray(image, format="rgb24")
        # The encoder refuses times that stand still.
        self._last = max(round(_TICKS_PER_SECOND * frame.start), self._last + 1)
        encoded.pts, encoded.time_base = self._last, Fraction(1, _TICKS_PER_SECOND)
        self._durations[self._last] = round(_TICKS_PER_SECOND * frame.duration)
        self._write(self._stream.encode(encoded))
        self.count += 1

    def close(self) -> None:
        try:
            if self._stream is not None:
                self._write(self._stream.encode(None))
        finally:
            self._container.close()

    def _open_stream(self, height: int, width: int) -> av.VideoStream:
        stream = self._container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS_PER_SECOND)
        # Without frames that refer to later ones, the last packet has the last frame's duration.
        stream.options = {"preset": "veryfast", "crf": "20", "bf": "0"}
        return stream

    def _write(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            # The encoder tells no duration.
            packet.duration = self._durations.pop(packet.pts)
            self._container.mux(packet)


def _is_gif(path: os.PathLike | str) -> bool:
    return pathlib.Path(path).suffix.lower() == ".gif"


@contextlib.contextmanager
def _open_gif(path: os.PathLike | str) -> Iterator[Image.Image]:
    with open_binary(path) as file:
        try:
            gif = Image.open(file)
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
    if is_local(path):
        if not os.path.isfile(path):
            raise DataError(f"{path}: no such file")
        # Which reads it faster than through Python.
        source = contextlib.nullcontext(os.fspath(path))
    else:
        source = open_binary(path)
    with source as file:
        try:
            container = av.open(file)
        except av.FFmpegError as error:
            raise DataError(f"{path}: not a readable video ({error.strerror})") from error
        with container:
            if not container.streams.video:
                raise DataError(f"{path}: not a readable video (it has no pictures)")
            yield container


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
