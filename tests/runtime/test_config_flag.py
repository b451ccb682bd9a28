"""The flag of `main` for a config: names, files, and what it says of wrong ones."""

import pathlib
import sys

import pytest

from segmenter_jax import main
from segmenter_jax.configs import quickstart
from segmenter_jax.runtime.config_flag import ConfigFileParser, config_names, read_config


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

    yield parse
    main.FLAGS.unparse_flags()
    for name in [name for name in main.FLAGS if name.startswith("config.")]:
        delattr(main.FLAGS, name)


def parse(argument):
    return ConfigFileParser("config").parse(argument)


def test_a_shipped_config_goes_by_its_name_anywhere(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse("quickstart") == quickstart.get_config()
    assert parse("folder").dataset.name == "folder"
    assert {"common", "quickstart", "folder", "ade20k_vitl16"} <= set(config_names())


def test_a_config_file_goes_by_its_path(tmp_path, monkeypatch):
    path = pathlib.Path(quickstart.__file__)
    assert parse(str(path)) == quickstart.get_config()
    monkeypatch.chdir(path.parents[1])
    assert parse("configs/quickstart.py") == quickstart.get_config()


def test_a_config_file_may_start_from_a_shipped_one_and_take_an_argument(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from segmenter_jax.configs import quickstart\n\n\ndef get_config(seed):\n"
        "    config = quickstart.get_config()\n    config.seed = int(seed)\n    return config\n"
    )
    config = parse(f"{path}:7")
    assert config.seed == 7 and config.is_locked
    assert config.model == quickstart.get_config().model


@pytest.mark.parametrize("name", ["quikstart", "configs/quickstart.py"])
def test_a_wrong_name_or_path_says_the_choices(refused, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    expected = f"error: --config={name}: there is no file {tmp_path}/{name}, and the names of "
    for words in ([], ["--config.seed=1"]):
        told = refused(f"--config={name}", *words)
        assert told.startswith(expected) and told.endswith("\nSee --help\n")
        assert ", folder, folder_dinov2, folder_dinov2_finetune, pascal_context_vitl16, " in told


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


@pytest.mark.parametrize(
    "words", [["--config.optimizer.clip_norm=None"], ["--config.optimizer.clip_norm", "None"]]
)
def test_any_placeholder_may_be_none_also_when_a_config_has_filled_it(words):
    assert read_config("quickstart").optimizer.clip_norm == 1.0
    assert read_config("quickstart", words).optimizer.clip_norm is None
    # Of two types, filled by that config and not.
    config = read_config(
        "quickstart", ["--config.model.width=None", "--config.mesh.num_devices=None"]
    )
    assert config.model.width is None and config.mesh.num_devices is None
    assert (
        read_config("quickstart", ["--config.optimizer.clip_norm=0.5"]).optimizer.clip_norm == 0.5
    )


@pytest.mark.parametrize(
    "name", ["seed", "init_from", "optimizer.learning_rate", "loss.class_weights"]
)
def test_none_is_no_value_of_other_fields(name):
    with pytest.raises(ValueError, match=f"--config.{name}=None: this field needs a value"):
        read_config("quickstart", [f"--config.{name}=None"])


def test_a_config_file_is_a_module_like_any_other(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\nimport ml_collections\n"
        "def get_config(name):\n"
        "    @dataclasses.dataclass\n    class Sizes:\n        crop: int = 32\n"
        "    return ml_collections.ConfigDict({'crop': Sizes().crop, 'name': name})\n"
    )
    config = parse(f"{path}:mine")
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
            "--config.modle.variant: config has no field 'modle', but model, ",
        ),
        (
            "--config.model.varient=S/16",
            "--config.model.varient: config.model has no field 'varient', but variant, ",
        ),
        (
            "--noconfig.augment.photometrik",
            "--noconfig.augment.photometrik: config.augment has no field 'photometrik', "
            "but photometric, ",
        ),
        (
            "--config.model.decoder.depth=1",
            "--config.model.decoder.depth: config.model.decoder is a value and has no fields\n",
        ),
        (
            "--config.batch_size=many",
            "flag --config.batch_size=many: invalid literal for int() with base 10: 'many'",
        ),
    ],
)
def test_wrong_overrides(refused, word, message):
    told = refused("--config=folder", word)
    assert told.startswith(f"error: {message}")
    assert told.count("\n") == 2
