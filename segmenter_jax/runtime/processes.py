"""Several processes as one run: how they find each other, agree, and leave.

The engine is JAX's own: one program on every process, started by whatever starts processes. All
functions but `start` are called by all processes in the same order.
"""

import contextlib
import faulthandler
import functools
import importlib.util
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segmenter_jax.runtime.errors import first_line

# A process that is silent for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 30

# Seconds that processes wait for each other, when they start and when they have finished.
MEETING_SECONDS = 300


class UsageError(ValueError):
    """The flags that describe this run's processes contradict each other, or some are missing."""


class ProcessError(RuntimeError):
    """Processes could not find, or lost, each other."""


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the processes of this run; to be called before anything else of JAX.

    Without arguments, a scheduler's processes are joined if this is one of several that it
    started; else this process stays alone, as it does with `num_processes=1`.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes.
      process_id: number of this one, from 0.

    Raises:
      UsageError: only some of the arguments are given, or they are out of range.
      ProcessError: no contact.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if num_processes == 1 and coordinator is None and process_id in (None, 0):
        return
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UsageError(
            f"{' and '.join(missing)} missing: give all of --coordinator, --num_processes and "
            "--process_id, or none of them under TPU, Slurm, Kubernetes or Open MPI"
        )
    if missing:
        found = scheduler(os.environ)
        if found is not None:
            _join(f"as {found} says", {})
        return
    _check_address(coordinator)
    if num_processes < 1:
        raise UsageError(f"--num_processes={num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UsageError(f"--process_id={process_id} must lie in 0..{num_processes - 1}")
    # Nothing is left to detect: JAX would otherwise show a task of Slurm one of its GPUs only.
    _join(f"at --coordinator={coordinator}", given | {"method": "deactivate"})


def _check_address(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator={coordinator!r} must look like HOST:PORT")


def _join(how: str, given: dict) -> None:
    try:
        jax.distributed.initialize(
            given.get("coordinator"),
            given.get("num_processes"),
            given.get("process_id"),
            cluster_detection_method=given.get("method"),
            initialization_timeout=MEETING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=MEETING_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ProcessError(
            f"the processes of this run did not meet, {how}: {first_line(error)}"
        ) from error
    # JAX aborts a process that lost another: the stacks of all threads would bury its message.
    faulthandler.enable(all_threads=False)
    # JAX swallows SIGTERM from here on; until the run listens to it, it shall end the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # On CPUs a group of devices must connect within 30 seconds of its first use, which is now.
    maximum(0)
    barrier("met")


def scheduler(environment: Mapping[str, str]) -> str | None:
    """Name of the scheduler that started this process as one of several, as far as is visible.

    Args:
      environment: variables of the process.

    Raises:
      UsageError: there are several processes, and JAX cannot find their coordinator.
    """

    def number(*names: str) -> int:
        values = [environment[n] for n in names if environment.get(n, "").isdecimal()]
        return int(values[0]) if values else 0

    # A shell inside an allocation is one task, whatever the allocation's number of tasks.
    if "SLURM_STEP_NODELIST" in environment and number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") > 1:
        return "Slurm"
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environment:
            raise UsageError(
                "this release of Open MPI does not say where process 0 is; give "
                "--coordinator=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
                "--process_id=$OMPI_COMM_WORLD_RANK"
            )
        return "Open MPI"
    if _on_tpu_pod(environment):
        return "the TPU pod"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    return None


def _on_tpu_pod(environment: Mapping[str, str]) -> bool:
    if importlib.util.find_spec("libtpu") is None:
        return False
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or environment.get("MEGASCALE_NUM_SLICES", "1") != "1":
        return True
    # On a TPU virtual machine the neighbours are known to its metadata server only.
    devices = [*pathlib.Path("/dev").glob("accel*"), *pathlib.Path("/dev").glob("vfio/[0-9]*")]
    return bool(devices) and not hosts and "TPU_SKIP_MDS_QUERY" not in environment


def distributed() -> bool:
    """Whether this process is one of several; starts no device."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def broadcast(value: int) -> int:
    """The value that process 0 gives, an int32."""
    return maximum(value if jax.process_index() == 0 else np.iinfo(np.int32).min)


def maximum(value: int) -> int:
    """The largest of the values that the processes give, int32."""
    return value if jax.process_count() == 1 else int(maximum_async(value))


def maximum_async(value: int) -> jax.Array:
    """As `maximum`, without waiting for the other processes: reading the result waits for them."""
    program, place = _maximum()
    values = np.full(jax.local_device_count(), value, np.int32)
    # The copy is meant, also where a training loop forbids accidental ones.
    with jax.transfer_guard_host_to_device("allow"):
        return program(jax.make_array_from_process_local_data(place, values))


@functools.cache
def _maximum() -> tuple[Callable[[jax.Array], jax.Array], NamedSharding]:
    mesh = Mesh(np.array(jax.devices()), ("device",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(jnp.max, out_shardings=everywhere), NamedSharding(mesh, PartitionSpec("device"))


def barrier(name: str) -> None:
    """Waits until every process is here.

    Args:
      name: of the place, the same in all of them.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def connect(mesh: Mesh) -> None:
    """Lets the devices of a mesh meet while no process is far ahead, compiling or reading.

    On CPUs a group of devices must connect within 30 seconds of its first use.
    """
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        return
    for axes in (mesh.axis_names, *((name,) for name in mesh.axis_names)):

        def total(x: jax.Array, axes: tuple[str, ...] = axes) -> jax.Array:
            return jax.lax.psum(x, axes)

        everywhere = PartitionSpec(mesh.axis_names)
        ones = jax.make_array_from_callback(
            (mesh.size,), NamedSharding(mesh, everywhere), lambda _: np.ones(1, np.int32)
        )
        spread = jax.shard_map(
            total, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
        )
        jax.block_until_ready(jax.jit(spread)(ones))


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Runs a block in process 0 and then in the others, which find there what it has left.

    Raises:
      ProcessError: in the others, if it failed in process 0.
    """
    if jax.process_count() == 1:
        yield
    elif jax.process_index() == 0:
        try:
            yield
        except BaseException:
            broadcast(0)
            raise
        broadcast(1)
    else:
        if not broadcast(0):
            raise ProcessError("process 0 failed; its own message says why")
        yield


def leave(code: int) -> NoReturn:
    """Ends this process at once, where a normal end would wait for the others in vain."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
