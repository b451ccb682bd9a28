import os

import numpy as np
import pytest
from PIL import Image

from segmenter_jax.runtime.files import check_no_pattern, write_whole


def test_file_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "new" / "scores.json"
    with write_whole(path) as part:
        part.write_text("1")
        assert not path.exists() and part.suffix == ".json"
    assert path.read_text() == "1"
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]


def test_failure_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"), write_whole(path) as part:
        part.write_text("half")
        raise OSError("disk is full")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(
    "write",
    [
        lambda part: part.write_bytes(bytes(10**5)),
        lambda part: np.save(part.open("wb"), np.zeros(10**5)),
        lambda part: Image.effect_noise((200, 200), 90).save(part),
        lambda part: part.open("wb").write(bytes(10**5)),
    ],
)
def test_a_full_disk_names_the_file_whoever_writes_it(tmp_path, small_files, write):
    path = tmp_path / "a.png"
    with (
        small_files(10_000),
        pytest.raises(OSError, match=rf"{tmp_path}/a\.png"),
        write_whole(path) as part,
    ):
        write(part)
    assert not list(tmp_path.iterdir())


def test_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), write_whole(tmp_path / "scores.json"):
        pass


def test_a_pipe_is_written_to_as_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with write_whole(pipe) as part:
        part.write_text("1")
    assert os.read(reader, 10) == b"1" and pipe.is_fifo()
    os.close(reader)


@pytest.mark.parametrize("name", ["x[1]", "all*", "what?", "back\\slash"])
def test_paths_that_would_be_taken_for_patterns_are_refused(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="choose one without"):
        check_no_pattern("run")
    check_no_pattern(tmp_path / "{a} 1,2 (x) ü#%")
