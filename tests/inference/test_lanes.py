"""Calls side by side on a CPU."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segmenter_jax.inference.lanes import Lanes
from tests.compilations import compilations


@pytest.fixture
def lanes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    return Lanes(jax.local_devices()[:1])


def test_as_many_calls_run_at_a_time_as_there_are_cores(lanes):
    assert lanes.count == lanes.in_flight == 2
    lanes.start("program", lambda: jnp.zeros(())).result()
    meeting = threading.Barrier(2)
    calls = [lanes.start("program", lambda: meeting.wait(timeout=20)) for _ in range(2)]
    assert sorted(call.result() for call in calls) == [0, 1]


def test_call_that_waits_can_be_cancelled(lanes):
    lanes.start("program", lambda: jnp.zeros(())).result()
    release = threading.Event()
    calls = [lanes.start("program", lambda: release.wait(timeout=20)) for _ in range(3)]
    assert calls[2].cancel() and not calls[0].cancel()
    release.set()
    assert calls[0].result() and calls[1].result()


@pytest.mark.parametrize("cores", [1, 64])
def test_number_of_calls_is_bounded(monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    lanes = Lanes(jax.local_devices()[:1])
    assert (lanes.count, lanes.in_flight) == {1: (1, 2), 64: (4, 4)}[cores]
    assert Lanes(jax.local_devices()[:1], most=1).count == 1
    # Several devices run side by side anyway.
    assert Lanes(jax.local_devices()).count == 1


def test_a_program_is_compiled_once(lanes):
    double = jax.jit(lambda x: x * 2 + 1)
    x = np.arange(5.0, dtype=np.float32)
    with compilations() as compiled:
        calls = [lanes.start("double", lambda: {"y": double(x)}) for _ in range(6)]
        results = [call.result()["y"] for call in calls]
    assert len(compiled) == 1
    for result in results:
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, x * 2 + 1)


@pytest.mark.parametrize("cores", [1, 2])
def test_failure_of_a_call_is_raised_where_it_is_waited_for_or_started(monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    lanes = Lanes(jax.local_devices()[:1])

    def fail():
        raise ValueError("wrong shape")

    for _ in range(2):
        with pytest.raises(ValueError, match="wrong shape"):
            lanes.start("fail", fail).result()
    np.testing.assert_array_equal(lanes.start("good", lambda: jnp.ones(2)).result(), [1, 1])
