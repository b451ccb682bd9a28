"""Videos and animated GIFs written frame by frame, each with its time."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from segmenter_jax.pictures.video import Frame, declared_frames
from segmenter_jax.runtime.files import write_whole

WRITTEN_SUFFIXES = (".mp4", ".gif")

# A multiple of the usual frame rates, of 1000 and of 90000: their times need no rounding.
_TICKS_PER_SECOND = 360_000

# A GIF says 1/100 s, in 16 bits.
_GIF_TICKS_PER_SECOND = 100
_GIF_MOST_TICKS = 65535


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
