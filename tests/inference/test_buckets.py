"""Prediction from and to buckets, by the real clients of two kinds of store."""

import io
import json
import re
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

import segmenter_jax
from segmenter_jax import manifest, predict
from segmenter_jax.data import bucket_listing
from segmenter_jax.inference import plan, record_files, records, transfers
from segmenter_jax.pictures.video import Frame, declared_frames, read_frames
from segmenter_jax.pictures.video_writing import write_video
from segmenter_jax.runtime import buckets
from segmenter_jax.runtime.files import write_whole, write_whole_folder
from tests.models_on_disk import write_golden_model
from tests.object_stores import contents, names_in, object_store
from tests.tiny_runs import environment


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_golden_model(tmp_path_factory.mktemp("model") / "model")


# Google's by hand, after `pip install gcsfs gcp-storage-emulator`: its server drops connections now
# and then, which its client does not always try again.
@pytest.fixture(scope="module", params=["s3", pytest.param("gs", marks=pytest.mark.slow)])
def store(request):
    with object_store(request.param) as address:
        yield epath.Path(address)


@pytest.fixture
def bucket(store):
    yield store
    buckets.remove_folder(store)


def run(*arguments):
    return predict.main([str(a) for a in arguments])


def encoded(seed, suffix=".png"):
    data = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(noise).save(data, Image.registered_extensions()[suffix])
    return data.getvalue()


def fill(bucket, folder, files):
    """The same files in a bucket and in a folder."""
    for name, data in files.items():
        buckets.write(bucket / name, data)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return bucket, folder


