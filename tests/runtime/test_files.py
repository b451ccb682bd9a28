import os

import pytest

from segmenter_jax.runtime.files import write_whole


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
