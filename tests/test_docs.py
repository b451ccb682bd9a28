"""The documentation says what is so: its commands, settings, code, files and links.

Commands are parsed by their own parsers, settings and files are looked up, code is compiled and its
names are imported; the first of it runs, on a tiny model.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator

import ml_collections
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import segmenter_jax
from segmenter_jax.__main__ import COMMANDS
from segmenter_jax.configs import common
from segmenter_jax.data.builders.classes_file import read_classes
from segmenter_jax.data.builders.files import SourceFiles
from segmenter_jax.runtime.config_flag import read_config
from tests.models_on_disk import write_golden_model

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "segmenter_jax"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Whose docstring is a page as well: each begins with its command.
DOCSTRINGS = sorted([*PACKAGE.glob("[a-z]*.py"), *PACKAGE.glob("configs/[a-z]*.py")])

# What stands in a text for something else.
SUBSTITUTES = {
    "--config=...": "--config=quickstart",
    "--config=CONFIG": "--config=quickstart",
    "--config=file.py": "--config=quickstart",
    "--config.NAME=VALUE": "--config.seed=1",
    "--config.a.b=c": "--config.model.variant=S/16",
    "$JOB_COMPLETION_INDEX/32": "0/32",
    "{step,infer,evaluate,loader,attention,loss,collectives}": "step",
}
# A block without a language is shell. Sphinx sees to those in braces.
LANGUAGES = ("", "python", "json", "text", "bibtex", "{toctree}", "{include}", "{eval-rst}")
# Programs and modules of others, whose arguments are theirs.
PROGRAMS = {
    "du",
    "export",
    "git",
    "head",
    "hf",
    "pre-commit",
    "sbatch",
    "ruff",
    "sort",
    "taskset",
    "xprof",
    ".",
}
MODULES = {"build", "sphinx", "venv"}
FLAGS_OF_OTHERS = {"--local-dir", "--logdir", "--no-deps"}
# Imported by code that says how to install them.
OUTSIDE = {"pycocotools", "labelme"}
# Begin like a setting and are none.
NO_SETTINGS = {"checkpoint.pth", "eval.miou", "model.json", "model.safetensors"}


class Block(tuple):
    """(page, line, language, text) of a fenced block."""

    def __str__(self) -> str:
        return f"{self[0]}:{self[1]}"


def blocks(path: pathlib.Path) -> Iterator[Block]:
    name = path.relative_to(ROOT).as_posix()
    if path.suffix == ".py":
        lines = (
            inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text())) or "")
        ).splitlines()
        found = [i for i, line in enumerate(lines) if line.strip().startswith("python -m ")]
        for i in found:
            end = next(j for j in range(i, len(lines)) if not lines[j].endswith("\\"))
            # What may be left out stands in brackets.
            usage = re.sub(r"[][]| \.\.\.", "", "\n".join(lines[i : end + 1]))
            yield Block((name, i + 1, "", usage))
        return
    fence = r"^( *)```([^\n`]*)\n(.*?)^\1```$"
    for match in re.finditer(fence, text := path.read_text(), re.DOTALL | re.MULTILINE):
        language = match[2].split()[0] if match[2] else ""
        yield Block((name, text[: match.start()].count("\n") + 1, language, match[3]))


def spans(path: pathlib.Path) -> Iterator[str]:
    """Code within the lines of a page; of a table of another project's names, only ours."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    if path.stem.startswith("from_"):
        text = re.sub(r"^\| [^|]* \|", "|", text, flags=re.MULTILINE)
    for match in re.finditer(r"`([^`]+)`", text):
        yield " ".join(match[1].split())


BLOCKS = [block for path in (*PAGES, *DOCSTRINGS) for block in blocks(path)]


