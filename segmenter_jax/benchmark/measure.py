"""Timing, memory, and what identifies a measurement."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain")

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Timing:
    """How often a program is run, and what its speed is compared with.

    Attributes:
      steps: timed calls.
      warmup: untimed calls before them.
      peak_tflops: of one device, and where the number is from.
      profile: folder for a profiler's trace.
      profile_steps: calls in the trace.
    """

    steps: int
    warmup: int
    peak_tflops: tuple[float, str]
    profile: str | None = None
    profile_steps: int = 0

    def trace(self, call: Callable[[], Any]) -> None:
        """Traces some more calls, if asked: tracing takes time, so none of them is a timed one."""
        if self.profile:
            with jax.profiler.trace(self.profile):
                time_calls(call, self.profile_steps, warmup=0)


def time_calls(call: Callable[[], Any], steps: int, warmup: int) -> list[float]:
    """Seconds of each of `steps` calls, waiting for each one's result, after `warmup` untimed."""
    for _ in range(warmup):
        jax.block_until_ready(call())
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds


def summarise(seconds: list[float], prefix: str = "") -> Result:
    """Median and spread, in milliseconds."""
    quartiles = (
        statistics.quantiles(seconds, n=4, method="inclusive")
        if len(seconds) > 1
        else [seconds[0]] * 3
    )
    names = ("step_ms", "q1_ms", "q3_ms", "min_ms")
    values = (quartiles[1], quartiles[0], quartiles[2], min(seconds))
    return {prefix + name: 1e3 * value for name, value in zip(names, values, strict=True)}


def compile_timed(function: Any, *args: Any) -> tuple[Any, Result]:
    """Compiles a jitted function ahead of time.

    Returns:
      The executable, and its compile time and memory. Temporary memory is what the program needs
      besides its arguments and results.
    """
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    memory = compiled.memory_analysis()
    return compiled, {
        "compile_s": time.perf_counter() - start,
        "temp_memory_mb": memory.temp_size_in_bytes / 1e6,
        "argument_memory_mb": memory.argument_size_in_bytes / 1e6,
    }


def device_memory() -> Result:
    """Peak memory in use on the first device, where the platform tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return {}
    return {"peak_device_memory_mb": stats["peak_bytes_in_use"] / 1e6}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def environment(num_devices: int) -> Result:
    """Machine and versions a number belongs to."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": num_devices,
        "cpu": f"{os.cpu_count()} x {_cpu_name()}",
        "load_average": os.getloadavg()[0],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": " ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
        + f" python {platform.python_version()}",
    }
