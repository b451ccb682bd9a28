"""Objects of buckets read ahead and written behind: each takes far longer than a file."""

import collections
import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from segmenter_jax.inference.calls import read_ahead
from segmenter_jax.runtime.files import is_local, read_bytes

_AT_A_TIME = 32

# Of pictures that wait for being written, which bounds the memory.
_MOST_PIXELS = 2**26

T = TypeVar("T")


def fetched(
    paths: Iterable[pathlib.Path],
) -> Iterator[tuple[pathlib.Path, Callable[[], bytes]]]:
    """Passes paths on in their order, each with what returns its bytes, or raises why it cannot.

    Objects are being read by then, several at a time; a file is read by the call.
    """
    threads = ThreadPoolExecutor(_AT_A_TIME)

    def started() -> Iterator[tuple[pathlib.Path, Callable[[], bytes]]]:
        for path in paths:
            read = path.read_bytes
            if not is_local(path):
                read = threads.submit(read_bytes, path).result
            yield path, read

    try:
        yield from read_ahead(started(), _AT_A_TIME)
    finally:
        threads.shutdown(cancel_futures=True)


def written(
    items: Iterable[T], write: Callable[[T], None], pixels: Callable[[T], int], folder: pathlib.Path
) -> Iterator[T]:
    """Passes items on in their order, each once it is written.

    Args:
      items: to be written, several at a time where `folder` is in a bucket.
      write: writes one.
      pixels: of one.
      folder: that is written to.

    Raises:
      Whatever `write` raises.
    """
    if is_local(folder):
        for item in items:
            write(item)
            yield item
        return
    waiting: collections.deque[tuple[T, Future[None]]] = collections.deque()
    load = 0
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        for item in items:
            waiting.append((item, threads.submit(write, item)))
            load += pixels(item)
            while len(waiting) > _AT_A_TIME or load > _MOST_PIXELS:
                done, future = waiting.popleft()
                future.result()
                load -= pixels(done)
                yield done
        for done, future in waiting:
            future.result()
            yield done
