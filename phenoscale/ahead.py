"""Things made by threads before they are needed, and how long they were waited for all the same."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
Part = TypeVar("Part")


class Watch:
    """How long an iterator let its user wait."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        """The items, on the watch."""
        while True:
            began = time.monotonic()
            item = next(items, None)
            self.seconds += time.monotonic() - began
            if item is None:
                return
            yield item


def ahead(
    make: Callable[[Part], T], parts: Iterable[Part], threads: int, *, spare: int = 1
) -> Iterator[T]:
    """What `make` gives for each part, in order; the next ones are made while one is in use.

    Args:
        make: called in threads.
        parts: what it is called with.
        threads: that make at once, one part each.
        spare: parts beyond these that may wait, made, for their user.
    """
    pool = ThreadPoolExecutor(threads, "reader")
    try:
        made = (pool.submit(make, part) for part in parts)
        coming = deque(islice(made, threads + spare))
        while coming:
            ready = coming.popleft().result()
            coming.extend(islice(made, 1))
            yield ready
    finally:
        pool.shutdown(cancel_futures=True)
