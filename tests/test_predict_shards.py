"""Shards that segment into one folder, and the manifest of what they made."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segmenter_jax import manifest, predict
from segmenter_jax.inference.plan import planned_outputs
from segmenter_jax.inference.record_files import RECORDS_FILE
from segmenter_jax.runtime.ownership import part_owner, sole_owner
from tests.models_on_disk import CLASSES, write_golden_model

COUNT = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_golden_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures, two of them with names that are told apart, and a broken one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [*(f"{i:02d}.png" for i in range(10)), "same.png", "same.jpg"]
    for seed, name in enumerate(names):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def run(*arguments):
    return predict.main([str(a) for a in arguments])


def listed(folder, capsys):
    """Entries of the manifest by the names of their sources."""
    capsys.readouterr()
    assert manifest.main([str(folder)]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    named = {pathlib.Path(entry["source"]).name: entry for entry in entries}
    assert len(named) == len(entries)
    return named


def test_a_name_stays_in_its_shard_whatever_else_is_there(tmp_path):
    def shards():
        found = {}
        for index in range(COUNT):
            plan = planned_outputs([str(tmp_path)])
            plan.keep_shard(index, COUNT)
            for path, stem in plan.items():
                assert path not in found
                found[path] = (index, str(stem))
        return found

    for name in ("0.png", "b/1.png", "c/2.jpg", "c/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = shards()
    for name in ("00.png", "a.png", "c/x.jpg"):
        (tmp_path / name).touch()
    after = shards()
    assert len(before) == 4 and len(after) == 7
    assert {p: n for p, (n, _) in before.items()}.items() <= {
        p: n for p, (n, _) in after.items()
    }.items()
    assert (after[tmp_path / "c/x.png"][1], after[tmp_path / "c/x.jpg"][1]) == (
        "c/x_png",
        "c/x_jpg",
    )


def test_shards_together_make_what_one_process_makes(model, photos, tmp_path, capsys):
    # Inside the inputs, where one's results could be taken for another's inputs.
    alone, shared = tmp_path / "alone", photos / "out"
    run(model, photos, "-o", alone, "--save", "ids,confidence")
    codes = [
        run(model, photos, "-o", shared, "--save", "ids,confidence", "--shard", f"{i}/{COUNT}")
        for i in range(COUNT)
    ]
    assert sorted(codes) == [0, 0, 1]

    def files(folder):
        paths = [p for p in folder.rglob("*.png") if p.name != "legend.png"]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}

    assert files(shared) == files(alone) and len(files(alone)) == 24
    assert (shared / "legend.png").exists()
    entries, expected = listed(shared, capsys), listed(alone, capsys)
    for entry in (*entries.values(), *expected.values()):
        seconds = entry.pop("seconds")
        assert (seconds is None) == (entry["error"] is not None)
    assert entries == expected and len(entries) == 13
    # One of another number of shards, or of none, finds what they made.
    assert run(model, photos / "00.png", "-o", shared, "--save", "ids", "--shard", "0/1") == 0
    assert "0 of 0 files" in capsys.readouterr().out
    assert run(model, photos, "-o", shared, "--save", "ids,confidence") == 1
    assert "0 of 1 files" in capsys.readouterr().out
    assert [p.name for p in shared.glob("*.jsonl")] == [RECORDS_FILE]


def test_the_manifest_says_what_the_results_show(model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(model, photos, "-o", out, "--save", "ids,confidence") == 1
    entry = listed(out, capsys)["same.jpg"]
    ids = np.asarray(Image.open(out / "ids" / "same_jpg.png"))
    counts = collections.Counter(CLASSES[k] for k in ids.ravel())
    assert entry["classes"] == pytest.approx({n: c / ids.size for n, c in counts.items()}, abs=1e-6)
    mean = np.asarray(Image.open(out / "confidence" / "same_jpg.png")).mean() / 255
    assert entry["confidence"] == pytest.approx(mean, abs=2e-3)
    assert (entry["height"], entry["width"], entry["error"]) == (40, 48, None)
    assert entry["bytes"] == (photos / "same.jpg").stat().st_size
    assert entry["results"] == ["confidence/same_jpg.png", "ids/same_jpg.png"]
    broken = listed(out, capsys)["broken.jpg"]
    assert "broken.jpg" in broken["error"] and broken["results"] == []
    # Once it is mended, no error is left.
    Image.new("RGB", (8, 8)).save(photos / "broken.jpg")
    assert run(model, photos, "-o", out, "--save", "ids,confidence") == 0
    assert listed(out, capsys)["broken.jpg"]["error"] is None


def test_what_a_shard_makes_again_is_not_hidden_by_older_records(model, photos, tmp_path, capsys):
    out, other = tmp_path / "out", write_golden_model(tmp_path / "other", mean=(0.2,))
    photo = photos / "00.png"
    assert run(model, photo, "-o", out, "--save", "ids") == 0
    first = (out / "ids" / "00.png").read_bytes()
    assert run(other, photo, "-o", out, "--save", "ids", "--shard", "0/1") == 0
    assert "made by another model" in capsys.readouterr().err
    assert (out / "ids" / "00.png").read_bytes() != first
    # As a process leaves it that is killed after it has begun to make the first again.
    shard = out / "results.0-of-1.jsonl"
    assert run(model, photo, "-o", out, "--save", "ids", "--shard", "0/1") == 0
    shard.write_text(json.dumps({"result": "ids/00.png"}) + "\n")
    capsys.readouterr()
    assert run(model, photo, "-o", out, "--save", "ids") == 0
    assert "not recorded what made them" in capsys.readouterr().err


def test_shards_keep_others_out_that_would_write_the_same(model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    with part_owner(out, 0, 2, lambda: None):
        assert run(model, photos / "00.png", "-o", out) == 1
        assert run(model, photos / "00.png", "-o", out, "--shard", "0/2") == 1
        assert run(model, photos / "00.png", "-o", out, "--shard", "0/1") == 1
        assert capsys.readouterr().err.count("in use by process") == 3
        with part_owner(out, 1, 2, lambda: None):
            pass
    with sole_owner(out):
        assert run(model, photos / "00.png", "-o", out, "--shard", "0/2") == 1
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("shard", ["4/4", "1", "-1/4", "a/b", "0/0"])
def test_shards_that_are_none_are_refused(shard, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("model", tmp_path, "-o", tmp_path, f"--shard={shard}")
    assert "is not a shard i/n" in capsys.readouterr().err


def test_quiet_says_only_what_went_wrong(model, photos, tmp_path, capsys):
    assert run(model, photos, "-o", tmp_path / "out", "--quiet") == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1


def test_a_manifest_may_be_read_in_part(model, photos, tmp_path):
    run(model, photos, "-o", tmp_path / "out")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "segmenter_jax.manifest", str(tmp_path / "out")]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_folders_without_results_have_no_manifest(tmp_path, capsys):
    assert manifest.main([str(tmp_path)]) == 1
    assert "holds no results" in capsys.readouterr().err


def test_without_ray_it_is_said_what_to_install(model, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    photo, out = photos / "00.png", tmp_path / "out"
    assert run(model, photo, "-o", out, "--engine", "ray") == 1
    assert 'pip install "segmenter_jax[ray]"' in capsys.readouterr().err
    assert not out.exists()
    assert run(model, photo, "-o", out, "--engine", "ray", "--shard", "0/2") == 1
    assert "leave --shard out" in capsys.readouterr().err
