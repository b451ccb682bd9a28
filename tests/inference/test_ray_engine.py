"""Sources segmented on a Ray cluster: its processes alone, and several nodes, one of which dies."""

import contextlib
import json
import threading
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

from segmenter_jax import predict
from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.inference import ray_engine, record_files
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.plan import planned_outputs
from segmenter_jax.inference.predictor import read_model
from segmenter_jax.inference.records import Records, manifest
from segmenter_jax.inference.results import Results, Wanted
from segmenter_jax.runtime.files import exists, remove_all, write_whole
from tests.models_on_disk import write_golden_model
from tests.object_stores import contents, names_in, object_store
from tests.ray_cluster import ray_cluster

PICTURES = 100


@pytest.fixture
def cluster():
    with ray_cluster() as cluster:
        yield cluster


def run(*arguments):
    return predict.main([str(a) for a in arguments])


def results(folder):
    found = contents(folder)
    found.pop("legend.png", None)
    return found


@pytest.fixture(params=["a folder", "s3"])
def place(request, tmp_path):
    """Where pictures and results are."""
    if request.param == "a folder":
        yield tmp_path
    else:
        with object_store(request.param) as bucket:
            yield epath.Path(bucket)


def write_photos(folder, count):
    """Writes pictures, and one that cannot be read."""
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (40, 48, 3), np.uint8)
        with write_whole(folder / f"{index:03d}.png") as part:
            Image.fromarray(noise).save(part)
    with write_whole(folder / "broken.jpg") as part:
        part.write_bytes(b"\xff\xd8\xff")
    return folder


def test_processes_of_a_cluster_make_what_one_alone_does(place, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "PIECE", 2)
    photos, model = write_photos(place / "photos", 3), write_golden_model(tmp_path / "model")
    out, alone, outputs = place / "out", tmp_path / "alone", ("ids", "confidence")
    description, params = read_model(model)
    weights, wanted = weights_digest(params), Wanted(outputs, 0.5, None)
    job, plan = ray_engine.Job(str(model), weights, {}, wanted, outputs), planned_outputs([photos])
    with ray_engine.list_file(out, plan) as offsets:
        made = ray_engine.Worker(job, out, offsets)({"item": np.arange(len(offsets) - 1)})
    assert made["sources"] == [2, 2] and sum(made["failed"]) == 1
    settings = InferenceSettings.of(description)
    with contextlib.closing(Records(out)) as kept:
        taking = Results(out, plan, wanted, description, settings, weights, kept)
        for records, seen in zip(made["records"], made["seen"], strict=True):
            taking.take(json.loads(records), json.loads(seen))
    assert run(model, photos, "-o", alone, "--save", ",".join(outputs)) == 1
    assert results(out) == results(alone) and len(results(out)) == 6

    def entries(folder):
        return [entry | {"seconds": None} for entry in manifest(folder)]

    assert entries(out) == entries(alone) and len(entries(out)) == 4


def test_a_process_of_a_cluster_refuses_another_model(tmp_path):
    model = write_golden_model(tmp_path / "model")
    job = ray_engine.Job(str(model), "0" * 64, {}, Wanted(("ids",), 0.5, None), ("ids",))
    with pytest.raises(ValueError, match="is another model here than where the job began"):
        ray_engine.Worker(job, tmp_path, np.array([0]))


@pytest.mark.slow
def test_every_result_is_there_once_though_a_node_dies(
    place, cluster, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ray_engine, "PIECE", 5)
    photos = write_photos(place / "photos", PICTURES)
    model = write_golden_model(tmp_path / "model")
    out, alone = place / "out", tmp_path / "alone"
    left = []

    def kill_one():
        while len(names_in(out)) < PICTURES // 5:
            time.sleep(0.05)
        cluster.kill_one_at_work()
        left.append(2 * PICTURES - len(names_in(out)))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert run(model, photos, "-o", out, "--save", "ids,confidence", "--engine", "ray") == 1
    killer.join()
    assert left[0] > PICTURES // 2
    printed = capsys.readouterr()
    assert f"{PICTURES} of {PICTURES + 1} files segmented" in printed.out
    assert not exists(out / ".todo.jsonl")
    assert run(model, photos, "-o", alone, "--save", "ids,confidence") == 1
    assert results(out) == results(alone) and len(results(out)) == 2 * PICTURES
    entries = list(manifest(out))
    assert len(entries) == PICTURES + 1
    assert sum(entry["error"] is not None for entry in entries) == 1
    (records,) = record_files.find_files(out).values()
    lines = [json.loads(line) for line in record_files.read_lines(records)]
    made = [line["result"] for line in lines if "result" in line]
    assert len(made) == len(set(made)) == 2 * PICTURES
    # It goes on where it stopped.
    remove_all([out / "ids" / "000.png"])
    assert run(model, photos / "000.png", "-o", out, "--save", "ids", "--engine", "ray") == 0
    assert "1 of 1 files segmented" in capsys.readouterr().out