def commands(text: str) -> Iterator[list[str]]:
    """Simple commands of shell text as words, without settings of the environment."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|"):
                if command:
                    yield command
                command = []
            elif command or not re.match(r"[A-Z_]+=", word):
                command.append(SUBSTITUTES.get(word, word))


def module_of(command: str):
    """The module that has the command line of a command."""
    name = f"segmenter_jax.{command}"
    spec = importlib.util.find_spec(name)
    assert spec and command in COMMANDS, f"there is no command {command}"
    return importlib.import_module(f"{name}.cli" if spec.submodule_search_locations else name)


def check_config(name: str, overrides: list[str]) -> None:
    """Checks a config and the fields that are changed; a value may be left open as "..."."""
    config = read_config(name, [o for o in overrides if not o.endswith("=...")])
    for override in overrides:
        field: object = config
        for part in override.removeprefix("--config.").partition("=")[0].split("."):
            field = field[part]


def check_main(arguments: list[str]) -> None:
    known = importlib.import_module("segmenter_jax.main").FLAGS
    values = dict(a.removeprefix("--").partition("=")[::2] for a in arguments)
    assert all(a.startswith("--") for a in arguments), arguments
    check_config(values["config"], [a for a in arguments if a.startswith("--config.")])
    for name, value in values.items():
        if not name.startswith("config"):
            known[name].parser.parse(value)


def parser_of(command: str, arguments: list[str], monkeypatch):
    """The parser of a command, and the arguments as `run_command` gets them."""
    module, seen = module_of(command), []
    monkeypatch.setattr(module, "run_command", lambda parser, _, argv: seen.append((parser, argv)))
    module.main(arguments)
    return seen[0]


def check_command(command: str, arguments: list[str], monkeypatch) -> None:
    if command == "main":
        return check_main(arguments)
    parser, argv = parser_of(command, arguments, monkeypatch)
    parsed = parser.parse_args(argv)
    if hasattr(parsed, "overrides"):
        check_config(parsed.config, parsed.overrides)


def check_pytest(arguments: list[str]) -> None:
    paths = [a.partition("::") for a in arguments if a.startswith("tests")]
    texts = [(ROOT / path).read_text() if path.endswith(".py") else "" for path, *_ in paths]
    assert all((ROOT / path).exists() for path, *_ in paths), paths
    assert all(
        f"def {test}(" in text for text, (_, _, test) in zip(texts, paths, strict=True) if test
    )
    if "-k" in arguments:
        word = arguments[arguments.index("-k") + 1]
        assert any(re.search(rf"def test_\w*{word}", text) for text in texts), word


def check_pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for argument in arguments:
        if match := re.match(r"(?:segmenter_jax|\.)\[([\w,]+)\]", argument):
            assert set(match[1].split(",")) <= set(project["optional-dependencies"]), argument


def check_words(words: list[str], monkeypatch) -> None:
    """Checks a simple command."""
    program, *arguments = words
    name = pathlib.PurePath(program).name
    if program.startswith(("launch/", ".ci/")):
        assert (ROOT / program).stat().st_mode & 0o100, program
    elif name in ("python", "python3"):
        assert arguments[0] == "-m", words
        module, *rest = arguments[1:]
        if module.startswith("segmenter_jax."):
            check_command(module.removeprefix("segmenter_jax."), rest, monkeypatch)
        elif module == "pytest":
            check_pytest(rest)
        else:
            assert module in MODULES or importlib.util.find_spec(module), module
    elif name == "pytest":
        check_pytest(arguments)
    elif name == "pip":
        check_pip(arguments)
    else:
        assert name in PROGRAMS, f"unknown program {program}"


def check_shell(text: str, monkeypatch) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for words in commands(text):
        check_words(words, monkeypatch)


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Modules that code imports, and names from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def check_calls(tree: ast.AST) -> None:
    """Checks calls of `segmenter_jax.NAME` and of methods of what `load` and `train` return."""
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if not (isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)):
            continue
        owner, name = call.func.value.id, call.func.attr
        if owner not in ("segmenter_jax", "seg"):
            continue
        target = getattr(
            segmenter_jax if owner == "segmenter_jax" else segmenter_jax.Predictor, name
        )
        positional = [None] * (len(call.args) + (owner == "seg"))
        inspect.signature(target).bind(*positional, **{k.arg: None for k in call.keywords})
        if name == "train":
            fields = {k.arg.replace("__", "."): ast.literal_eval(k.value) for k in call.keywords}
            check_config(call.args[0].value, [f"--config.{n}={v}" for n, v in fields.items()])


def check_python(text: str, monkeypatch) -> None:
    tree = ast.parse(text)
    for module, name in imported(tree):
        if module.split(".")[0] not in OUTSIDE:
            assert not name or hasattr(importlib.import_module(module), name), (module, name)
    check_calls(tree)


def check_json(text: str, tmp_path: pathlib.Path) -> None:
    if "classes" in json.loads(text):
        (tmp_path / "classes.json").write_text(text)
        read_classes(SourceFiles(tmp_path), "mine")


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block(block, monkeypatch, tmp_path):
    _, _, language, text = block
    assert language in LANGUAGES, f"{block}: of which language is it?"
    monkeypatch.chdir(ROOT)
    if language == "":
        check_shell(text, monkeypatch)
    elif language == "python":
        check_python(text, monkeypatch)
    elif language == "json":
        check_json(text, tmp_path)


@pytest.mark.parametrize(
    "planted",
    [
        "python -m segmenter_jax.evalute runs/mine",
        "python -m segmenter_jax.evaluate runs/mine --stide=480",
        "python -m segmenter_jax.main --config=quikstart --workdir=runs/mine",
        "python -m segmenter_jax.main --config=quickstart --workdir=runs/mine --config.batchsize=8",
        "python -m segmenter_jax.main --config=quickstart --wokdir=runs/mine",
        "pip install '.[cpu]'",
        "pytest tests/test_none.py",
        "pytest tests/test_docs.py -k no_such_test",
        "launch/none.sh 2",
        "pyton -m venv .venv",
    ],
)
def test_a_planted_fault_is_found(planted, monkeypatch):
    with pytest.raises((AssertionError, LookupError, OSError, SystemExit, ValueError)):
        check_shell(planted, monkeypatch)


def options(parser) -> set[str]:
    """Flags of a parser and of its subcommands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        for inner in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            found |= options(inner)
    return found


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """The flags of all commands."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        parsers = [parser_of(name, [], monkeypatch)[0] for name in COMMANDS if name != "main"]
    own = {f"--{name}" for name in importlib.import_module("segmenter_jax.main").FLAGS}
    return own | FLAGS_OF_OTHERS | {"--debug"}.union(*map(options, parsers))


def check_mention(command: str, subcommand: str | None, monkeypatch) -> None:
    """Checks that a command has a subcommand."""
    if subcommand:
        actions = parser_of(command, [], monkeypatch)[0]._actions
        assert any(subcommand in (action.choices or ()) for action in actions), subcommand
    else:
        module_of(command)


def wrong_spans(path: pathlib.Path, flags: set[str], monkeypatch) -> Iterator[str]:
    """Code within a page's lines that names a flag, setting, file or object that is not there."""
    config = common.get_config()
    groups = [
        name for name, value in config.items() if isinstance(value, ml_collections.ConfigDict)
    ]
    fields = set(config) | {f"{group}.{name}" for group in groups for name in config[group]}
    for span in spans(path):
        if re.match(r"(python3?|\.venv/bin/\w+) -m |pytest |pip install ", span):
            try:
                if mention := re.fullmatch(r"python -m segmenter_jax\.(\w+)(?: ([a-z]+))?", span):
                    check_mention(*mention.groups(), monkeypatch)
                else:
                    check_shell(span, monkeypatch)
            except (AssertionError, SystemExit, ValueError) as error:
                yield f"{span}: {error!r}"
            continue
        for word in span.split():
            name = SUBSTITUTES.get(word, word).partition("=")[0].rstrip(".,;")
            if name.startswith("--config."):
                yield from () if name.removeprefix("--config.") in fields else (span,)
            elif name.startswith("--") and not name.startswith("--xla_"):
                yield from () if name in flags else (span,)
        name = span.partition("=")[0]
        if re.fullmatch(rf"({'|'.join(groups)})\.\w+", name) and name not in NO_SETTINGS:
            yield from () if name in fields else (span,)
        if re.fullmatch(r"[\w./]*\w/[\w./]+\.(py|sh|md|sbatch|yaml|ipynb)", span):
            places = ROOT, PACKAGE, path.parent, PACKAGE / "models"
            yield from () if any((place / span).exists() for place in places) else (span,)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(path, flags, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert list(wrong_spans(path, flags, monkeypatch)) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    inner = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in inner if not (path.parent / link).exists()] == []


