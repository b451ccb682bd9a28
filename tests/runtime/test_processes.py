"""Several processes on this machine train, evaluate and save as one does."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from segmenter_jax.runtime import processes
from tests.tiny_runs import (
    LIGHT,
    ROOT,
    environment,
    run_python,
    state_bytes,
    train_arguments,
    write_dataset,
)

SETTINGS = LIGHT | {"batch_size": 8, "total_steps": 12, "checkpoint__every_steps": 4}


def light_arguments(workdir, source, **overrides):
    return [str(a) for a in train_arguments(workdir, source, **SETTINGS | overrides)]


def start_two(workdir, source, **overrides):
    """The launcher, starting two processes of four devices."""
    arguments = light_arguments(workdir, source, **overrides)[2:]
    return subprocess.Popen(
        ["launch/local_processes.sh", "2", *arguments],
        cwd=ROOT,
        env=environment(4) | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launch(workdir, source, **overrides):
    """What the launcher has said when both processes have ended well."""
    launcher = start_two(workdir, source, **overrides)
    output, _ = launcher.communicate(timeout=900)
    assert launcher.returncode == 0, output
    return output


def process_ids(launcher):
    """Of the two processes, by their numbers."""
    children = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    commands = {int(pid): pathlib.Path(f"/proc/{pid}/cmdline") for pid in children.split()}
    return [
        next(pid for pid, file in commands.items() if f"--process_id={index}\0" in file.read_text())
        for index in range(2)
    ]


def hold_after_first_steps(workdir, launcher):
    """Waits until something is logged, then holds process 1, and with it process 0.

    Returns:
      The ids of both.
    """
    log = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not (log.exists() and log.read_text()):
        assert launcher.poll() is None, launcher.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pids = process_ids(launcher)
    os.kill(pids[1], signal.SIGSTOP)
    return pids


def rows(workdir, name):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row[name] for row in map(json.loads, lines) if name in row}


def assert_same_run(ours, theirs, tolerance):
    losses, expected = (rows(workdir, "train/loss") for workdir in (ours, theirs))
    assert losses.keys() == expected.keys() == {2, 4, 6, 8, 10, 12}
    np.testing.assert_allclose([*losses.values()], [*expected.values()], rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "scenes", val=5)


@pytest.fixture(scope="module")
def two(source, tmp_path_factory):
    """Workdir of a run of two processes, which also build the dataset."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    assert "8 devices, 2 hosts" in launch(workdir, source)
    return workdir


@pytest.fixture(scope="module")
def one(source, two, tmp_path_factory):
    """Workdir of the same run in one process of eight devices."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    result = run_python(*light_arguments(workdir, source), devices=8)
    assert result.returncode == 0, result.stderr
    return workdir


def test_two_processes_train_as_one_does(one, two):
    assert_same_run(two, one, 1e-6)


def test_two_processes_count_every_pixel_once(one, two):
    ours, expected = (json.loads((w / "report.json").read_text()) for w in (two, one))
    assert ours["num_images"] == 5
    assert ours == expected


def test_checkpoint_of_two_processes_is_gone_on_with_by_one(source, two, tmp_path):
    workdir = tmp_path / "resumed"
    subprocess.run(["cp", "-r", two, workdir], check=True)
    subprocess.run(["rm", "-r", workdir / "checkpoints" / "12"], check=True)
    result = run_python(*light_arguments(workdir, source), devices=1)
    assert result.returncode == 0, result.stderr
    assert "resumed at step 8" in result.stderr
    assert_same_run(workdir, two, 1e-5)


PROBES = """
    import sys
    from segmenter_jax.models import attention
    from segmenter_jax.runtime import processes
    from segmenter_jax.training import sharding

    index = int(sys.argv[2])
    processes.start(sys.argv[1], 2, index)
    import jax

    if index == 1:
        attention._difference = lambda *arguments: "made to fail"
    mesh, found = sharding.make_mesh(1), []

    @jax.jit
    def traced(x):
        found.append(attention.probe("xla", (4, 2, 8), x.dtype, mesh))
        return x

    jax.block_until_ready(traced(1.0))
    print("found", found)
