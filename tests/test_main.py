"""Exit codes of the command that trains."""

import pytest

from segmenter_jax import main


@pytest.fixture
def given(monkeypatch):
    """Gives flags to the command, which shall leave this process as it is."""
    for name in ("keep_freed_memory", "use_compilation_cache", "logging.setup_console"):
        monkeypatch.setattr(f"segmenter_jax.main.{name}", lambda *_, **__: None)
    yield lambda *words: main.FLAGS(
        ["main", "--config=folder", "--workdir=run", "--num_processes=1", *words]
    )
    main.FLAGS.unparse_flags()


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
    monkeypatch.setattr(main, "train_and_evaluate", interrupted)
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
    monkeypatch.setattr(main, "train_and_evaluate", lambda *_: results)
    assert main.main(["main"]) == code
