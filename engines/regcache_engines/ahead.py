"""Decode in threads a few items ahead, in order; memory stays bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .container import usable_cpus, within_cpu_limit

AHEAD = 4
"""Items in flight, per worker."""

MOST_WORKERS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """Threads that decode: one a core, or what a container leaves of them, at most 8."""
    return within_cpu_limit(min(MOST_WORKERS, usable_cpus()))


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0
) -> Iterator[tuple[Item, Result]]:
    """Each item with `function(item)`, in order, at most `AHEAD` items per worker in flight.

    Args:
        function: called in several threads; what it raises is raised here, at its item.
        items: taken from as they are needed.
        workers: threads; 0 takes `default_workers`.
    """
    workers = workers or default_workers()
    flying: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, "regcache-decode") as pool:
        try:
            for item in items:
                flying.append((item, pool.submit(function, item)))
                if len(flying) >= workers * AHEAD:
                    first, future = flying.popleft()
                    yield first, future.result()
            while flying:
                first, future = flying.popleft()
                yield first, future.result()
        finally:
            for _, future in flying:
                future.cancel()
