"""The machine under this process: its cores, and the C library's allocator of memory."""

import ctypes
import os
import sys

# Parameters of glibc's `mallopt`.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory instead of handing it back to the system.

    A compiled program allocates its temporary memory anew in every call. On a CPU the system would
    clear all its pages each time, which takes a good part of a training step. The process stays
    at its peak of memory; other C libraries than glibc are left as they are.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # One arena, since only the first can grow in place; threads started before keep theirs.
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            libc.mallopt(parameter, value)


def usable_cores() -> int:
    """Cores that the process may run on, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
