"""A build that is killed or interrupted leaves no dataset, and the next one starts anew."""

import signal
import subprocess
import sys

import pytest

from segmenter_jax.data.datasets import build_dataset, built_datasets, open_dataset
from segmenter_jax.runtime.ownership import InUseError
from tests.data import replicas

# Stops at the first record of the second split.
BUILD = """
import os, signal, sys, time
# Ignored in what a shell runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
from segmenter_jax.data.builders.benchmark import Benchmark
from segmenter_jax.data.datasets import build_dataset

read = Benchmark.read
def stop(self, name, image, label):
    if "val" in image:
        # The build redirects what is printed, and reads in threads.
        os.write(1, b"at the second split\\n")
        time.sleep(float(sys.argv[3]))
    return read(self, name, image, label)
Benchmark.read = stop
build_dataset("camvid", sys.argv[1], sys.argv[2], allow_partial=True)
"""


@pytest.fixture
def source(tmp_path):
    return replicas.write("camvid", tmp_path / "source")


def start(data_dir, source, seconds):
    """A build that is asleep in its second split."""
    command = [sys.executable, "-c", BUILD, *map(str, (data_dir, source, seconds))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at the second split\n"
    return process


def check_build(data_dir, source):
    """Builds, and compares every record with the files."""
    dataset = build_dataset("camvid", data_dir, source, allow_partial=True)
    assert dict(dataset.splits) == replicas.SPLITS["camvid"]
    for split, folder in (("train", "train"), ("validation", "val")):
        for record in dataset.source(split):
            for part, kind, suffix in (
                ("image", "images", "jpg"),
                ("label", "annotations", "png"),
            ):
                path = source / kind / folder / f"{record['name']}.{suffix}"
                assert record[part] == path.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_next_build_starts_anew_and_is_right(tmp_path, source, number):
    data_dir = tmp_path / "data"
    # Ctrl-C waits for the records being read.
    with start(data_dir, source, 2 if number == signal.SIGINT else 600) as process:
        process.send_signal(number)
        # Before its output is closed, to which another record may still write.
        process.wait()
    assert built_datasets(data_dir) == []
    with pytest.raises(ValueError, match="'camvid' is not built"):
        open_dataset("camvid", data_dir)
    # An interrupted process removes what it has begun, and the folders made for it.
    left = sorted(path.name for path in data_dir.glob("*"))
    assert left == ([".build_camvid", "camvid"] if number == signal.SIGKILL else [])
    check_build(data_dir, source)
    assert [path.name for path in data_dir.iterdir()] == ["camvid"]


def test_a_build_in_progress_is_waited_for_or_told(tmp_path, source):
    data_dir = tmp_path / "data"
    with start(data_dir, source, 3) as process:
        with pytest.raises(InUseError, match=f"camvid: in use by process {process.pid} on "):
            build_dataset("camvid", data_dir, source, overwrite=True, wait=False)
        check_build(data_dir, source)
        assert process.wait() == 0
    assert [path.name for path in data_dir.iterdir()] == ["camvid"]
    assert [path.name for path in (data_dir / "camvid").iterdir()] == ["1.0.0"]
