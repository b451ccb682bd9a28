"""Speed against canvases, and memory of large images; both take minutes."""

import json
import os
import subprocess
import sys

import pytest

from tests.tiny_runs import ROOT

pytestmark = pytest.mark.slow

# A tiny network: what a large image costs beside the windows does not depend on the network.
PEAK_MEMORY = """
import resource
import sys
import numpy as np
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.models import Segmenter, SegmenterConfig
from tests.soak.inference_speed import VIT, random_params
height, width = map(int, sys.argv[1:])
model = Segmenter(SegmenterConfig(150, (512, 512), width=64, depth=1, num_heads=1, decoder_depth=1))
engine = SlidingWindow(model, InferenceSettings(512, 480), **VIT)
image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
((_, maps),) = engine.predict(random_params(model), [{"image": image}], ("ids", "confidence"))
assert maps["ids"].shape == maps["confidence"].shape == (height, width)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
"""


def run(*arguments: object) -> str:
    """Standard output of the interpreter, with programs compiled as a user's are."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("size", "limit_mb"), [((4096, 4096), 2000), ((8000, 6000), 2000)])
def test_memory_of_large_images_is_bounded(size, limit_mb):
    peak = float(run("-c", PEAK_MEMORY, *size))
    print(f"{size[0]} x {size[1]}, 150 classes: peak memory {peak:.0f} MB")
    assert peak < limit_mb


def test_engine_is_three_times_as_fast_as_canvases_and_compiles_three_programs():
    pytest.importorskip("torch")
    printed = run("-m", "tests.soak.inference_speed")
    print(printed)
    report = json.loads(printed)
    canvas = report["canvas"]
    assert canvas["ratio"] >= 3
    assert canvas["programs_of_the_engine"] <= 3
    assert canvas["smallest_share_of_equal_pixels"] > 0.999
    assert report["multi_scale"]["tail_share"] < 0.25
