"""Directories that appear whole or not at all, wherever their replacement is interrupted."""

import contextlib
import os
import pathlib
import shutil

import pytest
from etils import epath

from segmenter_jax.checkpoints import atomic
from segmenter_jax.runtime import files

MARKER = "done.json"
OLD = {MARKER: "old", "weights": "1", "deep/er": "2"}
NEW = {MARKER: "new", "weights": "3", "deep/er": "4", "deep/more": "5"}


class Killed(BaseException):
    pass


def build(folder, content):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder):
    folder = pathlib.Path(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {os.fspath(path.relative_to(folder)): path.read_text() for path in files}


def replace(path):
    atomic.recover(path, MARKER)
    parts = {name: text for name, text in NEW.items() if name != MARKER}
    build(atomic.staging(path), parts)
    atomic.publish(path, MARKER, NEW[MARKER])


@contextlib.contextmanager
def killed_at(step, monkeypatch):
    """Ends the process at a change of the file system; later ones of it never happen."""
    steps = 0

    def counted(change):
        def run(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps > step:
                raise Killed
            return change(*arguments, **options)

        return run

    def one_by_one(folder):
        for file in sorted(folder.iterdir()):
            one_by_one(file) if file.is_dir() else file.unlink()
        os.rmdir(folder)

    backend = type(epath.Path("/"))
    with monkeypatch.context() as patched:
        patched.setattr(backend, "rmtree", one_by_one)
        for name in ("unlink", "rename", "replace", "copy", "mkdir", "write_text"):
            patched.setattr(backend, name, counted(getattr(backend, name)))
        patched.setattr(os, "rmdir", counted(os.rmdir))
        with contextlib.suppress(Killed):
            yield


@pytest.mark.parametrize("is_local", [True, False], ids=["local", "remote"])
def test_a_replacement_killed_anywhere_loses_nothing(tmp_path, monkeypatch, is_local):
    monkeypatch.setattr(atomic, "is_local", lambda path: is_local)
    path = epath.Path(tmp_path / "m")
    seen = []
    for step in range(100):
        shutil.rmtree(tmp_path)
        build(path, OLD)
        finished = False
        with killed_at(step, monkeypatch):
            replace(path)
            finished = True
        found = content(atomic.whole(path, MARKER))
        assert found in (OLD, NEW)
        seen.append(found == NEW)
        for again in range(step):
            with killed_at(again, monkeypatch):
                atomic.recover(path, MARKER)
            assert content(atomic.whole(path, MARKER)) == found
        atomic.recover(path, MARKER)
        assert content(path) == found
        assert [p.name for p in tmp_path.iterdir()] == ["m"]
        if finished:
            break
    assert finished and not seen[0] and seen[-1]


@pytest.mark.parametrize("is_local", [True, False], ids=["local", "remote"])
def test_what_was_never_completed_is_cleared(tmp_path, monkeypatch, is_local):
    monkeypatch.setattr(atomic, "is_local", lambda path: is_local)
    path = epath.Path(tmp_path / "m")
    build(atomic.staging(path), {"weights": "3"})
    assert atomic.whole(path, MARKER) is None
    atomic.recover(path, MARKER)
    assert list(tmp_path.iterdir()) == []
    replace(path)
    assert content(path) == NEW


def test_an_unfinished_move_does_not_take_the_place_of_something_else(tmp_path):
    path = epath.Path(tmp_path / "m")
    build(atomic.staging(path), NEW)
    build(path, {"thesis.tex": "x"})
    atomic.recover(path, MARKER)
    assert content(path) == {"thesis.tex": "x"}
    assert content(atomic.staging(path)) == NEW


def test_a_file_in_the_place_is_left_alone(tmp_path):
    path = epath.Path(tmp_path / "m")
    build(atomic.staging(path), NEW)
    path.write_text("mine")
    atomic.recover(path, MARKER)
    assert path.read_text() == "mine" and content(atomic.staging(path)) == NEW


def test_behind_a_link_is_replaced_what_it_points_to(tmp_path):
    build(tmp_path / "real", OLD)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    replace(files.absolute(tmp_path / "link"))
    assert content(tmp_path / "real") == content(tmp_path / "link") == NEW
    assert (tmp_path / "link").is_symlink()


def test_what_is_whole_is_not_abandoned(tmp_path):
    path = epath.Path(tmp_path / "m")
    build(atomic.staging(path), NEW)
    atomic.abandon(path, MARKER)
    assert content(atomic.whole(path, MARKER)) == NEW
    (atomic.staging(path) / MARKER).unlink()
    atomic.abandon(path, MARKER)
    assert list(tmp_path.iterdir()) == []
