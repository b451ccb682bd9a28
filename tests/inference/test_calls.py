"""Calls of compiled programs, side by side on a CPU."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segmenter_jax.inference.calls import Calls
from tests.compilations import compilations


def calls_of(monkeypatch, cores, **options):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    return Calls(**options)


def test_as_many_calls_run_at_a_time_as_there_are_cores(monkeypatch):
    calls = calls_of(monkeypatch, 2)
    assert calls.at_a_time == calls.ahead == 2
    calls.start("program", lambda: jnp.zeros(()))()
    meeting = threading.Barrier(2)
    waits = [calls.start("program", lambda: meeting.wait(timeout=20)) for _ in range(2)]
    assert sorted(wait() for wait in waits) == [0, 1]


@pytest.mark.parametrize(("cores", "at_a_time", "ahead"), [(1, 1, 2), (64, 4, 4)])
def test_number_of_calls_is_bounded(monkeypatch, cores, at_a_time, ahead):
    calls = calls_of(monkeypatch, cores)
    assert (calls.at_a_time, calls.ahead) == (at_a_time, ahead)
    assert calls_of(monkeypatch, cores, most=1).at_a_time == 1


def test_a_program_is_compiled_once(monkeypatch):
    calls = calls_of(monkeypatch, 2)
    double = jax.jit(lambda x: x * 2 + 1)
    x = np.arange(5.0, dtype=np.float32)
    with compilations() as compiled:
        waits = [calls.start("double", lambda: {"y": double(x)}) for _ in range(6)]
        results = [wait()["y"] for wait in waits]
    assert len(compiled) == 1
    for result in results:
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, x * 2 + 1)


@pytest.mark.parametrize("cores", [1, 2])
def test_failure_of_a_call_is_raised_where_it_is_waited_for_or_started(monkeypatch, cores):
    calls = calls_of(monkeypatch, cores)

    def fail():
        raise ValueError("wrong shape")

    for _ in range(2):
        with pytest.raises(ValueError, match="wrong shape"):
            calls.start("fail", fail)()
    np.testing.assert_array_equal(calls.start("good", lambda: jnp.ones(2))(), [1, 1])
