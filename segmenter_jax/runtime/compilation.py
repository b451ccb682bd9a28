"""How programs are compiled: the compiler's flags, the cache, and how long it took."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax

from segmenter_jax.runtime.console import logger

# Its autotuner takes minutes for a training step, which is then no faster than with cuBLAS.
TRITON_FLAG = "xla_gpu_enable_triton_gemm"

# Events of JAX's cache, of which this is the last for a program that was in it.
_CACHE, _CACHE_HIT = "/jax/compilation_cache/", "/jax/compilation_cache/cache_hits"


def prepare_compilation() -> None:
    """Sets up compilation for a process, before JAX starts its devices.

    Triton's matrix products are switched off on NVIDIA GPUs, unless `XLA_FLAGS` names their flag;
    other platforms know the flag and ignore it. Compiled programs, and what XLA's autotuner found,
    are kept in the user's cache folder. JAX's own environment variables win.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    # Text that begins otherwise is the name of a file of flags, which nothing can be added to.
    if TRITON_FLAG not in flags and flags[:1] in ("", "-"):
        os.environ["XLA_FLAGS"] = f"{flags} --{TRITON_FLAG}=false".strip()
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    for option, value in (
        # JAX lets XLA keep what its autotuner found in a folder within it.
        ("jax_compilation_cache_dir", str(root / "segmenter_jax" / "xla")),
        # Of any program: small ones are many.
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
    ):
        if option.upper() not in os.environ:
            jax.config.update(option, value)


@contextlib.contextmanager
def logged_compilation(what: str, devices: Sequence[jax.Device]) -> Iterator[None]:
    """Logs that a block compiles a program, how long it took, and whether it was in the cache.

    Args:
      what: names the program.
      devices: that it is compiled for, of one kind.
    """
    device = devices[0]
    without = f"--{TRITON_FLAG}=false" in os.environ.get("XLA_FLAGS", "")
    aside = f", with --{TRITON_FLAG}=false" if device.platform == "gpu" and without else ""
    logger.info("compiling %s for %d x %s%s", what, len(devices), device.device_kind, aside)
    events = []

    def listen(event: str, **_: object) -> None:
        if event.startswith(_CACHE):
            events.append(event)

    jax.monitoring.register_event_listener(listen)
    started = time.monotonic()
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(listen)
    seconds = time.monotonic() - started
    origin = ", from the cache" if events[-1:] == [_CACHE_HIT] else ""
    logger.info("compiled in %.1f s%s", seconds, origin)
