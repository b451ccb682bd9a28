"""Checkpoints of a run: on other devices, damaged, of another model, without space."""

import json
import logging
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segmenter_jax.checkpoints.manager import CheckpointError, Checkpoints
from segmenter_jax.training import sharding

POSITION = {"next_batch": 2, "seed": 0}


def make_state(step, mesh, width=128):
    """A state of known values, cut as the rules say."""
    rng = np.random.default_rng(step)
    state = {
        "step": np.int32(step),
        "params": {
            "kernel": rng.normal(size=(width, 256)).astype(np.float32),
            "bias": rng.normal(size=(width,)).astype(np.float32),
        },
    }
    return jax.tree.map(jax.device_put, state, sharding.tree_sharding(state, mesh))


def target(mesh, width=128):
    state = make_state(0, mesh, width)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_is_state(found, step):
    expected = make_state(step, sharding.make_mesh(num_devices=1))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Workdir with checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("run")
    mesh = sharding.make_mesh(fsdp=4)
    checkpoints = Checkpoints(workdir, keep=2)
    for step in (1, 2):
        checkpoints.save(make_state(step, mesh), POSITION, step)
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "run")


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("fsdp", [1, 2])
def test_state_comes_back_on_any_devices(workdir, devices, fsdp):
    mesh = sharding.make_mesh(min(fsdp, devices), devices)
    checkpoints = Checkpoints(workdir, keep=2)
    state, position = checkpoints.restore(target(mesh))
    checkpoints.close()
    assert_is_state(state, 2)
    assert position == POSITION
    spec = PartitionSpec(None, "fsdp") if min(fsdp, devices) > 1 else PartitionSpec()
    assert state["params"]["kernel"].sharding == NamedSharding(mesh, spec)


def biggest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)


def other_values(folder):
    """Whole and readable, with one value that was never saved."""
    source = folder.parent / "1" / "state"
    shutil.rmtree(folder / "state")
    shutil.copytree(source, folder / "state")


