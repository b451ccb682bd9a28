"""Exit codes of the command that trains."""

import sys

import pytest

from segmenter_jax import main
from segmenter_jax.runtime.config_flag import ConfigFileParser
from tests.tiny_runs import train_arguments, write_dataset


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """The command leaves this process as it is."""
    for name in ("keep_freed_memory", "use_compilation_cache", "console.setup_console"):
        monkeypatch.setattr(f"segmenter_jax.main.{name}", lambda *_, **__: None)
    yield
    main.FLAGS.unparse_flags()
    for name in [name for name in main.FLAGS if name.startswith("config.")]:
        delattr(main.FLAGS, name)


@pytest.fixture
def given(monkeypatch):
    """Gives flags to the command."""

    def parse(*words, run=("--config=configs/folder.py", "--workdir=run")):
        words = ["main", "--num_processes=1", *run, *words]
        # Overrides of a config are read from there.
        monkeypatch.setattr(sys, "argv", words)
        main.parse_flags(words)

    return parse


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdirr=run"], "workdirr"),
        (["--config=configs/folder.py", "--workdir=run", "--num_processes=two"], "num_processes"),
    ],
)
def test_wrong_flags_leave_with_code_2(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main.parse_flags(["main", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def refused(monkeypatch, capsys):
    """Gives flags to the command, which shall refuse them; returns what it says."""

    def parse(*words):
        # Overrides of a config are read from there.
        monkeypatch.setattr(sys, "argv", ["main", "--workdir=run", *words])
        with pytest.raises(SystemExit) as stop:
            main.parse_flags(sys.argv)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return parse


def test_a_config_file_that_is_not_there(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"error: --config=nothere.py: there is no file {tmp_path}/nothere.py\nSee --help\n"
    assert refused("--config=nothere.py") == expected
    assert refused("--config=nothere.py", "--config.seed=1") == expected


BROKEN = {
    "syntax": ("x = 1\ndef get_config(:\n", "{}, line 2: invalid syntax: def get_config(:"),
    "import": ("import nonesuch\n", "{}, line 1: ModuleNotFoundError: No module named 'nonesuch'"),
    "failure": (
        "def get_config():\n    raise ValueError('one\\ntwo')\n",
        "{}, line 2: ValueError: one",
    ),
    "no function": ("x = 1\n", "{}: defines no get_config"),
    "no config": (
        "def get_config():\n    pass\n",
        "{}: get_config returned a NoneType, not a ConfigDict",
    ),
    "frozen config": (
        "import ml_collections\ndef get_config():\n    return ml_collections.FrozenConfigDict()\n",
        "{}: get_config returned a FrozenConfigDict, not a ConfigDict",
    ),
    "syntax elsewhere": (
        "import ast\nx = ast.literal_eval('1 +')\n",
        "{}, line 2: SyntaxError: invalid syntax (<unknown>, line 1)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_config_file_that_fails(refused, tmp_path, case):
    path = tmp_path / "mine.py"
    text, message = BROKEN[case]
    path.write_text(text)
    assert refused(f"--config={path}") == f"error: {message.format(path)}\nSee --help\n"


def test_a_config_file_is_a_module_like_any_other(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\nimport ml_collections\n"
        "def get_config(name):\n"
        "    @dataclasses.dataclass\n    class Sizes:\n        crop: int = 32\n"
        "    return ml_collections.ConfigDict({'crop': Sizes().crop, 'name': name})\n"
    )
    config = ConfigFileParser("config").parse(f"{path}:mine")
    assert config.to_dict() == {"crop": 32, "name": "mine"} and config.is_locked


def test_debug_shows_where_a_config_file_fails(refused, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import nonesuch\n")
    assert "Traceback" in refused(f"--config={path}", "--debug")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "--config.modle.variant=S/16",
            "--config.modle.variant: there is no field 'modle'; config has model, ",
        ),
        (
            "--config.model.varient=S/16",
            "--config.model.varient: there is no field 'varient'; config.model has variant, ",
        ),
        (
            "--noconfig.augment.photometrik",
            "--noconfig.augment.photometrik: there is no field 'photometrik'; "
            "config.augment has photometric, ",
        ),
        (
            "--config.model.decoder.depth=1",
            "--config.model.decoder.depth: config.model.decoder is 'mask' and has no fields",
        ),
        (
            "--config.batch_size=many",
            "flag --config.batch_size=many: invalid literal for int() with base 10: 'many'",
        ),
    ],
)
def test_wrong_overrides(refused, word, message):
    told = refused("--config=configs/folder.py", word)
    assert told.startswith(f"error: {message}")
    assert told.count("\n") == 2


def test_an_argument_for_a_config_file_follows_a_colon(given, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from segmenter_jax.configs import common\n\n\ndef get_config(seed):\n"
        "    config = common.get_config()\n    config.seed = int(seed)\n    return config\n"
    )
    given(f"--config={path}:7")
    assert main.FLAGS.config.seed == 7
    assert main.FLAGS.config.is_locked


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


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "scenes")


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
def test_failures_are_one_clear_line_and_code_1(
    given, source, tmp_path, capsys, overrides, message
):
    overrides = {"mesh__num_devices": 1} | overrides
    given(run=train_arguments(tmp_path / "run", source, **overrides)[2:])
    assert main.main(["main"]) == 1
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error


def test_unknown_field_is_refused_before_anything_runs(refused, source, tmp_path):
    arguments = train_arguments(tmp_path / "run", source, model__widht=64)[2:]
    assert "widht" in refused(*arguments)
    assert not (tmp_path / "run").exists()
