"""Devices that are not there, described well enough to compile for them."""

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from segmenter_jax.benchmark.devices import DEVICES, DeviceSpec, device_spec
from segmenter_jax.runtime.errors import first_line

TPUS = ("v4:2x2x1", "v5e:2x4", "v5p:2x2x2", "v6e:2x4", "tpu7x:2x2x1")

# What libtpu asks of a machine, answered for one without a TPU.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}

# Nothing can be timed without the device; products by Triton then find no tiles.
_GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"

_GPU_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory} threads_per_core_limit: 2048 core_count: {cores}
  fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {l2_cache}
  clock_rate_ghz: {clock} device_memory_size: {memory}
  shared_memory_per_block_optin: {block_memory}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 2 }}
device_description_str: "{kind}"
"""

_HOPPER = {
    "shared_memory": 233472,
    "block_memory": 232448,
    "cores": 132,
    "fpus": 128,
    "l2_cache": 52428800,
    "clock": 1.98,
    "major": 9,
}
_AMPERE = {
    "shared_memory": 167936,
    "block_memory": 166912,
    "cores": 108,
    "fpus": 64,
    "l2_cache": 41943040,
    "clock": 1.41,
    "major": 8,
}

# The SXM cards, by datasheet.
_GPUS = {
    "a100": _AMPERE
    | {"kind": "NVIDIA A100-SXM4-80GB", "bandwidth": 2039000000000, "memory": 84987740160},
    "h100": _HOPPER
    | {"kind": "NVIDIA H100 80GB HBM3", "bandwidth": 3352320000000, "memory": 84942979072},
    "h200": _HOPPER | {"kind": "NVIDIA H200", "bandwidth": 4800000000000, "memory": 150109028352},
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A described set of equal devices.

    Attributes:
      name: what it was asked for by.
      devices: for a mesh; nothing can be put on them.
      spec: what one of them can do.
    """

    name: str
    devices: Sequence[jax.Device]
    spec: DeviceSpec


def describe(name: str) -> Topology:
    """Devices that programs can be compiled for, though they are not there.

    Args:
      name: "KIND:AxB" or "KIND:AxBxC" for TPUs, see `TPUS`; "h100:8" and the like for one host of
        GPUs.

    Raises:
      ValueError: the name is not known.
      ImportError: a compiler for it is not installed; the message says what to install.
    """
    gpu = re.fullmatch(rf"({'|'.join(_GPUS)}):([1-9]\d*)", name)
    try:
        devices = _gpus(gpu[1], int(gpu[2])) if gpu else _tpus(name)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"topology {name!r} is not known ({first_line(error)}); choose from such as "
            f"{', '.join((*TPUS, *(f'{gpu}:8' for gpu in _GPUS)))}"
        ) from error
    kind = devices[0].device_kind
    spec = device_spec(kind)
    if spec is None:
        raise ValueError(f"topology {name!r}: nothing is known of {kind!r}, but {list(DEVICES)}")
    return Topology(name, devices, spec)


def stay_on_cpu() -> None:
    """Keeps this process from starting accelerators that may be there; before JAX is first used."""
    jax.config.update("jax_platforms", "cpu")
    # Programs for absent devices can be written to a cache but not read from it.
    jax.config.update("jax_enable_compilation_cache", False)


def _tpus(name: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(f"{name}: compiling for TPUs needs libtpu: pip install '.[tpu]'")
    for variable, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options = {}
    if name.startswith("v4:"):
        # The two cores of a chip are one device there, as Cloud TPU sets them up.
        options["chip_config_name"] = "megacore"
    sizes = [int(n) for n in re.findall(r"\d+", name.partition(":")[2])]
    if sizes and math.prod(sizes) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def _gpus(name: str, count: int) -> Sequence[jax.Device]:
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise ImportError(
            f"{name}:{count}: compiling for NVIDIA GPUs needs CUDA: pip install '.[cuda]'"
        )
    toolkit = _cuda_toolkit()
    os.environ["PATH"] = f"{toolkit / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # What the user set comes last and wins.
    flags = f"--xla_gpu_cuda_data_dir={toolkit} {_GPU_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
    os.environ["XLA_FLAGS"] = flags
    return topologies.get_topology_desc(
        name, "cuda", target_config=_GPU_TARGET.format(**_GPUS[name]), topology=f"1x1x{count}"
    ).devices


def _cuda_toolkit() -> pathlib.Path:
    """Folder of `bin/ptxas` and libdevice in NVIDIA's packages."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations if found else ():
        for place in ("cuda_nvcc", "cu13"):
            if (pathlib.Path(folder) / place / "bin" / "ptxas").is_file():
                return pathlib.Path(folder) / place
    raise ImportError(
        "compiling for NVIDIA GPUs needs ptxas: pip install '.[cuda]', or nvidia-cuda-nvcc-cu12 "
        "beside jax-cuda12-plugin and jax-cuda12-pjrt"
    )
