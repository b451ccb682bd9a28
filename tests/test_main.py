"""Exit codes of the command that trains."""

import sys

import pytest

from segmenter_jax import main
from tests.tiny_runs import train_arguments


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """The command leaves this process as it is."""
    for name in ("keep_freed_memory", "prepare_compilation", "console.setup_console"):
        monkeypatch.setattr(f"segmenter_jax.commands.main.{name}", lambda *_, **__: None)
    yield
    main.FLAGS.unparse_flags()
    for name in [name for name in main.FLAGS if name.startswith("config.")]:
        delattr(main.FLAGS, name)


@pytest.fixture
def given(monkeypatch):
    """Gives flags to the command."""

    def parse(*words, run=("--config=folder", "--workdir=run")):
        words = ["main", "--num_processes=1", *run, *words]
        # Overrides of a config are read from there.
        monkeypatch.setattr(sys, "argv", words)
        main.parse_flags(words)

    return parse


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdirr=run"], "workdirr"),
        (["--config=folder", "--workdir=run", "--num_processes=two"], "num_processes"),
    ],
)
def test_wrong_flags_leave_with_code_2(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main.parse_flags(["main", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_half_given_processes_leave_with_code_2(given, capsys):
    given("--coordinator=host:1")
    assert main.main(["main"]) == 2
    assert capsys.readouterr().err.startswith("error: --process_id missing: give all of")


def test_ctrl_c_outside_of_the_loop_leaves_with_code_130(given, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    given()
    monkeypatch.setattr("segmenter_jax.commands.main.train_and_evaluate", interrupted)
    assert main.main(["main"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("words", "results", "code"),
    [
        ([], None, 0),
        (["--interrupted_code=75"], None, 75),
        (["--interrupted_code=75"], {"mean_iou": 0.5}, 0),
        (["--interrupted_code=75"], {}, 0),
    ],
)
def test_only_a_run_that_is_not_finished_leaves_with_the_code_asked_for(
    given, monkeypatch, words, results, code
):
    given(*words)
    monkeypatch.setattr("segmenter_jax.commands.main.train_and_evaluate", lambda *_: results)
    assert main.main(["main"]) == code


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset__name": "shapez", "dataset__source": ""}, "unknown dataset 'shapez'"),
        ({"dataset__train_split": "training"}, "no split 'training'"),
        ({"batch_size": 3, "grad_accum_steps": 2}, "batch_size=3 (global) does not divide"),
        ({"model__variant": "XL/16"}, "variant='XL/16' is unknown"),
        ({"optimizer__name": "lion"}, "'lion' is unknown; choose from ('sgd', 'adamw')"),
        # Told before the dataset is looked for.
        (
            {"optimizer__warmup_steps": 99, "dataset__name": "shapez"},
            "config.optimizer: warmup_steps=99 must be",
        ),
        ({"augment__normalization": "other"}, "normalization='other' is unknown"),
        ({"checkpoint__keep": 0}, "checkpoint.keep must be at least 1"),
    ],
)
def test_failures_are_one_clear_line_and_code_1(
    given, source, tmp_path, capsys, overrides, message
):
    overrides = {"mesh__num_devices": 1} | overrides
    given(run=train_arguments(tmp_path / "run", source, **overrides)[2:])
    assert main.main(["main"]) == 1
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error


def test_unknown_field_is_refused_before_anything_runs(given, source, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        given(run=train_arguments(tmp_path / "run", source, model__widht=64)[2:])
    assert stop.value.code == 2
    assert "widht" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
