"""Training runs as a user starts them: what they leave, how they stop, fail and go on."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from segmenter_jax import load
from segmenter_jax.data.builders.shapes import render_scene
from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.ownership import InUseError
from segmenter_jax.training.loop import train_and_evaluate
from segmenter_jax.training.step_metrics import NonFiniteLossError, Progress
from tests.tiny_runs import (
    LIGHT,
    ROOT,
    environment,
    run_python,
    state_bytes,
    tiny_config,
    train_arguments,
)


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """What is logged reaches pytest, also after a command has set up its console."""
    monkeypatch.setattr(logger, "propagate", True)


# Runs the command, and then says which large libraries it has imported.
COMMAND = """
import sys
from absl import app
from segmenter_jax import main
try:
    app.run(main.main, flags_parser=main.parse_flags)
except SystemExit as stop:
    assert not stop.code
print([name for name in ("tensorflow", "torch") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """Workdir and output of a run of six steps that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    result = run_python("-c", COMMAND, *train_arguments(workdir, source)[2:])
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    return workdir, result.stderr


def start(workdir, source, **overrides):
    return subprocess.Popen(
        [sys.executable, *map(str, train_arguments(workdir, source, **overrides))],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


def test_run_leaves_everything_that_is_promised(finished):
    workdir, output = finished
    for name in (
        "config.json",
        "metrics.jsonl",
        "report.json",
        "checkpoints/3",
        "checkpoints/6",
        "model/latest/model.json",
        "model/best/model.json",
        "predictions/scene_0.png",
    ):
        assert (workdir / name).exists(), name
    assert list(workdir.glob("events.*"))
    assert "encoder/encoderblock_*/attention/query/kernel (64, 2, 32), blocks 0 to 1" in output
    assert "compiling the training step for 1 x cpu\n" in output and "compiled in " in output
    assert "step 6/6" in output and "window 48, stride 32" in output


def test_metrics_have_every_logged_step_once(finished):
    workdir, _ = finished
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "train/loss" in r] == [2, 4, 6]
    assert [r["step"] for r in rows if "eval/mean_iou" in r] == [6]
    assert all(r["train/loss"] > 0 and r["train/images_per_second"] > 0 for r in rows[:3])


def test_report_counts_exactly_the_labelled_pixels(finished):
    workdir, _ = finished
    report = json.loads((workdir / "report.json").read_text())
    labels = [render_scene("validation", index)[1] for index in range(3)]
    assert report["num_images"] == 3
    assert report["num_pixels"] == sum(int((label != 255).sum()) for label in labels)


def test_trained_model_predicts_at_the_size_of_the_image(finished):
    workdir, _ = finished
    image, _ = render_scene("validation", 1)
    segmenter = load(workdir)
    assert segmenter.predict(image).shape == image.shape[:2]
    assert segmenter.classes[0] == "background"


def test_evaluate_command_repeats_the_score_of_the_run(finished, source, tmp_path):
    workdir, _ = finished
    file = tmp_path / "report.json"
    # The run knows its dataset, its folder and its split.
    result = run_python("-m", "segmenter_jax.evaluate", workdir, f"--json={file}")
    assert result.returncode == 0, result.stderr
    taken = f"as in the run: --dataset=tiny --data_dir={source.parent / 'built'} --split=val"
    assert taken in result.stderr
    ours, run = (json.loads(path.read_text()) for path in (file, workdir / "report.json"))
    assert ours == run


def test_finished_run_is_left_as_it_is(finished, source, caplog):
    caplog.set_level(logging.INFO)
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    assert train_and_evaluate(tiny_config(source), workdir) == {}
    assert "already at step 6 of 6: nothing to do" in caplog.text
    assert "encoderblock" not in caplog.text
    assert (workdir / "metrics.jsonl").read_text() == before


def with_classes(source, folder, change):
    """The dataset again, with another table of its classes."""
    shutil.copytree(source, folder)
    table = json.loads((folder / "classes.json").read_text())
    table["classes"] = change(table["classes"])
    (folder / "classes.json").write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [c[1], c[0], *c[2:]], "class 0 was 'background', is 'disk'; class 1 was"),
        (lambda c: [*c, c[0] | {"id": 7, "name": "moon"}], "7 classes there, 8 here"),
    ],
)
def test_a_run_with_other_labels_is_refused_and_changes_nothing(
    finished, source, tmp_path, change, message
):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    config = tiny_config(with_classes(source, tmp_path / "changed", change), total_steps=12)
    with pytest.raises(ValueError, match=f"its run had other labels: {message}"):
        train_and_evaluate(config, workdir)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_fewer_steps_than_are_done_leave_the_run_as_it_is(finished, source, tmp_path, caplog):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config = (workdir / "config.json").read_text()
    assert train_and_evaluate(tiny_config(source, total_steps=5), workdir) == {}
    assert caplog.messages[-1] == "already at step 6 of 5: nothing to do"
    assert (workdir / "config.json").read_text() == config


def test_scores_of_another_split_are_not_compared(finished, source, tmp_path, caplog):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    best = workdir / "model/best/model.json"
    description = json.loads(best.read_text())
    description["provenance"]["mean_iou"] = 1.0
    best.write_text(json.dumps(description))
    rows = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(r for r in rows if "eval/" not in r))
    caplog.set_level(logging.INFO)
    train_and_evaluate(tiny_config(source, dataset__eval_split="train"), workdir)
    assert "score is not comparable: split was 'val', is 'train'; num_images was" in caplog.text
    provenance = json.loads(best.read_text())["provenance"]
    assert provenance["mean_iou"] < 1 and provenance["scored_on"]["split"] == "train"
    # Warnings stand below what a start tells, and once more at the end.
    told = caplog.messages
    first = next(i for i, text in enumerate(told) if text.startswith("config.dataset.eval_split"))
    assert told.index("resumed at step 6") < first
    assert told[first] not in told[first + 1 :] and told[first] in told[-1]


def test_evaluation_that_was_cut_short_is_made_up_for(finished, source, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    *steps, evaluated = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(steps))
    results = train_and_evaluate(tiny_config(source), workdir)
    *again, made_up = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert again == steps
    expected, found = json.loads(evaluated), json.loads(made_up)
    assert "eval/mean_iou" in expected and found.keys() == expected.keys()
    assert found["eval/mean_iou"] == expected["eval/mean_iou"] == results["mean_iou"]


def test_killed_run_goes_on_bit_for_bit(finished, source, tmp_path):
    workdir = tmp_path / "killed"
    process = start(workdir, source)
    wait_for(workdir / "checkpoints" / "3", process)
    # Standing still, it cannot finish while it is looked at.
    process.send_signal(signal.SIGSTOP)
    unfinished = not (workdir / "checkpoints" / "6").exists()
    process.kill()
    process.wait()
    assert unfinished, "the run was over before it could be killed"
    result = run_python(*train_arguments(workdir, source))
    assert result.returncode == 0, result.stderr
    assert "resumed at step 3" in result.stderr
    assert state_bytes(workdir, 6) == state_bytes(finished[0], 6)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "train/loss" in r] == [2, 4, 6]


def test_sigterm_saves_and_leaves_with_success(source, tmp_path):
    workdir = tmp_path / "stopped"
    settings = LIGHT | {"total_steps": 100_000, "checkpoint__every_steps": 10_000}
    process = start(workdir, source, **settings)
    wait_for(workdir / "metrics.jsonl", process)
    while not (workdir / "metrics.jsonl").read_text():
        time.sleep(0.01)
    # A second run is told whose the folder is, and disturbs nothing.
    with pytest.raises(InUseError, match=f"in use by process {process.pid} on "):
        train_and_evaluate(tiny_config(source, **settings), workdir)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "SIGTERM: saving step" in output
    (step,) = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert f"saving step {step} " in output and 0 < step < 10_000


def test_eight_devices_train(source, tmp_path):
    settings = LIGHT | {"batch_size": 8, "mesh__fsdp": 2, "mesh__num_devices": 8}
    config = tiny_config(source, **settings)
    results = train_and_evaluate(config, tmp_path / "eight")
    assert 0 <= results["mean_iou"] <= 1


def test_diverged_run_stops_and_keeps_the_last_good_checkpoint(finished, source, tmp_path, caplog):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config = tiny_config(source, total_steps=12, optimizer__learning_rate=1e30)
    with pytest.raises(NonFiniteLossError, match="the update_norm of step 7 is inf, with learning"):
        train_and_evaluate(config, workdir)
    assert "config.total_steps was 6 when this run began, is now 12" in caplog.text
    assert [path.name for path in sorted((workdir / "checkpoints").iterdir())] == ["3", "6"]
    assert state_bytes(workdir, 6) == state_bytes(finished[0], 6)


def test_an_accidental_copy_to_the_devices_ends_the_run(source, tmp_path, monkeypatch):
    add = Progress.add
    monkeypatch.setattr(
        Progress, "add", lambda self, row: add(self, row) or row["loss"] + np.ones(1)
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train_and_evaluate(tiny_config(source, **LIGHT), tmp_path / "run")
