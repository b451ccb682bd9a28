"""What an installation holds: commands, and the packages that it needs."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import yaml

import segmenter_jax
from segmenter_jax import convert, export
from segmenter_jax.__main__ import COMMANDS
from segmenter_jax.commands.export import _FORMATS, _SMALLER
from segmenter_jax.conversion import reference
from segmenter_jax.models.attention_kernels import KERNELS
from segmenter_jax.models.choices import IMPLEMENTATIONS
from tests.test_structure import PACKAGE, imports

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Where the name that is imported is not that of what pip installs.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "orbax": "orbax-checkpoint",
    "yaml": "pyyaml",
}
# Imported where they are installed; starlette comes with Gradio.
OPTIONAL = {
    "gradio",
    "huggingface_hub",
    "jax2onnx",
    "onnx",
    "onnxruntime",
    "ray",
    "starlette",
    "torch",
}
# tensorflow-datasets imports it without declaring it.
UNDECLARED = {"importlib-resources"}


def distribution(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_commands_listed_are_those_that_exist():
    files = {path.stem for path in PACKAGE.glob("[a-z]*.py")}
    folders = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert set(COMMANDS) == files | folders


def test_the_list_of_commands_imports_nothing_heavy():
    code = "import runpy, sys; runpy.run_module('segmenter_jax', run_name='__main__')"
    code += "\nassert not {'jax', 'numpy', 'absl'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    listed = re.findall(r"python -m segmenter_jax\.(\w+) +\w", result.stdout)
    assert listed == list(COMMANDS)


# Each command as `python -m` runs it, one after another; what its answer is, and what it imports.
ANSWERS = """
import io, contextlib, json, runpy, sys
HEAVY = ("jax", "flax", "orbax", "cv2", "grain", "matplotlib", "tensorflow_datasets")
for name, *words in json.loads(sys.argv[1]):
    sys.argv = [name, *words]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                runpy.run_module(f"segmenter_jax.{name}", run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                code = stop.code or 0
    imported = [module for module in HEAVY if module in sys.modules]
    print(json.dumps([code, out.getvalue(), err.getvalue(), imported]))
"""


def test_help_and_wrong_arguments_are_answered_without_what_is_slow_to_import():
    given = [[name, "--help"] for name in COMMANDS]
    given += [["prepare_data", "ade20k", "--help"], ["main", "--config=quickstart", "--help"]]
    wrong = [[name, "--nonesuch"] for name in COMMANDS]
    wrong += [["predict", "m", "p", "-o", "o", "--shard=4/4"], ["export", "m", "o", "--to=torch"]]
    wrong += [["main", "--config=quikstart", "--workdir=run"], ["benchmark", "plan", "--config=x"]]
    result = subprocess.run(
        [sys.executable, "-c", ANSWERS, json.dumps(given + wrong)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    for words, (code, out, err, imported) in zip(given + wrong, answers, strict=True):
        said, empty = (out, err) if code == 0 else (err, out)
        assert (words, code) == (words, 0 if words in given else 2)
        assert (words, imported, empty) == (words, [], "") and said
    shown = dict(zip(map(tuple, given), (out for _, out, *_ in answers), strict=False))
    assert re.search(r"--config.batch_size +8\n", shown["main", "--help"])
    assert "Segments pictures and videos" in shown["predict", "--help"]


def test_help_may_be_read_in_part():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "segmenter_jax.main", "--help"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_choices_that_parsers_write_out_are_those_that_work():
    """They are written twice, as parsers do not import what works."""
    parsers = convert.make_parser(), export._parser()
    to, formats, precisions = (
        next(tuple(a.choices) for a in parser._actions if a.dest == name)
        for parser, name in zip((*parsers, parsers[1]), ("to", "to", "precision"), strict=True)
    )
    assert to == ("model", *reference.FILES)
    assert formats == tuple(_FORMATS) and precisions == ("float32", *_SMALLER)
    assert ("auto", *KERNELS) == IMPLEMENTATIONS


def test_what_is_required_is_what_is_imported():
    names = {name.split(".")[0] for path in PACKAGE.rglob("*.py") for name in imports(path)}
    names -= {*sys.stdlib_module_names, *OPTIONAL, "segmenter_jax"}
    imported = {distribution(DISTRIBUTIONS.get(name, name)) for name in names}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.split(r"\[|>=", line)[0] for line in lines if not line.startswith("#")}
    assert {distribution(name) for name in required} == imported | UNDECLARED


def test_the_python_of_the_tests_is_one_that_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


def test_the_readme_tells_every_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    assert all(f"`[{extra}]`" in readme for extra in project["optional-dependencies"])


def test_the_version_to_cite_is_that_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == segmenter_jax.__version__
    assert f"## {cited['version']}" in (ROOT / "CHANGELOG.md").read_text()
