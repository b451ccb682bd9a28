"""Sources segmented on a Ray cluster of several nodes, one of which dies."""

import json
import pathlib
import threading
import time

import numpy as np
import pytest
from PIL import Image

from segmenter_jax import predict
from segmenter_jax.inference import ray_engine
from segmenter_jax.inference.records import RECORDS_FILE, manifest
from tests.models_on_disk import write_golden_model

pytestmark = pytest.mark.slow

PICTURES = 100


@pytest.fixture
def cluster():
    """A head without cores, and two nodes."""
    ray = pytest.importorskip("ray", reason='needs pip install "segmenter_jax[ray]"')
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def run(*arguments):
    return predict.main([str(a) for a in arguments])


def files(folder):
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.png")}
    found.pop(pathlib.PurePath("legend.png"))
    return found


def test_every_result_is_there_once_though_a_node_dies(cluster, tmp_path, monkeypatch, capsys):
    cluster, nodes = cluster
    monkeypatch.setattr(ray_engine, "PIECE", 5)
    photos, model = tmp_path / "photos", write_golden_model(tmp_path / "model")
    photos.mkdir()
    for index in range(PICTURES):
        noise = np.random.default_rng(index).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(noise).save(photos / f"{index:03d}.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    out, alone = tmp_path / "out", tmp_path / "alone"
    records = out / RECORDS_FILE
    left = []

    def kill_one():
        while not records.exists() or records.read_bytes().count(b"\n") < PICTURES // 5:
            time.sleep(0.05)
        from ray.util.state import list_actors

        at_work = {a.node_id for a in list_actors() if a.class_name.startswith("MapWorker")}
        (victim, *_) = [node for node in nodes if node.node_id in at_work]
        cluster.remove_node(victim, allow_graceful=False)
        left.append(2 * PICTURES - records.read_bytes().count(b"\n"))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert run(model, photos, "-o", out, "--save", "ids,confidence", "--engine", "ray") == 1
    killer.join()
    assert left[0] > PICTURES // 2
    printed = capsys.readouterr()
    assert f"{PICTURES} of {PICTURES + 1} files segmented" in printed.out
    assert not (out / ".todo.jsonl").exists()
    assert run(model, photos, "-o", alone, "--save", "ids,confidence") == 1
    assert files(out) == files(alone) and len(files(out)) == 2 * PICTURES
    entries = list(manifest(out))
    assert len(entries) == PICTURES + 1
    assert sum(entry["error"] is not None for entry in entries) == 1
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    results = [line["result"] for line in lines if "result" in line]
    assert len(results) == len(set(results)) == 2 * PICTURES
    # It goes on where it stopped.
    (out / "ids" / "000.png").unlink()
    assert run(model, photos / "000.png", "-o", out, "--save", "ids", "--engine", "ray") == 0
    assert "1 of 1 files segmented" in capsys.readouterr().out
