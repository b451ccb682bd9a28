"""A disk that is full, for tests that write."""

import contextlib
import resource
import signal

import pytest


@pytest.fixture
def small_files():
    """A context manager in which no file can grow beyond a number of bytes."""

    @contextlib.contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Without it the system kills the process instead of refusing to write.
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limited
