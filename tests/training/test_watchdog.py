"""The watchdog speaks when nothing is finished for a while, and only then."""

import time

import pytest

from segmenter_jax.training.watchdog import Watchdog


def test_stall_prints_the_stack_of_every_thread_once(capfd, caplog):
    with Watchdog(0.2) as watchdog:
        watchdog.beat()
        time.sleep(1.0)
    output = capfd.readouterr().err
    (record,) = caplog.records
    assert "no step was finished for 0 s" in record.getMessage()
    assert "test_stall_prints_the_stack_of_every_thread_once" in output
    assert "(most recent call first)" in output


def test_nothing_is_printed_before_the_first_step_in_pauses_and_after_beats(capfd, caplog):
    with Watchdog(0.4) as watchdog:
        time.sleep(0.6)
        for _ in range(6):
            watchdog.beat()
            time.sleep(0.1)
        with watchdog.paused():
            time.sleep(0.6)
    with Watchdog(0) as off:
        off.beat()
    assert capfd.readouterr().err == "" and not caplog.records


def test_negative_time_is_refused():
    with pytest.raises(ValueError, match=r"log\.stall_seconds must be at least 0, got -1"):
        Watchdog(-1)