def test_names_are_in_the_files_that_are_said_to_hold_them():
    wrong = []
    for path in PAGES:
        text = " ".join(path.read_text().split())
        for name, file in re.findall(r"`(\w+)` (?:in|of) `([\w/]+\.py)`", text):
            place = next(p / file for p in (ROOT, PACKAGE) if (p / file).exists())
            if not re.search(rf"^ *(class |def )?{name}\b", place.read_text(), re.MULTILINE):
                wrong.append(f"{path.name}: {name} in {file}")
    assert wrong == []


def literals() -> Iterator[str]:
    """Every text in the package, with "..." for what is filled in."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "..." for p in node.values)
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_that_are_explained_are_given():
    page = (ROOT / "docs" / "messages.md").read_text()
    shown = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    given = "\n".join(literals())
    parts = {part.strip() for message in shown for part in message.split("...")}
    assert len(shown) > 20
    assert [part for part in parts if part not in given] == []


def test_every_setting_has_a_meaning_on_its_page():
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    found = [
        s for s in generated.settings() if not isinstance(s.default, ml_collections.ConfigDict)
    ]
    assert {s.name for s in found} == set(flatten_dict(common.get_config().to_dict(), sep="."))
    assert [s.name for s in found if not s.meaning] == []


def test_the_first_code_runs_on_the_model_of_the_first_command(tmp_path, monkeypatch):
    """With a tiny model in its place; the calls of other pages are compared with signatures."""
    code = next(b[3] for b in BLOCKS if b[0] == "README.md" and b[2] == "python")
    write_golden_model(tmp_path / "runs/quickstart/model/best")
    Image.new("RGB", (64, 64), (90, 120, 60)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code, names := {})
    assert names["mask"].shape == (64, 64) and names["probs"].shape == (64, 64, 7)
    assert (tmp_path / "overlay.png").exists()
