"""A build that is killed or interrupted leaves no dataset, and the next one goes on from it."""

import signal
import subprocess
import sys

import pytest

from segmenter_jax.data.builders.benchmark import Benchmark
from segmenter_jax.data.datasets import build_dataset, built_datasets
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


def start(data_dir, source, seconds):
    """A build that is asleep in its second split."""
    command = [sys.executable, "-c", BUILD, *map(str, (data_dir, source, seconds))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at the second split\n"
    return process


def interrupt(data_dir, source, number=signal.SIGKILL):
    # Ctrl-C waits for the records being read.
    with start(data_dir, source, 2 if number == signal.SIGINT else 600) as process:
        process.send_signal(number)
        # Before its output is closed, to which another record may still write.
        process.wait()


@pytest.fixture
def reads(monkeypatch):
    """Names of the records that are read from the source."""
    names = []
    read = Benchmark.read

    def note(self, name, image, label):
        names.append(name)
        return read(self, name, image, label)

    monkeypatch.setattr(Benchmark, "read", note)
    return names


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_finished_splits_are_not_read_again(tmp_path, reads, number):
    source, data_dir = replicas.write("camvid", tmp_path / "source"), tmp_path / "data"
    interrupt(data_dir, source, number)
    assert built_datasets(data_dir) == []
    assert [p.name[:7] for p in data_dir.iterdir()] == [".build_"]

    dataset = build_dataset("camvid", data_dir, source, allow_partial=True)
    assert sorted(reads) == ["0001TP_000000", "0001TP_000001"]
    assert dict(dataset.splits) == replicas.SPLITS["camvid"]
    expected = build_dataset("camvid", tmp_path / "whole", source, allow_partial=True)
    for split in dataset.splits:
        for ours, theirs in zip(dataset.source(split), expected.source(split), strict=True):
            assert ours == theirs
    assert [p.name for p in data_dir.iterdir()] == ["camvid"]


def test_a_changed_source_is_read_whole(tmp_path, reads):
    source, data_dir = replicas.write("camvid", tmp_path / "source"), tmp_path / "data"
    interrupt(data_dir, source)
    image = source / "images/train/0001TP_000000.jpg"
    image.write_bytes(image.read_bytes() + b"\0\xff\xd9")
    build_dataset("camvid", data_dir, source, allow_partial=True)
    assert len(reads) == 5
    assert [p.name for p in data_dir.iterdir()] == ["camvid"]


def test_a_build_that_still_runs_is_left_alone(tmp_path, reads):
    source, data_dir = replicas.write("camvid", tmp_path / "source"), tmp_path / "data"
    with start(data_dir, source, 600) as process:
        build_dataset("camvid", data_dir, source, allow_partial=True)
        assert len(reads) == 5
        assert len(list(data_dir.glob(".build_*"))) == 1
        process.kill()


def test_damaged_leftovers_are_not_used(tmp_path, reads):
    source, data_dir = replicas.write("camvid", tmp_path / "source"), tmp_path / "data"
    interrupt(data_dir, source)
    (kept,) = data_dir.glob(".build_*/finished/camvid-train*")
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    build_dataset("camvid", data_dir, source, allow_partial=True)
    assert len(reads) == 5
