"""Signals as requests to stop."""

import os
import signal
import threading

import pytest

from segmenter_jax.training.stop_request import StopRequest


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_first_signal_is_a_request_and_the_second_acts(number):
    caught = []
    before = signal.signal(number, lambda *_: caught.append(number))
    try:
        with StopRequest() as stop:
            assert not stop.agreed() and not stop.agreed_now()
            os.kill(os.getpid(), number)
            assert stop.agreed() and stop.agreed_now()
            assert stop.reason == stop.received == signal.Signals(number).name
            assert caught == []
            os.kill(os.getpid(), number)
            assert caught == [number]
    finally:
        signal.signal(number, before)


def test_handlers_of_before_are_back_after_the_block():
    before = [signal.getsignal(number) for number in StopRequest.SIGNALS]
    with StopRequest():
        pass
    assert [signal.getsignal(number) for number in StopRequest.SIGNALS] == before


def test_other_threads_than_the_main_one_catch_nothing():
    found = []

    def enter():
        with StopRequest() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.agreed()))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGTERM), False)]
