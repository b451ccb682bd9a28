"""The five public names, and what importing them costs."""

import subprocess
import sys

import pytest

import segmenter_jax

HEAVY = ("tensorflow", "torch", "matplotlib", "tensorflow_datasets", "grain")


def imported_modules(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running `code`."""
    script = f"{code}\nimport sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_heavy():
    assert not imported_modules("import segmenter_jax") & {*HEAVY, "jax", "flax", "numpy"}


def test_prediction_imports_no_training_or_data_framework():
    assert not imported_modules("from segmenter_jax import load, Predictor, Segmenter") & {*HEAVY}


@pytest.mark.parametrize("name", ["load", "Predictor", "Segmenter", "SegmenterConfig"])
def test_public_names_are_there(name):
    assert callable(getattr(segmenter_jax, name))
    assert name in dir(segmenter_jax)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Segmentor'"):
        _ = segmenter_jax.Segmentor
