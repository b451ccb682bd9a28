"""Imports point one way, and the package keeps to its layout."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "segmenter_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each layer may import those before it, and its own.
LAYERS = (
    # Leaves.
    (
        "allocator",
        "cores",
        "lanes",
        "resampling",
        "messages",
        "command",
        "config_flag",
        "logging",
        "metrics",
    ),
    ("optim", "sharding", "visualize"),
    ("processes", "progress", "interruption", "watchdog", "profiling", "run_config"),
    ("binary_metrics", "data.specs", "data.class_tables"),
    ("losses", "models", "data", "windows", "merging", "video", "scoring"),
    ("inference", "checkpoints", "train_state", "train_step", "memory"),
    ("experiment", "convert", "predictor", "predict"),
    ("start", "evaluate", "attention_maps"),
    ("validation", "export", "visualize.__main__"),
    ("train", "benchmark", "prepare_data"),
    ("main",),
)


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module):
    candidates = [
        (len(prefix), i)
        for i, names in enumerate(LAYERS)
        for prefix in names
        if module == prefix or module.startswith(prefix + ".")
    ]
    assert candidates, f"{module} is in no layer: add it to LAYERS"
    return max(candidates)[1]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = PACKAGE.parent / pathlib.Path(*node.module.split("."), f"{alias.name}.py")
                yield f"{node.module}.{alias.name}" if inner.exists() else node.module


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_to_lower_layers(path):
    own = module_name(path)
    if not own:  # The public API, lazy by its own test.
        return
    for name in imports(path):
        assert not name.startswith(("configs", "tests")), f"{own} imports {name}"
        if name.startswith("segmenter_jax."):
            target = name.removeprefix("segmenter_jax.")
            assert layer(target) <= layer(own), f"{own} imports {target}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").rglob("*.py")), ids=module_name)
def test_only_the_device_augmentation_imports_jax_in_data(path):
    if path.name != "augment.py":
        assert not [name for name in imports(path) if name.split(".")[0] in ("jax", "flax")]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_imports_tensorflow_and_files_stay_readable(path):
    assert not [name for name in imports(path) if name.split(".")[0] == "tensorflow"]
    assert len(path.read_text().splitlines()) <= 400
    assert "util" not in path.name
