"""Evaluations of a tiny model while it trains: what they leave, and what a stop leaves out."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from segmenter_jax.checkpoints.model_dir import load_description, load_model
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.models.params import init_params
from segmenter_jax.pictures import overlay
from segmenter_jax.training import experiment as experiments
from segmenter_jax.training.run_log import RunLog, read_metrics
from segmenter_jax.training.stop_request import StopRequest
from segmenter_jax.training.validation import Validation
from tests.tiny_runs import LIGHT, tiny_config, write_dataset


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    source = write_dataset(tmp_path_factory.mktemp("data") / "scenes", val=5)
    return experiments.build(tiny_config(source, eval__num_pictures=2, **LIGHT))


@pytest.fixture
def run(experiment, tmp_path):
    """(workdir, function that evaluates parameters of a seed at a step)."""
    workdir = epath.Path(tmp_path)
    log = RunLog(workdir, 0)

    def evaluate(seed, step, stop=None):
        validation = Validation(experiment, workdir, log)
        program = dataclasses.replace(experiment.program, seed=seed)
        state = program.place(init_params(program.model.config, seed))
        return validation.run(state.eval_params, step, stop or StopRequest())

    yield workdir, evaluate
    log.close()


def test_what_is_probably_not_meant_is_told_before_the_first_step(tmp_path, caplog):
    source = write_dataset(tmp_path / "scenes", train=2, val=2)
    for path in (source / "annotations/train").iterdir():
        label = np.asarray(Image.open(path))
        Image.fromarray(np.where(label == 1, 0, label).astype(np.uint8)).save(path)
    experiments.build(tiny_config(source, **LIGHT))
    assert "dataset tiny: classes that train never shows, but val: disk" in caplog.text


def test_evaluation_leaves_report_models_pictures_and_numbers(run, experiment):
    workdir, evaluate = run
    totals = evaluate(0, 5)
    report = json.loads((workdir / "report.json").read_text())
    assert report["mean_iou"] == pytest.approx(totals["mean_iou"])
    assert read_metrics(workdir)["eval/mean_iou"] == ([5], [totals["mean_iou"]])
    # Five pictures with their names, in two columns.
    assert Image.open(workdir / "worst.png").width > 6 * 240
    # Two of them, not next to each other.
    assert sorted(p.name for p in (workdir / "predictions").iterdir()) == [
        "scene_0.png",
        "scene_2.png",
    ]
    # The image as it is, its label painted over, and the prediction.
    example = EvalTransform(experiment.dataset.spec)(experiment.dataset.source("val")[0])
    painted = overlay(example["image"], example["label"], experiment.dataset.spec.colors)
    picture = np.asarray(Image.open(workdir / "predictions" / f"{example['name']}.png"))
    np.testing.assert_array_equal(np.split(picture, 3, axis=1)[:2], [example["image"], painted])
    for name in ("latest", "best"):
        description, params = load_model(workdir / "model" / name)
        assert description.provenance["step"] == 5
        assert description.provenance["mean_iou"] == totals["mean_iou"]
        assert params.keys() == {"encoder", "decoder"}


def test_best_model_stays_until_a_better_one_comes(run):
    workdir, evaluate = run
    scores = {step: evaluate(step, step)["mean_iou"] for step in (1, 2, 3)}
    assert load_description(workdir / "model/latest").provenance["step"] == 3
    best = load_description(workdir / "model/best").provenance
    assert best["step"] == max(scores, key=scores.get)


def test_nothing_is_kept_of_an_evaluation_that_a_signal_ends(run):
    workdir, evaluate = run
    stop = StopRequest()
    stop.received = "SIGTERM"
    assert evaluate(0, 5, stop) is None
    assert not (workdir / "model").exists() and not (workdir / "report.json").exists()
