"""Runs with the options that no published recipe uses, as a user starts them."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from jax.profiler import ProfileData

from segmenter_jax import load
from segmenter_jax.checkpoints.model_dir import load_description, load_model
from segmenter_jax.models.normalization import NORMALIZATION
from segmenter_jax.runtime.console import logger
from segmenter_jax.training.profiling import StepProfile
from tests.tiny_runs import run_python, state_bytes, train_arguments, write_dataset


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "scenes")


def train(workdir, source, **overrides):
    result = run_python(*train_arguments(workdir, source, **overrides))
    assert result.returncode == 0, result.stderr
    return result.stderr


EVERY = {
    "ema_decay": 0.5,
    "grad_accum_steps": 2,
    "optimizer__layer_decay": 0.75,
    "optimizer__max_skipped_updates": 2,
    "loss__class_weights": "(0.5,1.0,1.0,1.0,2.0,1.0,1.0)",
}


@pytest.fixture(scope="module")
def averaged(source, tmp_path_factory):
    """Workdir and output of a run with everything switched on."""
    workdir = tmp_path_factory.mktemp("runs") / "averaged"
    return workdir, train(workdir, source, **EVERY)


def test_average_is_what_is_kept_and_evaluated(averaged):
    workdir, output = averaged
    assert "average of parameters" in output and "activations and work space" in output
    state = state_bytes(workdir, 6)
    description, params = load_model(workdir / "model/latest")
    kernel = params["decoder"]["proj_patch"]
    name = "['decoder']['proj_patch']"
    assert np.asarray(kernel).tobytes() == state["['ema']" + name] != state["['params']" + name]
    assert description.provenance["ema_decay"] == 0.5
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row.get("train/loss"))
    assert row["train/update_norm"] > 0 and row["train/skipped"] == 0


def test_resumed_run_with_an_average_is_exact(averaged, source, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(averaged[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    assert "resumed at step 3" in train(workdir, source, **EVERY)
    assert state_bytes(workdir, 6) == state_bytes(averaged[0], 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ema_decay": 0.0}, "ema_decay was 0.5, is 0.0"),
        ({"optimizer__freeze_encoder": True}, "optimizer.freeze_encoder was False, is True"),
    ],
)
def test_parts_of_the_state_cannot_be_switched_in_a_run(averaged, source, change, message):
    settings = EVERY | {"optimizer__layer_decay": 1.0} | change
    result = run_python(*train_arguments(averaged[0], source, **settings))
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]


def test_start_from_other_weights_is_told_in_the_model(averaged, source, tmp_path):
    start, workdir = averaged[0] / "model/latest", tmp_path / "run"
    settings = {
        "init_from": start,
        "optimizer__freeze_encoder": True,
        "augment__normalization": "deit",
        "total_steps": 3,
    }
    output = train(workdir, source, **settings)
    mean = NORMALIZATION["deit"][0]
    assert (
        f"the source was trained with mean=(0.5, 0.5, 0.5); images are normalised with {mean}"
        in (output)
    )
    provenance = load_description(workdir).provenance
    origin = provenance["init_from"]
    assert origin["format"] == "segmenter_jax" and origin["source"] == str(start)
    assert len(origin["sha256"]) == len(hashlib.sha256().hexdigest())
    assert origin["options"]["position_method"] == "bicubic"
    frozen, first = (load_model(path)[1]["encoder"] for path in (workdir / "model/latest", start))
    jax.tree.map(np.testing.assert_array_equal, frozen, first)

    # What a run came from is known also when it goes on without its source.
    start.rename(tmp_path / "moved")
    try:
        train(workdir, source, **(settings | {"total_steps": 4}))
    finally:
        (tmp_path / "moved").rename(start)
    assert load_description(workdir / "model/latest").provenance["init_from"] == origin


def test_compute_type_of_the_training_machine_does_not_travel(averaged):
    workdir, _ = averaged
    description = load_description(workdir)
    assert description.model.dtype == "auto" and description.model.compute_dtype == "float32"
    assert load(workdir).model.config.compute_dtype == "float32"


def test_profile_of_training_holds_the_steps_asked_for(source, tmp_path):
    workdir = tmp_path / "run"
    output = train(workdir, source, total_steps=14, log__profile_steps=3, eval__num_pictures=0)
    assert f"profile written to {workdir / 'profile'}" in output
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    lines = [line for plane in ProfileData.from_file(str(trace)).planes for line in plane.lines]
    steps = [
        dict(event.stats)["step_num"]
        for line in lines
        for event in line.events
        if event.name == "train"
    ]
    assert steps == [10, 11, 12]


def test_profile_needs_a_local_folder_and_a_count():
    with pytest.raises(ValueError, match="needs a local workdir to write to, got gs://b/run"):
        StepProfile(epath.Path("gs://b/run"), 0, 3)
    with pytest.raises(ValueError, match=r"log\.profile_steps must be at least 0, got -1"):
        StepProfile(epath.Path("run"), 0, -1)


def test_training_goes_on_without_a_profile_that_fails(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    (tmp_path / "profile").write_text("in the way")
    profile = StepProfile(epath.Path(tmp_path), 5, 2)
    due = []
    for step in range(5, 20):
        if profile.due(step):
            due.append(step)
            profile.switch()
    profile.close()
    assert due[0] == 15 and "no profile: " in caplog.text


def test_run_stops_after_too_many_skipped_updates(source, tmp_path):
    settings = {"optimizer__learning_rate": 1e38, "optimizer__warmup_steps": 0, "total_steps": 12}
    arguments = train_arguments(
        tmp_path / "run", source, optimizer__max_skipped_updates=3, **settings
    )
    result = run_python(*arguments)
    assert result.returncode == 1
    assert "after 3 skipped updates" in result.stderr.splitlines()[-1]
    assert "of the last updates were skipped" in result.stderr