def clear(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def remove_files(folder):
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        path.unlink()


# Words of TensorStore.
UNREADABLE = "OUT_OF_RANGE|DATA_LOSS|FAILED_PRECONDITION|NOT_FOUND"

# What happens to a checkpoint, and what is said of it.
DAMAGES = {
    "largest file cut to half": (
        lambda f: cut(biggest(f), biggest(f).stat().st_size // 2),
        UNREADABLE,
    ),
    "largest file empty": (lambda f: cut(biggest(f), 0), UNREADABLE),
    "largest file zeroed": (
        lambda f: biggest(f).write_bytes(bytes(biggest(f).stat().st_size)),
        UNREADABLE,
    ),
    "one bit flipped in the values": (
        lambda f: flip(biggest(f), biggest(f).stat().st_size // 2),
        "other values than were saved in 1 arrays: params/kernel",
    ),
    "largest file removed": (lambda f: biggest(f).unlink(), UNREADABLE),
    "values of another step": (
        other_values,
        "other values than were saved in 3 arrays: params/bias",
    ),
    "all files removed": (remove_files, "FileNotFoundError"),
    "empty directory": (clear, "FileNotFoundError"),
    "state removed": (lambda f: shutil.rmtree(f / "state"), "FileNotFoundError|not found"),
    "data position removed": (lambda f: shutil.rmtree(f / "data"), "FileNotFoundError"),
    "data position cut short": (lambda f: cut(f / "data" / "metadata", 20), "JSONDecodeError"),
    "sums of something else": (
        lambda f: (f / "data" / "metadata").write_text('{"position": {}, "bit_sums": null}'),
        "TypeError",
    ),
    "data position of something else": (
        lambda f: (f / "data" / "metadata").write_text(json.dumps([1, 2])),
        "holds no data position",
    ),
    "names of the arrays cut short": (
        lambda f: cut(f / "state" / "_METADATA", 100),
        "JSONDecodeError",
    ),
    "names of the arrays removed": (lambda f: (f / "state" / "_METADATA").unlink(), "Error"),
    "index of the values removed": (
        lambda f: (f / "state" / "manifest.ocdbt").unlink(),
        "Error",
    ),
}


@pytest.fixture
def warnings(monkeypatch):
    """Messages of the package's logger at level WARNING and above."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("segmenter_jax")
    monkeypatch.setattr(logger, "handlers", [handler])
    return messages


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(workdir, warnings, name):
    damage, reason = DAMAGES[name]
    folder = workdir / "checkpoints"
    damage(folder / "2")
    checkpoints = Checkpoints(workdir, keep=2)
    state, _ = checkpoints.restore(target(sharding.make_mesh()))
    assert_is_state(state, 1)
    (message,) = warnings
    print(f"{name:32} {message.split(': ', 1)[1][:150]}")
    assert message.startswith(f"checkpoint {folder / '2'} is damaged, and kept as 2.damaged: ")
    assert any(word in message for word in reason.split("|")), message
    # The run goes on and needs the number again.
    checkpoints.save(make_state(2, sharding.make_mesh()), POSITION, 2)
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "2.damaged"]
    again = Checkpoints(workdir, keep=2)
    assert_is_state(again.restore(target(sharding.make_mesh()))[0], 2)
    again.close()


def test_run_without_a_whole_checkpoint_does_not_start_afresh(workdir):
    folder = workdir / "checkpoints"
    for step in ("1", "2"):
        clear(folder / step)
    for _ in range(2):
        checkpoints = Checkpoints(workdir, keep=2)
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: 2: FileNotFound"):
            checkpoints.restore(target(sharding.make_mesh()))
        checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_checkpoint_of_another_model_is_an_error_and_stays(workdir):
    checkpoints = Checkpoints(workdir, keep=2)
    with pytest.raises(
        CheckpointError,
        match=r"another model or optimizer: params/bias is float32 \(128,\) there and "
        r"float32 \(256,\) here",
    ):
        checkpoints.restore(target(sharding.make_mesh(), width=256))
    more = target(sharding.make_mesh()) | {"ema": jax.ShapeDtypeStruct((), jnp.float32)}
    with pytest.raises(CheckpointError, match=r"ema is missing there and float32 \(\) here"):
        checkpoints.restore(more)
    checkpoints.close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "error", [ValueError("UNAVAILABLE: Error reading a key"), OSError("I/O error"), MemoryError()]
)
def test_a_failure_outside_of_the_files_sets_nothing_aside(workdir, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
    checkpoints = Checkpoints(workdir, keep=2)
    with pytest.raises(CheckpointError, match="/2 cannot be restored: "):
        checkpoints.restore(target(sharding.make_mesh()))
    checkpoints.close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_interrupted_save_leaves_nothing_behind(workdir):
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    mesh = sharding.make_mesh()
    checkpoints = Checkpoints(workdir, keep=2)
    assert_is_state(checkpoints.restore(target(mesh))[0], 2)
    # Orbax clears in the background, and waits for that before it saves.
    checkpoints.save(make_state(3, mesh), POSITION, 3)
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_full_disk_is_an_error_and_keeps_what_there_is(workdir):
    mesh = sharding.make_mesh()
    checkpoints = Checkpoints(workdir, keep=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writes beyond this size of a file fail, as they do where there is no space.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"not be written: .*steps \[1, 2\] are as they"):
            checkpoints.save(make_state(3, mesh), POSITION, 3)
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    after = Checkpoints(workdir, keep=2)
    assert_is_state(after.restore(target(mesh))[0], 2)
    after.save(make_state(3, mesh), POSITION, 3)
    after.close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]


def test_nothing_saved_is_nothing_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.restore(target(sharding.make_mesh())) is None
    checkpoints.close()
    with pytest.raises(ValueError, match="keep=0 must be at least 1"):
        Checkpoints(tmp_path, keep=0)