def entries(folder, source, capsys):
    """The manifest without what differs between two places and times."""
    capsys.readouterr()
    assert manifest.main([str(folder)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line in lines:
        line["source"] = line["source"].removeprefix(f"{source}/")
        line["error"] = line["error"] and line["error"].replace(str(source), "")
        line["modified"] = line["seconds"] = None
    return lines


PHOTOS = {f"a/{i}.png": encoded(i) for i in range(4)} | {
    "b/c/same.jpg": encoded(5, ".jpg"),
    "b/c/same.png": encoded(6),
    "b/broken.jpg": b"\xff\xd8\xff",
    "b/notes.txt": b"-",
    ".hidden/x.png": encoded(7),
}


def test_a_bucket_gets_what_a_folder_does(bucket, model, tmp_path, capsys):
    there, here = fill(bucket / "in", tmp_path / "in", PHOTOS)
    kinds = ("--save", "overlay,ids,confidence")
    assert run(model, here, "-o", tmp_path / "out", *kinds) == 1
    told = capsys.readouterr().err.replace(str(here), "")
    assert run(model, there, "-o", bucket / "out", *kinds) == 1
    assert capsys.readouterr().err.replace(str(there), "") == told
    assert contents(bucket / "out") == contents(tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 3 * 6 + 1
    found = entries(bucket / "out", there, capsys)
    assert found == entries(tmp_path / "out", here, capsys) and len(found) == 7


def test_what_is_there_stays_and_what_changed_is_made_again(bucket, model, capsys, monkeypatch):
    for i in range(4):
        buckets.write(bucket / f"in/{i}.png", encoded(i))
    out = bucket / "out"
    assert run(model, bucket / "in", "-o", out, "--save", "ids") == 0
    asked = []
    find = buckets.find
    monkeypatch.setattr(buckets, "find", lambda path: asked.append(path) or find(path))
    assert run(model, bucket / "in", "-o", out, "--save", "ids") == 0
    assert "0 of 0 files segmented" in capsys.readouterr().out
    # Of the input and the legend, not of each picture.
    assert len(asked) == 2
    made = buckets.read(out / "ids/0.png")
    buckets.write(bucket / "in/0.png", encoded(9))
    buckets.remove([out / "ids/1.png"])
    buckets.write(bucket / "in/new.png", encoded(1))
    assert run(model, bucket / "in", "-o", out, "--save", "ids") == 0
    printed = capsys.readouterr()
    assert "3 of 3 files segmented" in printed.out and "2 were there already" in printed.out
    assert f"made again: {bucket}/in/0.png" in printed.err
    assert "made of another file, or one that changed since" in printed.err
    assert buckets.read(out / "ids/0.png") != made
    assert buckets.read(out / "ids/1.png") == buckets.read(out / "ids/new.png")
    # What was added before became part of the one file.
    assert len([name for name in buckets.level(out).objects if name.endswith(".jsonl")]) == 2


def test_a_run_that_ends_in_between_goes_on(bucket, model, capsys, monkeypatch):
    for i in range(6):
        buckets.write(bucket / f"in/{i}.png", encoded(i))
    monkeypatch.setattr(transfers, "AT_A_TIME", 2)
    write, written = buckets.put, []

    def failing(found):
        written.append(next(iter(found)))
        if len(written) == 7:
            raise OSError("the line is cut")
        write(found)

    monkeypatch.setattr(buckets, "put", failing)
    assert run(model, bucket / "in", "-o", bucket / "out", "--save", "ids") == 1
    assert "the line is cut" in capsys.readouterr().err
    there = [name for name in contents(bucket / "out") if name.startswith("ids/")]
    assert 0 < len(there) < 6
    monkeypatch.setattr(buckets, "put", write)
    assert run(model, bucket / "in", "-o", bucket / "out", "--save", "ids") == 0
    # Those that were under way at the end are not recorded.
    numbers = re.search(r"(\d) of \d files .*, (\d) were there already", capsys.readouterr().out)
    made, kept = map(int, numbers.groups())
    assert made + kept == 6 and 0 < kept <= len(there)
    assert len([name for name in contents(bucket / "out") if name.startswith("ids/")]) == 6


def test_patterns_single_objects_and_what_is_not_there(bucket, tmp_path, monkeypatch):
    there, here = fill(bucket / "in", tmp_path / "in", PHOTOS)
    for inputs in (["a/*.png"], ["**/same*"], ["*/c/*.jpg", "a/1.png"], ["b/c/same.png"], [""]):
        found, local = (
            plan.planned_outputs([f"{root}/{name}" for name in inputs]) for root in (there, here)
        )
        assert list(found.values()) == list(local.values())
        assert all(map(buckets.find, found))
    for name, problem in {
        f"{there}/none": "no such file or folder",
        f"{there}/a/*.jpg": "no pictures match",
        f"{there}/a/0.png/*": "no pictures match",
        "https://a.b/c.png": "addresses of buckets begin with gs:// or s3://",
    }.items():
        with pytest.raises(ValueError, match=f"{name}: {problem}".replace("*", r"\*")):
            plan.planned_outputs([name])


def test_results_of_earlier_runs_are_no_inputs(bucket, model, capsys):
    buckets.write(bucket / "in/0.png", encoded(0))
    assert run(model, bucket / "in", "-o", bucket / "in") == 0
    assert run(model, bucket / "in", "-o", bucket / "in") == 0
    assert "left out: 3 results of earlier runs" in capsys.readouterr().err


def test_shards_share_a_bucket(bucket, model, capsys):
    for i in range(8):
        buckets.write(bucket / f"in/{i}.png", encoded(i))
    arguments = (model, bucket / "in", "-o", bucket / "out", "--save", "ids")
    for index in (0, 1, 1):
        assert run(*arguments, "--shard", f"{index}/2") == 0
    assert "0 of 0 files" in capsys.readouterr().out.splitlines()[-1]
    assert len(entries(bucket / "out", bucket, capsys)) == 8
    assert run(*arguments) == 0
    assert "8 were there already" in capsys.readouterr().out
    names = buckets.level(bucket / "out").objects
    assert [name for name in names if name.endswith(".jsonl")] == ["results.jsonl"]
    assert len(entries(bucket / "out", bucket, capsys)) == 8


def test_videos_and_tar_files(bucket, model, tmp_path, capsys):
    with write_video(tmp_path / "in/clip.mp4") as append:
        for i in range(3):
            append(Frame(np.full((34, 48, 3), 60 * i, np.uint8), i / 10, 0.1))
    with write_video(tmp_path / "in/clip.gif") as append:
        append(Frame(np.full((34, 48, 3), 90, np.uint8), 0, 0.1))
    with tarfile.open(tmp_path / "in/photos.tar", "w") as tar:
        for i in range(3):
            data = encoded(i)
            member = tarfile.TarInfo(f"x/{i}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for path in (tmp_path / "in").iterdir():
        buckets.write(bucket / "in" / path.name, path.read_bytes())
    for name, flags in {"": [], "photos.tar": ["--tar"]}.items():
        for place in (bucket, tmp_path):
            out, kinds = place / f"out{name}", ("--save", "overlay,ids")
            assert run(model, place / "in" / name, "-o", out, *kinds, *flags) == 0
        assert contents(bucket / f"out{name}") == contents(tmp_path / f"out{name}")
    assert declared_frames(bucket / "out/overlay/clip_mp4.mp4") == 3
    assert len(list(read_frames(bucket / "out/overlay/clip_gif.gif"))) == 1
    # A shorter one leaves no frame of the longer.
    with write_whole_folder(bucket / "out/ids/clip_mp4") as folder:
        (folder / "000000.png").touch()
    assert list(buckets.level(bucket / "out/ids/clip_mp4").objects) == ["000000.png"]
    assert capsys.readouterr().err.count("left out") == 2


def test_a_model_reads_pictures_by_their_addresses(bucket, model):
    buckets.write(bucket / "0.png", encoded(0))
    seg = segmenter_jax.load(model)
    ids = seg.predict(Image.open(io.BytesIO(encoded(0))))
    np.testing.assert_array_equal(seg.predict(str(bucket / "0.png")), ids)
    with pytest.raises(FileNotFoundError, match=rf"{bucket}/1.png: no such object"):
        seg.predict(str(bucket / "1.png"))


def test_rights_to_an_object_are_not_its_content():
    listed = {"size": 3, "md5Hash": "rL0Y20zC+Fzt72VPzMSk2A==", "generation": "7"}
    stamps = {
        buckets._stored(epath.Path("gs://b/x"), listed | {"etag": etag, "updated": etag}).stamp
        for etag in ("CAE=", "CAI=")
    }
    assert len(stamps) == 1


def test_requests_run_side_by_side_and_come_back_in_order(bucket, monkeypatch):
    together = threading.Barrier(8, timeout=30)
    monkeypatch.setattr(transfers, "read_bytes", lambda path: (together.wait(), path.name)[1])
    paths = [bucket / str(number) for number in range(16)]
    fetched = transfers.fetched(paths, lambda path: 1)
    assert [read() for _, read in fetched] == [path.name for path in paths]

    def write(item):
        together.wait()

    assert list(transfers.written(range(16), write, lambda item: 1, bucket)) == [*range(16)]
    # Of large pictures fewer wait; locally none does.
    started = []
    large = transfers._MOST_PIXELS // 2
    for done in transfers.written(range(9), started.append, lambda item: large, bucket):
        assert len(started) <= done + 3
    for done in transfers.written(range(9, 12), started.append, lambda item: 1, Path("a")):
        assert started[-1] == done


def lines_of(bucket):
    (found,) = record_files.find_files(bucket).values()
    return list(record_files.read_lines(found)), [file.name for file in found]


def test_lines_become_objects_in_a_while_without_more_to_add(bucket, monkeypatch):
    growing = record_files.Growing(bucket, "")
    growing.add(["0\n"])
    assert lines_of(bucket) == ([], [])
    growing.close()
    monkeypatch.setattr(record_files, "_SECONDS", 0.01)
    again = record_files.Growing(bucket, "")
    again.add(["1\n"])
    end = time.monotonic() + 30
    while len(lines_of(bucket)[1]) < 2:
        assert time.monotonic() < end
    assert lines_of(bucket)[0] == ["0\n", "1\n"]


def test_many_objects_of_lines_become_one(bucket, monkeypatch):
    monkeypatch.setattr(record_files, "_SECONDS", 0.0)
    monkeypatch.setattr(record_files, "_MOST_PARTS", 3)
    growing = record_files.Growing(bucket, "")
    for number in range(7):
        growing.add([f"{number}\n"])
        growing.close()
    lines, names = lines_of(bucket)
    assert lines == [f"{number}\n" for number in range(7)] and len(names) == 3


def test_names_with_brackets_are_no_patterns(bucket, tmp_path):
    for name in ("clip 1", "clip [1]", "clip *"):
        buckets.write(bucket / f"ids/{name}/000000.png", b"0")
        buckets.write(bucket / f"ids/{name}/000001.png", b"1")
    with write_whole_folder(bucket / "ids/clip [1]") as folder:
        (folder / "000000.png").write_bytes(b"new")
    buckets.remove_folder(bucket / "ids/clip *")
    assert contents(bucket) == {
        "ids/clip 1/000000.png": b"0",
        "ids/clip 1/000001.png": b"1",
        "ids/clip [1]/000000.png": b"new",
    }
    buckets.write(bucket / "ids/clip [1]/a.png", encoded(0))
    for pattern in ("clip [1]/a*", "clip [[]1]/a*"):
        found = plan.planned_outputs([f"{bucket}/ids/{pattern}"])
        assert [stem.name for stem in found.values()] == ["a"]
    for name in (f"{str(bucket)[:-1]}?/a.png", "s3://"):
        with pytest.raises(ValueError, match="names no bucket, which cannot be a pattern"):
            plan.planned_outputs([name])


def test_an_object_may_have_the_name_of_a_folder(bucket, model, capsys):
    for name in ("in/a.png", "in/a.png/b.png"):
        buckets.write(bucket / name, encoded(0))
    for made in ("2 of 2 files", "0 of 0 files"):
        assert run(model, bucket / "in", "-o", bucket / "out", "--save", "ids") == 0
        assert made in capsys.readouterr().out
    # A hidden picture that was named is there as well.
    buckets.write(bucket / ".h.png", encoded(0))
    for made in ("1 of 1 files", "0 of 0 files"):
        assert run(model, bucket / ".h.png", "-o", bucket / "out", "--save", "ids") == 0
        assert made in capsys.readouterr().out


def test_results_that_cannot_be_listed_are_not_made_again(bucket, model, capsys, monkeypatch):
    buckets.write(bucket / "in/0.png", encoded(0))
    arguments = (model, bucket / "in", "-o", bucket / "out", "--save", "ids")
    assert run(*arguments) == 0
    level = buckets.level

    def failing(folder):
        if str(folder).endswith("out/ids"):
            raise buckets.StoreError(f"{folder}: busy")
        return level(folder)

    monkeypatch.setattr(bucket_listing, "level", failing)
    assert run(*arguments) == 1
    assert f"error: {bucket}/out/ids: busy" in capsys.readouterr().err
    monkeypatch.setattr(bucket_listing, "level", level)
    assert run(*arguments) == 0
    assert "1 were there already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "photos.tar", "photo.png"])
def test_a_store_that_does_not_answer_is_no_damage(
    bucket, model, tmp_path, capsys, monkeypatch, name
):
    if name.startswith("clip"):
        with write_video(tmp_path / name) as append:
            for i in range(40):
                noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
                append(Frame(noise, i / 10, 0.1))
    elif name == "photo.png":
        (tmp_path / name).write_bytes(encoded(0))
    else:
        with tarfile.open(tmp_path / name, "w") as tar:
            (tmp_path / "0.png").write_bytes(encoded(0))
            for i in range(40):
                tar.add(tmp_path / "0.png", f"{i}.png")
    buckets.write(bucket / "in" / name, (tmp_path / name).read_bytes())
    buckets.write(bucket / "in/good.mp4", b"")
    readinto, read = buckets._Reading.readinto, buckets.read

    def cut(self, buffer):
        if self.tell() > 0:
            raise buckets.StoreError(f"{self._path}: the line is cut")
        return readinto(self, buffer)

    def cut_at_once(path, *rest):
        if str(path).endswith("photo.png"):
            raise buckets.StoreError(f"{path}: the line is cut")
        return read(path, *rest)

    monkeypatch.setattr(buckets._Reading, "readinto", cut)
    monkeypatch.setattr(buckets, "read", cut_at_once)
    tars = ["--tar"] if name.endswith(".tar") else []
    assert run(model, bucket / "in" / name, "-o", bucket / "out", "--save", "ids", *tars) == 1
    assert f"skipped: {bucket}/in/{name}: the line is cut" in capsys.readouterr().err
    assert names_in(bucket / "out") == []
    # Another time there is nothing in the way.
    monkeypatch.setattr(buckets._Reading, "readinto", readinto)
    monkeypatch.setattr(buckets, "read", read)
    assert run(model, bucket / "in" / name, "-o", bucket / "out", "--save", "ids", *tars) == 0


def test_shards_of_another_number_gather_at_the_same_time(bucket):
    for index in range(4):
        for part in ("", ".part-000000000", ".part-000000001"):
            line = json.dumps({"result": f"ids/{index}{part}.png", "source": "x"})
            buckets.write(bucket / f"results.{index}-of-4{part}.jsonl", f"{line}\n".encode())
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda index: records.gather(bucket, 6), range(6)))
    lines, names = lines_of(bucket)
    assert len(lines) == 12 and names == ["results.jsonl"]


SLOWLY = """
import sys, time
from segmenter_jax import predict
from segmenter_jax.inference import record_files, transfers
from segmenter_jax.runtime import buckets

put, record_files._SECONDS, transfers.AT_A_TIME = buckets.put, 0.05, 1
buckets.put = lambda files: (time.sleep(0.1), put(files))
predict.main(sys.argv[1:])
"""


def test_what_a_killed_process_made_is_kept(bucket, model, capsys):
    for i in range(40):
        buckets.write(bucket / f"in/{i:03d}.png", encoded(i % 7))
    arguments = [str(a) for a in (model, bucket / "in", "-o", bucket / "out", "--save", "ids")]
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *arguments], env=environment())
    end = time.monotonic() + 120
    while len(record_files.find_files(bucket / "out")[""]) < 3:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    made, kept = map(int, re.search(r"(\d+) of \d+ files .*, (\d+) were", printed).groups())
    assert made + kept == 40 and made > 0 and kept > 0
    assert len(names_in(bucket / "out")) == 41
    assert len(entries(bucket / "out", bucket, capsys)) == 40


def test_a_file_is_written_whole_or_not_at_all(bucket):
    buckets.write(bucket / "scores.json", b"old")
    with pytest.raises(OSError, match="disk"), write_whole(bucket / "scores.json") as part:
        part.write_text("half")
        raise OSError("disk is full")
    assert contents(bucket) == {"scores.json": b"old"}
    with write_whole(bucket / "scores.json") as part:
        assert part.suffix == ".json" and Path(part).parent.is_dir()
        part.write_text("new")
    assert contents(bucket) == {"scores.json": b"new"}


def test_errors_name_the_address(bucket, model, capsys):
    buckets.write(bucket / "0.png", encoded(0))
    nowhere = f"{bucket}-of-nobody"
    assert run(model, bucket / "0.png", "-o", f"{nowhere}/out") == 1
    assert f"error: {nowhere}/out/results.jsonl: no such object, or no such bucket" in (
        capsys.readouterr().err
    )
