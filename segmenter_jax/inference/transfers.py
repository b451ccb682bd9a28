"""Objects of buckets read ahead and written behind: each takes far longer than a file."""

import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from segmenter_jax.runtime.buckets import AT_A_TIME
from segmenter_jax.runtime.files import is_local, read_bytes
from segmenter_jax.runtime.lookahead import read_ahead

# Of objects that are read ahead, and of pictures that wait for being written: both bound the
# memory.
_MOST_BYTES = 2**28
_MOST_PIXELS = 2**26

T = TypeVar("T")


def fetched(
    paths: Iterable[pathlib.Path], size: Callable[[pathlib.Path], int]
) -> Iterator[tuple[pathlib.Path, Callable[[], bytes]]]:
    """Passes paths on in their order, each with what returns its bytes, or raises why it cannot.

    Objects are being read by then, several at a time; a file is read by the call.

    Args:
      paths: of files and objects.
      size: bytes of an object.
    """
    threads = ThreadPoolExecutor(AT_A_TIME)

    def started() -> Iterator[tuple[pathlib.Path, Callable[[], bytes]]]:
        for path in paths:
            read = path.read_bytes
            if not is_local(path):
                read = threads.submit(read_bytes, path).result
            yield path, read

    def weight(item: tuple[pathlib.Path, Callable[[], bytes]]) -> int:
        return 0 if is_local(item[0]) else size(item[0])

    try:
        yield from read_ahead(started(), AT_A_TIME, weight, _MOST_BYTES)
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
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        started = ((item, threads.submit(write, item)) for item in items)
        ahead = read_ahead(started, AT_A_TIME, lambda item: pixels(item[0]), _MOST_PIXELS)
        for item, future in ahead:
            future.result()
            yield item
