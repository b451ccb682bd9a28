"""Imports point one way, in no circle, and the package keeps to its rooms."""

import ast
import graphlib
import pathlib

import pytest

from tests.soak.mutations import load_faults

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "segmenter_jax"

# Programs are made for the devices of a mesh; here a process asks what JAX takes by itself.
DEFAULT_DEVICES = {"models.placement", "runtime.processes"}

# A room may import the rows before its own, and itself; rooms of one row do not know each other.
ROOMS = (
    ("runtime",),
    ("data", "models", "pictures"),
    ("checkpoints",),
    ("conversion",),
    ("inference",),
    ("evaluation",),
    ("training",),
    ("benchmark", "commands"),
)
COMMANDS = {
    *("convert", "demo", "evaluate", "export", "main", "manifest", "predict", "prepare_data"),
    *("publish", "visualize"),
}
MAX_LINES = 320


def module_name(path: pathlib.Path, package: pathlib.Path = PACKAGE) -> str:
    """Dotted name of a file, below the package."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path) -> set[str]:
    """Every name that a file imports, in functions as well; modules and names in them alike."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names}
    return names


def graph(package: pathlib.Path) -> dict[str, set[str]]:
    """Which modules of a package each of its modules imports, by their names below it."""
    files = {module_name(path, package): path for path in package.rglob("*.py")}

    def module(name: str) -> str:
        inner = name.removeprefix(f"{package.name}.")
        return inner if inner in files else inner.rpartition(".")[0]

    own = f"{package.name}."
    return {
        name: {module(found) for found in imports(path) if found.startswith(own)} - {name}
        for name, path in files.items()
    }


def wrong_imports(package: pathlib.Path) -> list[str]:
    """Imports against the order of rooms."""
    rows = {room: row for row, rooms in enumerate(ROOMS) for room in rooms}
    wrong = []
    for name, targets in graph(package).items():
        room = name.split(".")[0]
        for target in targets:
            theirs = target.split(".")[0]
            if theirs == room or not target:
                continue
            # Commands, and the package itself, stand above all rooms; nothing imports a command.
            # Configs import each other only.
            lower = theirs in rows and rows[theirs] < (
                0 if room == "configs" else rows.get(room, len(ROOMS))
            )
            if not lower:
                wrong.append(f"{name or package.name} imports {target}")
    return sorted(wrong)


def circle(package: pathlib.Path) -> list[str]:
    """Modules that import each other in a circle; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph(package)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def write_package(folder: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, text in files.items():
        path = folder / "segmenter_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "segmenter_jax"


def test_imports_follow_the_order_of_rooms():
    assert wrong_imports(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(PACKAGE) == []


def test_rooms_and_commands_are_those_that_exist():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {room for row in ROOMS for room in row} | {"configs"}
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files == COMMANDS | {"__init__", "__main__"}


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("models/vit.py", "from segmenter_jax.data.specs import ADE20K"),
        ("data/images.py", "from segmenter_jax.models import vit"),
        ("runtime/host.py", "import segmenter_jax.models.vit"),
        ("inference/merging.py", "from segmenter_jax.training import losses"),
        ("training/loop.py", "from segmenter_jax import evaluate"),
        ("training/loop.py", "def f():\n    from segmenter_jax.evaluate import main"),
        ("conversion/timm.py", "from segmenter_jax.configs import common"),
        ("configs/mine.py", "from segmenter_jax.models import vit"),
    ],
)
def test_a_planted_wrong_import_is_found(tmp_path, room, line):
    places = ("data/specs", "models/vit", "training/losses", "evaluate", "configs/common")
    package = write_package(tmp_path, {f"{place}.py": "" for place in places} | {room: line})
    assert len(wrong_imports(package)) == 1


def test_a_planted_circle_within_a_room_is_found(tmp_path):
    files = {
        "data/a.py": "from segmenter_jax.data import b",
        "data/b.py": "from segmenter_jax.data.c import x",
        "data/c.py": "def late():\n    from segmenter_jax.data.a import y",
    }
    package = write_package(tmp_path, files)
    assert {"data.a", "data.b", "data.c"} == set(circle(package))
    assert wrong_imports(package) == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_files_keep_to_the_rules(path):
    names = imports(path)
    assert not [name for name in names if name.split(".")[0] in ("tensorflow", "tests", "configs")]
    assert not [name for name in names if name.startswith(".")], "relative import"
    device = [name for name in names if name.split(".")[0] in ("jax", "flax", "optax")]
    if module_name(path).split(".")[0] in ("data", "pictures"):
        assert not device
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert "util" not in path.name


def test_the_mesh_decides_not_the_default_backend():
    asking = {module_name(p) for p in PACKAGE.rglob("*.py") if "default_backend" in p.read_text()}
    assert asking == DEFAULT_DEVICES


@pytest.mark.parametrize("fault", load_faults([]), ids=lambda fault: fault.name)
def test_seeded_faults_can_still_be_seeded(fault):
    assert fault.stale(PACKAGE.parent) is None
