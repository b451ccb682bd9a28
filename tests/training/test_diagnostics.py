"""What a run tells of itself: parameters, memory, the profile of some steps, and where it hangs."""

import contextlib
import dataclasses
import time
import types

import jax
import numpy as np
import pytest
from etils import epath

from segmenter_jax.models import Segmenter
from segmenter_jax.models.params import init_params
from segmenter_jax.runtime.console import logger
from segmenter_jax.training import diagnostics, optimizers, sharding
from segmenter_jax.training.diagnostics import (
    MemoryRow,
    StepProfile,
    Watchdog,
    memory_rows,
    memory_table,
    parameter_lines,
    temporary_bytes,
)
from segmenter_jax.training.program import TrainProgram
from segmenter_jax.training.state import StepOptions
from tests.compilations import compilations
from tests.tiny import tiny_network

TINY = tiny_network(decoder_depth=2)
OPTIONS = StepOptions(mean=(0.5,) * 3, std=(0.5,) * 3, ema_decay=0.9)


def test_parameters_of_repeated_blocks_share_a_line():
    lines = parameter_lines(init_params(tiny_network(depth=3, decoder_depth=1), 0))
    assert "encoder/encoderblock_*/mlp/Dense_0/bias (256,), blocks 0 to 2" in lines
    assert "decoder/block_0/mlp/Dense_0/bias (256,)" in lines
    assert not any("encoderblock_1" in line for line in lines)


def program_of(options, mesh, name="sgd"):
    optimizer = optimizers.make_optimizer(
        name, momentum=0.9, nesterov=True, weight_decay=0.0, clip_norm=None
    )
    return TrainProgram(Segmenter(TINY), optimizer, lambda _: 0.1, options, mesh)


@pytest.mark.parametrize("fsdp", [1, 8])
def test_rows_are_what_lies_on_a_device(fsdp):
    program = program_of(OPTIONS, sharding.make_mesh(fsdp=fsdp))
    state = program.place(init_params(TINY, 0))

    def held(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    rows = {row.name: row.on_device for row in memory_rows(program.abstract_state(), OPTIONS)}
    assert rows == {
        "parameters": held(state.params),
        "optimizer": held(state.opt_state),
        "average of parameters": held(state.ema),
        "gradients": held(state.params),
    }


def test_frozen_parameters_have_no_gradient_and_no_moments():
    options = dataclasses.replace(OPTIONS, freeze_encoder=True, ema_decay=0.0)
    target = program_of(options, sharding.make_mesh(), "adamw").abstract_state()
    rows = {row.name: row.whole for row in memory_rows(target, options)}
    decoder = sum(4 * x.size for x in jax.tree.leaves(target.params["decoder"]))
    assert rows["gradients"] == decoder
    assert rows["optimizer"] == 2 * decoder + 4  # Two moments, and a count.
    assert "average of parameters" not in rows


def test_table_lists_megabytes_and_their_sum():
    rows = [
        MemoryRow("parameters", 1_500_000, 12_000_000),
        MemoryRow("optimizer", 500_000, 500_000),
    ]
    assert [line.split() for line in memory_table(rows).splitlines()] == [
        ["memory", "in", "MB", "one", "device", "all,", "once"],
        ["parameters", "1.5", "12.0"],
        ["optimizer", "0.5", "0.5"],
        ["sum", "2.0", "12.5"],
    ]


def test_plan_of_the_step_costs_no_second_compilation():
    program = program_of(OPTIONS, sharding.make_mesh(num_devices=2))
    state, target = program.place(init_params(TINY, 0)), program.abstract_state()
    shapes = program.abstract_batch(4)
    batch = program.put({k: np.zeros(v.shape, v.dtype) for k, v in shapes.items()})
    temporary = temporary_bytes(program, 4)
    with compilations() as counted:
        program.step(state, batch)
    assert counted == []
    rows = memory_rows(target, OPTIONS, temporary)
    assert rows[-1].name == "activations and work space"
    gradients = sum(4 * x.size for x in jax.tree.leaves(target.params))
    assert rows[-1].on_device == temporary - gradients > 0


def test_profile_needs_a_local_folder():
    with pytest.raises(ValueError, match="needs a local workdir to write to, got gs://b/run"):
        StepProfile(epath.Path("gs://b/run"), 0, 3)


def test_training_goes_on_without_a_profile_that_fails(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    obstacle = tmp_path / "profile"
    obstacle.write_text("in the way")
    profile = StepProfile(epath.Path(tmp_path), 5, 2)
    due = []
    for step in range(5, 20):
        if profile.due(step):
            due.append(step)
            profile.switch()
    profile.close()
    assert due[0] == 15 and "no profile: " in caplog.text
    # The profiler is one for the whole process; that of older releases still waits for its folder.
    obstacle.unlink()
    with contextlib.suppress(RuntimeError):
        jax.profiler.stop_trace()


def test_stall_prints_what_every_thread_is_doing(capfd, monkeypatch):
    monkeypatch.setattr(diagnostics, "REARM_SECONDS", 0.1)
    watchdog = Watchdog(0.1)
    watchdog.beat()
    time.sleep(0.6)
    watchdog.stop()
    output = capfd.readouterr().err
    assert output.count("Timeout (0:00:00.2") == 1
    assert "(most recent call first)" in output
    assert "test_stall_prints_what_every_thread_is_doing" in output


@pytest.fixture
def alarms(monkeypatch):
    """A clock to be set, and what the alarm was told: seconds to wait, or None for a stop."""
    clock, told = [0.0], []
    monkeypatch.setattr(diagnostics.time, "monotonic", lambda: clock[0])
    fake = types.SimpleNamespace(
        dump_traceback_later=lambda seconds, file: told.append(seconds),
        cancel_dump_traceback_later=lambda: told.append(None),
    )
    monkeypatch.setattr(diagnostics, "faulthandler", fake)
    return clock, told


def test_alarm_starts_with_the_first_step_and_is_put_off_once_a_second(alarms):
    clock, told = alarms
    watchdog = Watchdog(60)
    assert told == []
    for clock[0] in (0.0, 0.4, 0.8, 1.2, 1.6, 2.3):
        watchdog.beat()
    # A second longer than asked for: a step just before it was put off is not its beginning.
    assert told == [61, 61, 61]


def test_alarm_rests_in_pauses_and_after_the_end(alarms):
    _, told = alarms
    watchdog = Watchdog(60)
    watchdog.beat()
    with watchdog.paused():
        assert told == [61, None]
    assert told == [61, None, 61]
    watchdog.stop()
    assert told[-1] is None
    off = Watchdog(0)
    off.beat()
    assert told[-1] is None
