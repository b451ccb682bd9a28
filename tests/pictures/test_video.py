"""Videos in and out."""

import av
import numpy as np
import pytest
from PIL import Image

from segmenter_jax.pictures.video import (
    CutShortError,
    Frame,
    declared_frames,
    read_frames,
)
from segmenter_jax.pictures.video_writing import write_video


def moving_bar(num_frames, height, width):
    """A white bar that moves right; its place tells a frame's number."""
    for i in range(num_frames):
        frame = np.full((height, width, 3), (0, 60, 120), np.uint8)
        frame[:, 2 * i : 2 * i + 8] = 255
        yield frame


def write(path, seconds, images):
    """Writes images that are shown for `seconds`, or each for its own."""
    start = 0.0
    with write_video(path) as append:
        for i, image in enumerate(images):
            duration = seconds[i] if isinstance(seconds, list) else seconds
            append(Frame(image, start, duration))
            start += duration
    return path


def times(path):
    """Start and end of each frame in milliseconds."""
    return [(1000 * f.start, 1000 * (f.start + f.duration)) for f in read_frames(path)]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_what_is_written_is_read_back_in_order(tmp_path, suffix):
    path = write(tmp_path / f"clip{suffix}", 1 / 25, moving_bar(12, 48, 64))
    assert declared_frames(path) == 12
    frames = list(read_frames(path))
    assert [f.image.shape for f in frames] == [(48, 64, 3)] * 12
    for frame, expected in zip(frames, moving_bar(12, 48, 64), strict=True):
        # Lossy, but the bar is where it was and the colours are not swapped.
        assert np.abs(frame.image.astype(int) - expected).mean() < 12
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_every_frame_keeps_its_time(tmp_path, suffix):
    milliseconds = [20, 2000, 2000, 10, 40, 3000]
    path = write(tmp_path / f"a{suffix}", [m / 1000 for m in milliseconds], moving_bar(6, 32, 48))
    ends = np.cumsum(milliseconds)
    expected = [(end - m, end) for m, end in zip(milliseconds, ends, strict=True)]
    np.testing.assert_allclose(times(path), expected, atol=0.01)
    if suffix == ".gif":
        with Image.open(path) as gif:
            delays = [gif.seek(i) or gif.info["duration"] for i in range(6)]
        assert delays == milliseconds


@pytest.mark.parametrize(("suffix", "unit"), [(".mp4", 0.01), (".gif", 10)])
def test_times_are_rounded_without_drift(tmp_path, suffix, unit):
    path = write(tmp_path / f"a{suffix}", 1001 / 24000, moving_bar(40, 32, 96))
    starts = [start for start, _ in times(path)]
    np.testing.assert_allclose(starts, 1001 / 24 * np.arange(40), atol=0.51 * unit)


def test_odd_sides_of_mp4_files_are_made_even(tmp_path):
    path = write(tmp_path / "clip.mp4", 0.1, moving_bar(3, 33, 47))
    assert next(read_frames(path)).image.shape == (34, 48, 3)


def test_nothing_is_left_of_a_video_that_failed(tmp_path):
    for name in ("c.mp4", "c.gif"):
        with pytest.raises(RuntimeError, match="stop"), write_video(tmp_path / name) as append:
            append(Frame(np.zeros((32, 32, 3), np.uint8), 0.0, 0.1))
            raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_files_that_are_no_videos_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not a video")
    with pytest.raises(ValueError, match=f"{name}: not a readable"):
        declared_frames(path)
    with pytest.raises(ValueError, match=f"{name}: not a readable"):
        list(read_frames(path))


def write_recording(path, codec, num_frames=30, rate=25):
    """A recording of noise, written frame by frame by another program."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        if codec != "mjpeg":
            stream.pix_fmt = "yuv420p"
        for _ in range(num_frames):
            noise = rng.integers(0, 256, (48, 64, 3), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "mjpeg"), ("a.mkv", "libx264"), ("a.webm", "libvpx")]
)
def test_a_video_that_is_cut_short_gives_what_it_has_and_then_says_both_numbers(
    tmp_path, name, codec
):
    path = write_recording(tmp_path / name, codec)
    assert len(list(read_frames(path))) == 30
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    count, reading = 0, read_frames(path)
    with pytest.raises(CutShortError) as error:
        while next(reading).image.shape == (48, 64, 3):
            count += 1
    assert 5 < count < 25
    expected = f"{name}: cut short or damaged: {count} of 30 frames"
    # The header of the others says seconds.
    assert expected in str(error.value).replace("about ", "" if name != "a.avi" else "?")


def test_damaged_frames_are_counted(tmp_path):
    path = write_recording(tmp_path / "a.mp4", "mpeg4")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) * 2 // 3] = bytes(len(data) * 2 // 3 - len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(CutShortError, match=r"\d\d of 30 frames"):
        list(read_frames(path))


def test_a_gif_that_is_cut_short_is_told_wherever_the_cut_is(tmp_path):
    path = write(tmp_path / "a.gif", 0.1, moving_bar(4, 16, 32))
    data = path.read_bytes()
    for size in range(len(data) // 2, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CutShortError, match=r"a.gif: .*: [1-4] frames could be read"):
            list(read_frames(path))


def test_other_formats_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"clip\.avi: videos are written as \.mp4 or \.gif"):
        write(tmp_path / "clip.avi", 0.1, [])


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, suffix, small_files):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(6)]
    with small_files(20_000), pytest.raises(OSError, match=rf"/clip\{suffix}"):
        write(tmp_path / f"clip{suffix}", 0.1, noise)
    assert not list(tmp_path.iterdir())
