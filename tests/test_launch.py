"""Scripts of launch/: what they would do, and what linters say of them."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

# Of the environment, which need not be the one that is active.
SHELLCHECK = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent) or shutil.which(
    "shellcheck"
)

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = (
    *("gpu_report.sh", "local_processes.sh", "predict_array.sbatch", "slurm.sbatch"),
    "tpu_vm.sh",
)
RUN = ["--config=quickstart", "--workdir=runs/it's here"]
TPU = {"NAME": "slice", "ZONE": "europe-west4-b", "ACCELERATOR": "v5litepod-16"}
MAIN = ["-m", "segmenter_jax.main"]


def dry_run(script, *arguments, **variables):
    """Commands that a script would run, each as a list of words."""
    result = subprocess.run(
        [LAUNCH / script, *arguments],
        env=os.environ | {"DRY_RUN": "1"} | variables,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def test_every_script_is_tested_here():
    found = {p.name for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch")}
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_sound_shell(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert os.access(LAUNCH / script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say(script):
    result = subprocess.run([SHELLCHECK, LAUNCH / script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_without_arguments_tell_their_usage(script):
    result = subprocess.run([LAUNCH / script], capture_output=True, text=True)
    assert result.returncode == 2
    assert script in result.stderr and "DRY_RUN" in result.stderr


def test_local_processes_differ_in_their_number_only():
    first, second = dry_run("local_processes.sh", "2", *RUN, PORT="1234", PYTHON="python3")
    expected = ["python3", *MAIN, "--coordinator=localhost:1234", "--num_processes=2"]
    assert first == [*expected, "--process_id=0", *RUN]
    assert second == [*expected, "--process_id=1", *RUN]


def run_local(folder, *workdir):
    """Runs two processes that only say that they ran, in a copy of the script's place."""
    (folder / "launch").mkdir()
    shutil.copy(LAUNCH / "local_processes.sh", folder / "launch")
    program = folder / "python"
    program.write_text('#!/bin/sh\necho "ran $*"\n')
    program.chmod(0o755)
    (folder / "tmp").mkdir()
    return subprocess.run(
        [folder / "launch" / "local_processes.sh", "2", "--config=quickstart", *workdir],
        env=os.environ | {"PYTHON": os.fspath(program), "TMPDIR": os.fspath(folder / "tmp")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_logs(folder, *workdir):
    for i in range(2):
        text = (folder / f"process_{i}.log").read_text()
        assert f"--process_id={i} --config=quickstart {' '.join(workdir)}\n" in text


@pytest.mark.parametrize("workdir", [["--workdir=runs/it's here"], ["--workdir", "runs/it's here"]])
def test_logs_of_local_processes_lie_in_the_workdir(tmp_path, workdir):
    result = run_local(tmp_path, *workdir)
    assert result.returncode == 0, result.stderr
    assert_logs(tmp_path / "runs" / "it's here", *workdir)
    assert not list((tmp_path / "tmp").iterdir())


def test_logs_of_local_processes_with_a_remote_workdir_are_kept_here(tmp_path):
    result = run_local(tmp_path, "--workdir=gs://bucket/run")
    assert result.returncode == 0, result.stderr
    (logs,) = (tmp_path / "tmp").iterdir()
    assert f"logs: {logs}\n" in result.stderr
    assert_logs(logs, "--workdir=gs://bucket/run")
    assert not (tmp_path / "gs:").exists()


def test_gpu_report_goes_on_after_what_fails_and_ends_in_time(tmp_path):
    program = tmp_path / "python"
    # Measures nothing, and fails at the loss.
    program.write_text(
        f"""#!/bin/bash
case "$*" in
  *benchmark.markdown*) exec {sys.executable} "$@" ;;
  *"benchmark loss"*) echo "no | memory" >&2; exit 3 ;;
  *"benchmark attention"*) echo '{{"xla_train_ms": 2.5, "cudnn_unavailable": "missing"}}' ;;
  *"benchmark step"*) echo '{{"images_per_s": 80.0, "step_ms": 100.0}}' ;;
esac
"""
    )
    program.chmod(0o755)

    def report(*sections, **variables):
        result = subprocess.run(
            [LAUNCH / "gpu_report.sh", tmp_path / "report", *sections],
            env=os.environ | {"PYTHON": os.fspath(program)} | variables,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "report" / "report.md").read_text() == result.stdout
        return result.stdout

    text = report("attention", "loss", "steps", "trace", PEER="peer.py")
    assert "| 1601 tokens, 16 heads | cudnn |  |  |  |  | missing |" in text
    assert "| 150 classes | failed with code 3: no / memory |" in text
    assert "| B/16 at 512, batch 32 | 80 | 100 |" in text
    assert "| B/16 at 512, batch 32, peer | no result" in text
    assert "not run" in report("loss", SECONDS_IN_ALL="0")


def test_slurm_starts_one_step():
    (command,) = dry_run("slurm.sbatch", *RUN, PYTHON="python3")
    assert command == ["srun", "python3", *MAIN, "--interrupted_code=75", *RUN]


def test_tasks_of_an_array_segment_a_shard_each():
    inputs = ["runs/m", "photos", "-o", "it's here"]
    task = {"PYTHON": "python3", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
    (command,) = dry_run("predict_array.sbatch", *inputs, **task)
    assert command == ["python3", "-m", "segmenter_jax.predict", *inputs, "--shard=3/4"]
    # Some of them once more.
    (command,) = dry_run("predict_array.sbatch", *inputs, **task, SHARDS="32")
    assert command[-1] == "--shard=3/32"


def test_tpu_slice_is_made_again_after_a_preemption():
    commands = dry_run("tpu_vm.sh", "resume", *RUN, **TPU, SPOT="1", PROJECT="mine")
    told = [words for words in commands if words[0] == "gcloud"]
    actions = [words[words.index("tpus") + 2] for words in told]
    assert actions == ["delete", "create", "scp", "ssh", "ssh"]
    create = told[1]
    assert {"--zone=europe-west4-b", "--project=mine", "--spot"} <= set(create)
    assert "--accelerator-type=v5litepod-16" in create
    (remote,) = [w.removeprefix("--command=") for w in told[-1] if w.startswith("--command=")]
    words = shlex.split(remote)
    assert words[-len(MAIN + RUN) - 1 :] == [*MAIN, "--interrupted_code=75", *RUN]


@pytest.mark.parametrize("missing", TPU)
def test_tpu_script_names_what_is_not_set(missing):
    environment = {k: v for k, v in (os.environ | TPU).items() if k != missing}
    result = subprocess.run(
        [LAUNCH / "tpu_vm.sh", "create"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: set {missing}")


def test_jobset_asks_for_a_whole_slice():
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    sides = [int(n) for n in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    chips = sides[0] * sides[1]
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert job["parallelism"] == job["completions"]
    *shell, script = container["command"]
    assert shell == ["bash", "-c"]
    words = shlex.split(script)
    assert words[:4] == ["exec", "python", *MAIN]
    names = {word.split("=")[0] for word in words[4:]}
    assert {"--config", "--workdir"} <= names
