"""Training runs as a user starts them: what they leave, how they stop, fail and go on."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from segmenter_jax import load
from segmenter_jax.data.builders.shapes import render_scene
from tests.tiny_runs import (
    ROOT,
    environment,
    run_python,
    state_bytes,
    train_arguments,
    write_dataset,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """Workdir and output of a run of six steps that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    result = run_python(*train_arguments(workdir, source))
    assert result.returncode == 0, result.stderr
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
    assert "encoder/encoderblock_1/attention/query/kernel" in output
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
    result = run_python(
        *("-m", "segmenter_jax.evaluate", workdir, "--dataset=tiny", "--split=val"),
        *(f"--data_dir={source.parent / 'built'}", f"--json={file}"),
    )
    assert result.returncode == 0, result.stderr
    ours, run = (json.loads(path.read_text()) for path in (file, workdir / "report.json"))
    assert ours == run


def test_finished_run_is_left_as_it_is(finished, source):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    result = run_python(*train_arguments(workdir, source))
    assert result.returncode == 0, result.stderr
    assert (workdir / "metrics.jsonl").read_text() == before


def test_evaluation_that_was_cut_short_is_made_up_for(finished, source, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    *steps, evaluated = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(steps))
    result = run_python(*train_arguments(workdir, source))
    assert result.returncode == 0, result.stderr
    *again, made_up = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert again == steps
    expected, found = json.loads(evaluated), json.loads(made_up)
    assert "eval/mean_iou" in expected and found.keys() == expected.keys()
    assert found["eval/mean_iou"] == expected["eval/mean_iou"]


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
    process = start(workdir, source, total_steps=100_000, checkpoint__every_steps=1000)
    wait_for(workdir / "metrics.jsonl", process)
    while not (workdir / "metrics.jsonl").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "SIGTERM: saving step" in output
    (step,) = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert f"saving step {step} " in output and 0 < step < 1000


def test_eight_devices_train(source, tmp_path):
    arguments = train_arguments(tmp_path / "eight", source, batch_size=8, mesh__fsdp=2)
    result = run_python(*arguments, devices=8)
    assert result.returncode == 0, result.stderr
    assert "8 devices" in result.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset__name": "shapez", "dataset__source": ""}, "unknown dataset 'shapez'"),
        ({"dataset__train_split": "training"}, "no split 'training'"),
        ({"batch_size": 3, "grad_accum_steps": 2}, "batch_size=3 (global) does not divide"),
        ({"model__variant": "XL/16"}, "variant='XL/16' is unknown"),
        ({"optimizer__name": "lion"}, "'lion' is unknown; choose from ('sgd', 'adamw')"),
        ({"augment__normalization": "imagenet"}, "normalization='imagenet' is unknown"),
        ({"checkpoint__keep": 0}, "checkpoint.keep must be at least 1"),
    ],
)
def test_failures_are_one_clear_line_and_code_1(source, tmp_path, overrides, message):
    result = run_python(*train_arguments(tmp_path / "run", source, **overrides))
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_diverged_run_stops_and_keeps_the_last_good_checkpoint(finished, source, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    bad = {"total_steps": 12, "optimizer__learning_rate": 1e30}
    result = run_python(*train_arguments(workdir, source, **bad))
    assert result.returncode == 1
    assert "the update_norm of step 7 is inf, with learning rate" in result.stderr.splitlines()[-1]
    assert "config.total_steps was 6 when this run began, is now 12" in result.stderr
    assert [path.name for path in sorted((workdir / "checkpoints").iterdir())] == ["3", "6"]
    assert state_bytes(workdir, 6) == state_bytes(finished[0], 6)


def test_unknown_field_is_refused_before_anything_runs(source, tmp_path):
    result = run_python(*train_arguments(tmp_path / "run", source, model__widht=64))
    assert result.returncode == 2
    assert "widht" in result.stderr
    assert not (tmp_path / "run").exists()


def test_another_model_in_the_same_workdir_is_refused(finished, source):
    result = run_python(*train_arguments(finished[0], source, model__width=128))
    assert result.returncode == 1
    assert "model.width was 64, is 128" in result.stderr


def test_training_imports_neither_tensorflow_nor_torch(source, tmp_path):
    code = (
        "import sys\nfrom absl import app\nfrom segmenter_jax import main\n"
        "try:\n    app.run(main.main)\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    arguments = train_arguments(tmp_path / "run", source, total_steps=3)[2:]
    result = run_python("-c", code, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
