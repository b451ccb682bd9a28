import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "torch", "matplotlib", "pandas")


def loaded(code: str) -> set[str]:
    """Which heavy modules a fresh interpreter has after running `code`."""
    names = (*HEAVY, "jax", "tensorflow_datasets", "grain")
    code += f"\nimport sys; print([name for name in {names!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(eval(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["specs", "labels", "transforms", "datasets"])
def test_light_modules(module):
    assert loaded(f"import segmenter_jax.data.{module}") == set()


def test_building_and_reading_needs_no_tensorflow_or_jax(folder, tmp_path):
    code = f"""
from segmenter_jax.data import datasets, transforms
dataset = datasets.build_dataset("toyset", {str(tmp_path)!r}, {str(folder)!r})
transforms.EvalTransform(dataset.spec)(dataset.source("val")[1])
"""
    assert loaded(code) == {"tensorflow_datasets"}


def test_pipeline_needs_no_tensorflow():
    # Grain itself imports jax; nothing of ours does.
    assert loaded("import segmenter_jax.data.pipeline") & set(HEAVY) == set()
