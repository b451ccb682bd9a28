"""Videos in and out."""

import numpy as np
import pytest

from segmenter_jax.pictures.video import read_frames, video_info, write_video


def moving_bar(num_frames, height, width):
    """A white bar that moves right; its place tells a frame's number."""
    for i in range(num_frames):
        frame = np.full((height, width, 3), (0, 60, 120), np.uint8)
        frame[:, 2 * i : 2 * i + 8] = 255
        yield frame


def write(path, rate, frames):
    with write_video(path, rate) as append:
        for frame in frames:
            append(frame)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_what_is_written_is_read_back_in_order(tmp_path, suffix):
    path = write(tmp_path / f"clip{suffix}", 25.0, moving_bar(12, 48, 64))
    info = video_info(path)
    assert info.num_frames == 12 and info.frame_rate == pytest.approx(25)
    frames = list(read_frames(path))
    assert [f.shape for f in frames] == [(48, 64, 3)] * 12
    for frame, expected in zip(frames, moving_bar(12, 48, 64), strict=True):
        # Lossy, but the bar is where it was and the colours are not swapped.
        assert np.abs(frame.astype(int) - expected).mean() < 12
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_odd_sides_of_mp4_files_are_made_even(tmp_path):
    path = write(tmp_path / "clip.mp4", 10, moving_bar(3, 33, 47))
    assert next(read_frames(path)).shape == (34, 48, 3)


def test_nothing_is_left_of_a_video_that_failed(tmp_path):
    for name in ("c.mp4", "c.gif"):
        with pytest.raises(RuntimeError, match="stop"), write_video(tmp_path / name, 10) as append:
            append(np.zeros((32, 32, 3), np.uint8))
            raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_files_that_are_no_videos_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not a video")
    with pytest.raises(ValueError, match=f"{name}: not a readable"):
        video_info(path)
    with pytest.raises(ValueError, match=f"{name}: not a readable"):
        list(read_frames(path))


def test_other_formats_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"clip\.avi: videos are written as \.mp4 or \.gif"):
        write(tmp_path / "clip.avi", 10, [])