"""


def test_a_kernel_that_fails_in_one_process_is_taken_by_none():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    code = textwrap.dedent(PROBES)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(index)],
            cwd=ROOT,
            env=environment(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert "found ['another process found that it does not work there']" in said[0]
    assert "found ['made to fail']" in said[1]


@pytest.mark.slow
def test_parameters_cut_over_processes_train_alike(source, one, tmp_path):
    workdir = tmp_path / "fsdp"
    launch(workdir, source, mesh__fsdp=8)
    assert_same_run(workdir, one, 1e-5)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_at_one_step(source, two, tmp_path):
    workdir = tmp_path / "stopped"
    launcher = start_two(workdir, source)
    pids = hold_after_first_steps(workdir, launcher)
    os.kill(pids[1], signal.SIGTERM)
    os.kill(pids[1], signal.SIGCONT)
    told = time.monotonic()
    output, _ = launcher.communicate(timeout=300)
    seconds = time.monotonic() - told
    print(f"{seconds:.1f} s from the signal to the end")
    assert launcher.returncode == 0, output
    assert seconds < 30
    assert "signal to another process: saving step" in output
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 2 <= step < 12
    assert f"resumed at step {step}" in launch(workdir, source)
    assert state_bytes(workdir, 12) == state_bytes(two, 12)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_loss_of_a_process_ends_the_other(source, two, tmp_path, lost):
    workdir = tmp_path / "killed"
    launcher = start_two(workdir, source)
    pids = hold_after_first_steps(workdir, launcher)
    os.kill(pids[lost], signal.SIGKILL)
    os.kill(pids[1 - lost], signal.SIGCONT)
    told = time.monotonic()
    output, _ = launcher.communicate(timeout=300)
    seconds = time.monotonic() - told
    print(f"{seconds:.1f} s from the kill to the end\n{output[-2000:]}")
    assert seconds < 60
    assert launcher.returncode == 128 + signal.SIGKILL
    last = output.splitlines()[-1]
    assert last == f"error: process {lost} ended with code 137, see {workdir}/process_{lost}.log"
    launch(workdir, source)
    assert state_bytes(workdir, 12) == state_bytes(two, 12)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        (SLURM | {"SLURM_NTASKS": "2"}, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        # A shell in an allocation of four tasks.
        (SLURM | {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),
        # In the batch script itself, outside of srun.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"},
            "Open MPI",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        # A notebook in a cluster.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_schedulers_are_told_from_single_processes(variables, found):
    assert processes.scheduler(variables) == found


@pytest.mark.parametrize(("installed", "found"), [(None, None), ("libtpu", "the TPU pod")])
def test_tpu_slices_are_looked_for_where_their_library_is(monkeypatch, installed, found):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda _: installed)
    assert processes.scheduler({"TPU_WORKER_HOSTNAMES": "a,b"}) == found


def test_open_mpi_that_hides_its_coordinator_is_no_single_process():
    with pytest.raises(ValueError, match=r"give --coordinator=HOST:PORT --num_processes=\$OMPI"):
        processes.scheduler({"OMPI_COMM_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1",), "--num_processes and --process_id missing: give all of"),
        ((None, 2, 0), "--coordinator missing"),
        (("host:1", 2), "--process_id missing"),
        (("host", 2, 0), "--coordinator='host' must look like HOST:PORT"),
        (("host:1", 2, 2), r"--process_id=2 must lie in 0\.\.1"),
    ],
)
def test_half_given_flags_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.start(*arguments)


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setattr(os, "environ", SLURM | {"SLURM_NTASKS": "2"})
    processes.start(num_processes=1)
    assert not processes.distributed()
    assert processes.broadcast(3) == processes.maximum(3) == 3
