import os
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image, features

from segmenter_jax.data.builders.files import SourceFiles
from segmenter_jax.data.encoded import IMAGE_SUFFIXES
from segmenter_jax.data.listing import describe_left_out, iter_pattern, list_folder
from segmenter_jax.runtime.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_hidden_and_system_folders_are_left_out_and_counted(tmp_path):
    touch(tmp_path, "a.png", "b/c.JFIF", "b/d.heic", ".Trash-1000/e.png", "b/__MACOSX/f.png")
    touch(
        tmp_path,
        ".DS_Store",
        "b/Thumbs.db",
        "@eaDir/a.png/g.jpg",
        "b/._c.JFIF",
        "$RECYCLE.BIN/h.png",
        "noext",
    )
    found = list_folder(tmp_path)
    assert list(found.files) == ["a.png", "b/c.JFIF", "b/d.heic", "noext"]
    assert found.folders == {".", "b"}
    found.keep(IMAGE_SUFFIXES)
    assert list(found.files) == ["a.png", "b/c.JFIF"]
    assert describe_left_out(found.left_out) == (
        "5 hidden or kept by a system: $RECYCLE.BIN, .Trash-1000, @eaDir, and 2 more; "
        "1 not read (.heic): b/d.heic; 1 not read (no suffix): noext"
    )


def test_links_are_followed_and_cut_where_they_lead_back(tmp_path):
    root = tmp_path / "in"
    touch(root, "a/x.png", "b/y.png")
    touch(tmp_path, "disk/z.png", "disk/root.png")
    (root / "more").symlink_to(tmp_path / "disk")
    (root / "again").symlink_to(tmp_path / "disk")
    # To itself, to what holds it, and two that lead to each other.
    (root / "loop").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "a/to_b").symlink_to(root / "b")
    (root / "b/to_a").symlink_to(root / "a")
    (root / "gone.png").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe.png")
    found = list_folder(root)
    assert list(found.files) == [
        *("a/to_b/y.png", "a/x.png", "again/root.png", "again/z.png"),
        *("b/to_a/x.png", "b/y.png", "more/root.png", "more/z.png"),
    ]
    assert found.left_out == {
        "a link that leads back": ["a/to_b/to_a", "b/to_a/to_b", "loop", "up"],
        "a link to nothing": ["gone.png"],
        "no regular file": ["pipe.png"],
    }


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("in/*.png", ["a.png"]),
        ("in/*/*.png", ["b/c.png"]),
        ("in/**/*.png", ["a.png", "b/c.png", "b/d/e.png"]),
        ("in/**", ["a.png", "b/c.png", "b/d/e.png", "x[1]/f.png"]),
        ("in/b/**/?.png", ["c.png", "d/e.png"]),
        ("in/*/.hidden/*.png", ["b/.hidden/h.png"]),
        ("in/x[1]/*.png", ["f.png"]),
        ("in/nothing/*.png", []),
    ],
)
def test_patterns_follow_the_same_rule(pattern, matches, tmp_path):
    touch(tmp_path / "in", "a.png", "b/c.png", "b/d/e.png", "b/.hidden/h.png", "__MACOSX/i.png")
    touch(tmp_path / "in", "x[1]/f.png" if "x[" in pattern or pattern == "in/**" else "a.png")
    (tmp_path / "in/b/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/b/pool").symlink_to(tmp_path / "in")
    assert sorted(path for path, _ in iter_pattern(tmp_path / pattern)) == matches


def test_every_suffix_is_one_that_the_decoder_knows():
    assert Image.registered_extensions().keys() >= {*IMAGE_SUFFIXES}
    assert {".jfif", ".jp2", ".pgm", ".gif"} <= {*IMAGE_SUFFIXES}
    assert (".avif" in IMAGE_SUFFIXES) == ("avif" in features.get_supported())


def test_unreadable_folders_are_counted(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "b/c.png")
    scandir = os.scandir

    def refusing(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    # As root, the bits of a folder refuse nothing.
    monkeypatch.setattr(os, "scandir", refusing)
    found = list_folder(tmp_path)
    assert list(found.files) == ["a.png"]
    assert found.left_out == {"unreadable (Permission denied)": ["b"]}


def test_archives_of_windows_and_names_in_two_unicode_forms(tmp_path):
    name = unicodedata.normalize("NFD", "images/Größe.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for written in ("mine\\classes.json", "mine\\" + name.replace("/", "\\"), "mine\\.b\\c"):
            entry = zipfile.ZipInfo("x")
            entry.filename = written
            archive.writestr(entry, written.encode())
    files = SourceFiles(tmp_path / "x.zip")
    assert files.left_out == {"hidden or kept by a system": ["mine/.b/c"]}
    files.enter_folder_of("classes.json")
    assert files.paths == ["classes.json", "images/Größe.png"]
    assert files.read("classes.json") == b"mine\\classes.json"
    assert files.folders >= {"images"}


def test_an_archive_with_names_in_another_code_than_it_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("é.png", b"x")
    data = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(data.replace("é".encode(), b"\xe9\xe9"))
    with pytest.raises(DataError, match=r"x\.zip: not a readable zip archive"):
        SourceFiles(tmp_path / "x.zip")


def test_one_name_in_two_forms_is_refused(tmp_path):
    for form in ("NFC", "NFD"):
        touch(tmp_path, unicodedata.normalize(form, "é.png"))
    with pytest.raises(DataError, match=r"é\.png is there twice"):
        SourceFiles(tmp_path)


def test_the_folder_that_is_meant_has_to_be_clear(tmp_path):
    touch(tmp_path, "a/classes.json", "b/c/classes.json")
    files = SourceFiles(tmp_path)
    with pytest.raises(DataError, match=r"no classes\.json, but a/.*, b/c/.* beside other folders"):
        files.enter_folder_of("classes.json")
    touch(tmp_path, "b/README.txt")
    files = SourceFiles(tmp_path / "b")
    files.enter_folder_of("classes.json")
    assert files.root == tmp_path / "b/c" and files.paths == ["classes.json"]
