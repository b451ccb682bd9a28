"""Tar files of pictures in, tar files of results out."""

import io
import json
import os
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from segmenter_jax import manifest, predict
from segmenter_jax.inference.record_files import RECORDS_FILE
from segmenter_jax.inference.results import Results
from tests.models_on_disk import write_golden_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_golden_model(tmp_path_factory.mktemp("model") / "model")


def picture(seed, form="PNG"):
    data = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(noise).save(data, form)
    return data.getvalue()


def write(path, members, mode="w", form=tarfile.GNU_FORMAT):
    """Writes a tar file of names with bytes, or with the type of a member without any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes) and len(content) > 1:
                info.size = len(content)
            else:
                info.type, info.linkname, content = content, "001.jpg", b""
            tar.addfile(info, io.BytesIO(content))
    return path


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def run(*arguments):
    return predict.main([str(a) for a in arguments])


def listed(folder, capsys):
    """Entries of the manifest by their sources below the folder of the inputs."""
    capsys.readouterr()
    assert manifest.main([str(folder)]) == 0
    entries = map(json.loads, capsys.readouterr().out.splitlines())
    found = {entry["source"].partition("/shards/")[2]: entry for entry in entries}
    assert all(entry["results"] or entry["error"] for entry in found.values())
    return found


def test_results_are_those_of_files_under_the_keys_of_the_pictures(model, tmp_path, capsys):
    good = {
        "001.jpg": picture(1, "JPEG"),
        "./002.PNG": picture(2),
        "cam.1/001.left.png": picture(3),
        "CAM.1/001.left.png": picture(4),
        f"{'long/' * 60}003.png": picture(5),
        os.fsdecode(b"caf\xe9.png"): picture(6),
    }
    posix = {f"{'wide/' * 60}004.png": picture(12), os.fsdecode(b"na\xefve.png"): picture(13)}
    others = [
        ("cam.1", tarfile.DIRTYPE),
        ("001.json", b"{}"),
        ("inner.tar", write(tmp_path / "inner.tar", []).read_bytes()),
        ("link.jpg", tarfile.SYMTYPE),
        ("hard.jpg", tarfile.LNKTYPE),
        ("pipe.jpg", tarfile.FIFOTYPE),
        ("clip.gif", picture(7, "GIF")),
        ("__MACOSX/._001.jpg", b"of a system"),
    ]
    bad = [
        ("torn.jpg", picture(8, "JPEG")[:900]),
        ("001.png", picture(9)),
        ("../up.png", picture(10)),
        ("/root.png", picture(11)),
    ]
    source = write(tmp_path / "shards" / "deep" / "a.b.tar", [*good.items(), *others, *bad])
    write(source, posix.items(), "a", tarfile.PAX_FORMAT)
    good |= posix
    for name, data in good.items():
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    kinds = ("--save", "overlay,ids,confidence")
    assert run(model, tmp_path / "photos", "-o", tmp_path / "files", *kinds) == 0
    capsys.readouterr()

    out = tmp_path / "out"
    assert run(model, tmp_path / "shards", "--tar", "-o", out, *kinds) == 1
    printed = capsys.readouterr()
    assert "0 of 1 files segmented" in printed.out
    skipped = [line for line in printed.err.splitlines() if line.startswith("skipped: ")]
    for line, (name, _), text in zip(
        skipped,
        bad,
        ("truncated or corrupt JPEG", "the key 001 as well", "leads out", "leads out"),
        strict=True,
    ):
        assert line.startswith(f"skipped: {source}/{name}: ") and text in line
    assert (
        "left out of tar files: 2 a link; 1 hidden or kept by a system; 1 no regular file; "
        "1 not read (.gif); 1 not read (.json); 1 not read (.tar)\n"
    ) in printed.err

    expected = {}
    for name in good:
        stem = str(pathlib.PurePath(name).with_suffix(""))
        for kind, suffix in (("overlay", ".jpg"), ("ids", ".png"), ("confidence", ".png")):
            key = name.removesuffix(pathlib.PurePath(name).suffix)
            made = tmp_path / "files" / kind / f"{stem}{suffix}"
            expected[f"{key}.{kind}{suffix}"] = made.read_bytes()
    assert members(out / "tar" / "deep" / "a.b.tar") == expected

    entries = listed(out, capsys)
    assert set(entries) == {f"deep/a.b.tar/{name}" for name in (*good, *dict(bad))}
    entry = entries["deep/a.b.tar/001.jpg"]
    assert (entry["height"], entry["width"], entry["error"]) == (40, 48, None)
    assert entry["bytes"] == len(good["001.jpg"]) and entry["confidence"] and entry["classes"]
    assert "tar/deep/a.b.tar/001.ids.png" in entry["results"]
    assert "JPEG" in entries["deep/a.b.tar/torn.jpg"]["error"]
    # Only another tar file could have another picture.
    assert run(model, tmp_path / "shards", "--tar", "-o", out, *kinds) == 0
    assert "1 were there already" in capsys.readouterr().out


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    for number, name in enumerate("abcd"):
        pictures = [(f"{i}.png", picture(10 * number + i)) for i in range(3)]
        write(folder / f"{name}.tar", pictures)
    return folder


def test_a_job_that_was_stopped_goes_on_with_the_next_tar_file(
    model, shards, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    arguments = (model, f"{shards}/[abc].tar", "--tar", "-o", out, "--save", "ids")
    with monkeypatch.context() as patched:
        calls, write_tar_picture = [], Results.write_tar_picture

        def stop(*given):
            calls.append(given)
            if len(calls) == 5:
                raise KeyboardInterrupt
            write_tar_picture(*given)

        patched.setattr(Results, "write_tar_picture", stop)
        assert run(*arguments) not in (0, 1)
    assert [path.name for path in (out / "tar").iterdir()] == ["a.tar"]
    assert set(listed(out, capsys)) == {f"a.tar/{i}.png" for i in range(3)}
    first = (out / "tar" / "a.tar").stat()
    assert run(*arguments) == 0
    printed = capsys.readouterr()
    assert "2 of 2 files segmented" in printed.out and "1 were there already" in printed.out
    assert "made again" not in printed.err
    assert (out / "tar" / "a.tar").stat() == first
    assert len(listed(out, capsys)) == 9
    # What was in a former one is forgotten with it, also by one of several parts.
    for number, part in enumerate(((), ("--shard", "0/1"))):
        write(shards / "a.tar", [(f"new{number}.png", picture(number))])
        assert run(*arguments, *part) == 0
        assert "made of another file" in capsys.readouterr().err
        names = {name for name in listed(out, capsys) if name.startswith("a.tar")}
        assert names == {f"a.tar/new{number}.png"}
    assert run(*arguments[:-1], "ids,palette") == 0
    printed = capsys.readouterr()
    assert "3 of 3 files segmented" in printed.out and "another save" in printed.err


def test_parts_of_a_job_take_whole_tar_files(model, shards, tmp_path, capsys):
    alone, shared = tmp_path / "alone", shards / "out"
    assert run(model, shards, "--tar", "-o", alone, "--save", "ids") == 0
    for index in range(2):
        # Inside the inputs, where one's results could be taken for another's inputs.
        part = ("--shard", f"{index}/2")
        assert run(model, shards, "--tar", "-o", shared, "--save", "ids", *part) == 0
        assert "0 of" not in capsys.readouterr().out
    made = {path.name: path.read_bytes() for path in (shared / "tar").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (alone / "tar").iterdir()}
    assert len(made) == 4 and len(listed(shared, capsys)) == 12


def test_damaged_tar_files_take_one_clear_line_and_do_not_stop_the_rest(
    model, shards, tmp_path, capsys
):
    whole = (shards / "a.tar").read_bytes()
    second = whole.index(b"1.png\0")
    size = second + 124
    damaged = {
        "cut.tar": (whole[: second + 600], "damaged after 0.png (unexpected end of data)"),
        "between.tar": (whole[:second], "damaged after 0.png (its end is missing)"),
        "header.tar": (
            whole[: second + 3] + b"x" + whole[second + 4 :],
            "damaged after 0.png (what follows is no member)",
        ),
        "joined.tar": (whole + whole, "damaged after 2.png (what follows is no member)"),
        "huge.tar": (
            whole[:size] + b"\x80" + b"\0" * 3 + b"\x7f" * 8 + whole[size + 12 :],
            "damaged after 0.png (",
        ),
        "none.tar": (b"", "not a readable tar file (empty file)"),
        "text.tar": (b"no tar file" * 100, "not a readable tar file ("),
        "other.tar": (
            write(tmp_path / "o.tar", [("0.txt", b"text")]).read_bytes(),
            "no pictures in this tar file",
        ),
        "empty.tar": (write(tmp_path / "e.tar", []).read_bytes(), "no pictures in this tar file"),
    }
    shutil.rmtree(shards)
    shards.mkdir()
    for name, (data, _) in damaged.items():
        (shards / name).write_bytes(data)
    (shards / "z.tar").write_bytes(whole)
    out = tmp_path / "out"
    for _ in range(2):
        # They do not become finished by being called twice.
        assert run(model, shards, "--tar", "-o", out, "--save", "ids") == 1
        printed = capsys.readouterr()
        lines = [x for x in printed.err.splitlines() if x.startswith(("skipped: ", "incomplete: "))]
        found = {pathlib.Path(line.split(": ")[1]).name: line for line in lines}
        assert len(lines) == len(found) and set(found) == set(damaged)
        for name, line in found.items():
            assert f"{shards / name}: {damaged[name][1]}" in line
    pictures = {path.name: len(members(path)) for path in (out / "tar").iterdir()}
    incomplete = {"cut.tar": 1, "between.tar": 1, "header.tar": 1, "joined.tar": 3, "huge.tar": 1}
    assert pictures == incomplete | {"z.tar": 3}
    entries = listed(out, capsys)
    assert len(entries) == len(damaged) + sum(pictures.values())
    assert "its end is missing" in entries["between.tar"]["error"]


def test_what_is_no_job_of_tar_files_is_refused(model, shards, tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(picture(0))
    tar, out = shards / "a.tar", tmp_path / "out"
    for arguments, message in (
        ((tar,), "a.tar: a tar file, the pictures of which --tar segments"),
        ((tmp_path / "photo.png", "--tar"), "photo.png: no tar file (.tar), and --tar takes"),
        ((shards,), "no pictures in this folder; left out: 4 not read (.tar)"),
        ((model, "--tar"), "no tar files in this folder"),
        ((tar, "--tar", "--engine", "ray"), "--engine ray takes no tar files"),
    ):
        assert run(model, *arguments, "-o", out) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not out.exists()


@pytest.mark.parametrize("kind", ["tar", "ids"])
def test_no_result_takes_the_place_of_its_source(model, tmp_path, capsys, kind):
    source = tmp_path / kind / ("a.tar" if kind == "tar" else "a.png")
    write(source, [("0.png", picture(0))])
    if kind == "ids":
        source.write_bytes(picture(0))
    before = source.read_bytes()
    flags = ("--tar",) if kind == "tar" else ()
    assert run(model, source, *flags, "-o", tmp_path, "--save", "ids", "--overwrite") == 1
    assert "a result would replace it" in capsys.readouterr().err
    assert source.read_bytes() == before and (tmp_path / RECORDS_FILE).exists()
