"""Iterators that are ahead of who takes from them."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def read_ahead(
    items: Iterable[T],
    count: int,
    weight: Callable[[T], int] = lambda item: 0,
    most: int = 0,
) -> Iterator[T]:
    """Passes items on once more were read, so that what each started may run meanwhile.

    Args:
      items: to be read.
      count: how many to be ahead.
      weight: of an item.
      most: of the weights of all that wait.
    """
    waiting: collections.deque[tuple[T, int]] = collections.deque()
    load = 0
    for item in items:
        waiting.append((item, weight(item)))
        load += waiting[-1][1]
        while len(waiting) > count or load > most:
            first, its = waiting.popleft()
            load -= its
            yield first
    yield from (item for item, _ in waiting)
