"""Folders have one owner at a time, which a killed process does not stay."""

import os
import socket
import subprocess
import sys

import pytest

from segmenter_jax.runtime.ownership import InUseError, sole_owner
from tests.tiny_runs import ROOT

OWNER = """
import sys, time
from segmenter_jax.runtime.ownership import sole_owner
with sole_owner(sys.argv[1]):
    print("owned", flush=True)
    time.sleep(600)
"""


def test_a_second_owner_is_told_who_the_first_is_and_a_killed_one_leaves_the_folder_free(tmp_path):
    folder = tmp_path / "runs" / "one"
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "owned\n"
    who = f"{folder}: in use by process {process.pid} on {socket.gethostname()}$"
    for _ in range(2):  # A refusal takes nothing from the owner.
        with pytest.raises(InUseError, match=who), sole_owner(folder):
            pass
    process.kill()
    process.wait()
    with sole_owner(folder):
        assert f"process {os.getpid()}" in (folder / ".lock").read_text()
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


@pytest.mark.parametrize("beside", [False, True])
def test_nothing_is_left_of_a_lock_and_of_folders_made_for_it(tmp_path, beside):
    folder = tmp_path / "a" / "b"
    with pytest.raises(KeyError), sole_owner(folder, beside=beside):
        assert folder.exists() is not beside
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_replaced_as_a_whole_keeps_its_owner(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with sole_owner(folder, beside=True):
        folder.rmdir()
        with pytest.raises(InUseError), sole_owner(folder, beside=True):
            pass
        folder.mkdir()
    assert list(tmp_path.iterdir()) == [folder]


def test_remote_folders_have_no_locks():
    with sole_owner("gs://bucket/run"), sole_owner("gs://bucket/run"):
        pass
