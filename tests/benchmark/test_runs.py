"""Every benchmark from its archives through training and evaluation of a tiny model."""

import json

import pytest

from segmenter_jax import prepare_data
from segmenter_jax.data.specs import BENCHMARKS
from tests import tiny_runs
from tests.data import replicas


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("name", replicas.NAMES)
def test_replica_trains_and_evaluates(name, kind, tmp_path):
    data_dir = tmp_path / "built"
    writer = replicas.write if kind == "folder" else replicas.write_zipped
    source = writer(name, tmp_path / "source")
    arguments = ["--source", str(source), "--data_dir", str(data_dir), "--allow_partial"]
    assert prepare_data.main([name, *arguments]) == 0
    split = "test" if name == "rgbt_glass" else "validation"
    overrides = {
        "dataset__name": name,
        "dataset__source": "",
        "dataset__data_dir": data_dir,
        "dataset__eval_split": split,
        "total_steps": 3,
    }
    workdir = tmp_path / "run"
    run = tiny_runs.run_python(*tiny_runs.train_arguments(workdir, source, **overrides))
    assert run.returncode == 0, run.stderr

    flags = ["--dataset", name, "--data_dir", data_dir, "--split", split]
    flags += ["--json", tmp_path / "report.json"]
    run = tiny_runs.run_python("-m", "segmenter_jax.evaluate", workdir, *flags)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_images"] == replicas.SPLITS[name][split]
    assert [row["class"] for row in report["classes"]] == list(BENCHMARKS[name].class_names)
    trained = json.loads((workdir / "report.json").read_text())
    assert report["mean_iou"] == pytest.approx(trained["mean_iou"], abs=1e-6)
