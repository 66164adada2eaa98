"""One builder at a time for one engine, across processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import EngineError


@contextmanager
def build_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`, waiting for it; it ends with the process at the latest.

    Where the file system has no locks (some of a network's) nobody waits: two may then build the
    same engine, and each file of it is still written in one step.

    Raises:
        EngineError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise EngineError(f"cannot write beside {path}: {error}") from error
    with file:
        _acquire(file.fileno())
        yield


def _acquire(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined, unused-ignore]
        return
    import fcntl

    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
