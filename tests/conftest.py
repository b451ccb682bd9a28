"""Shared set-up: 8 simulated CPU devices, and programs that compile fast and only once.

Children of the tests inherit all of it.
"""

import atexit
import contextlib
import importlib.metadata
import logging
import os
import pathlib
import resource
import shutil
import signal
import tempfile

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:
    # Workers inherit it. Flags come after the caller's own, `--xla_cpu_max_isa=SSE4_2` for example.
    _cache = tempfile.mkdtemp(prefix="segmenter_jax_tests_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
        # Which commands set: what they and the tests themselves compile is then the same.
        + " --xla_gpu_enable_triton_gemm=false"
    )
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # Programs compile in half of the time. 0.12 does not know the flag, and would end with it.
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

os.environ["JAX_PLATFORMS"] = "cpu"
# Small programs as well: every process needs the same hundred of them to begin with.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Files that take longest, so that no worker begins one when the others have finished.
FIRST = ("test_program", "test_loop", "test_options", "test_processes", "test_notebook", "test_vit")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    """Folder of inputs and outputs computed with the reference implementation."""
    return GOLDEN


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> pathlib.Path:
    """A folder dataset of generated scenes, which nobody changes; it is built beside it once."""
    from tests.tiny_runs import write_dataset

    return write_dataset(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(autouse=True)
def no_console(monkeypatch) -> None:
    """Each test begins with the logger as it is before a command sets the terminal up."""
    for name, value in {"propagate": True, "handlers": [], "level": logging.NOTSET}.items():
        monkeypatch.setattr(logging.getLogger("segmenter_jax"), name, value)


@pytest.fixture
def small_files():
    """A full disk: a context manager in which no file can grow beyond a number of bytes."""

    @contextlib.contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Without it the system kills the process instead of refusing to write.
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the order within a file stays."""
    items.sort(key=lambda item: FIRST.index(s) if (s := item.path.stem) in FIRST else len(FIRST))
