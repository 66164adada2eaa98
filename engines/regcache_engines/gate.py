"""Who is inside an engine: close waits for them, and a forked child stays out."""

from __future__ import annotations

import ctypes
import os
from threading import Condition, get_ident
from types import TracebackType
from typing import Any
from weakref import WeakSet

from .errors import EngineError

_loaded: WeakSet[Any] = WeakSet()


def keep_in_children(holder: Any) -> None:
    """Never run this object's destructor in a forked child, not even when the child ends.

    A runtime's destructor joins threads, which a forked child does not have.
    """
    _loaded.add(holder)


def _keep() -> None:
    for holder in list(_loaded):
        ctypes.pythonapi.Py_IncRef(
            ctypes.py_object(holder)
        )  # a list would die with the interpreter


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)


class Gate:
    """`with gate:` around every call; `shut` once, before what the calls use is released.

    A forked child has none of the runtime's threads, and locks as the parent's other threads held
    them: whatever would wait for one of them would wait for ever. So it is refused.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._changed = Condition()  # reentrant: a signal's handler may close
        self._inside: list[int] = []  # thread of every call
        self._closed = False

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that loaded the engine."""
        return os.getpid() != self._pid

    def __enter__(self) -> None:
        if self.forked:  # before the lock, which may be held for ever
            raise EngineError(
                "this engine was loaded before the process forked, and its runtime does not "
                "survive that; load it in the child (with gunicorn: in post_fork, not --preload)"
            )
        with self._changed:
            if self._closed:
                raise EngineError("this engine is closed; load it again")
            self._inside.append(get_ident())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._inside.remove(get_ident())
            self._changed.notify_all()

    def shut(self) -> bool:
        """Let nobody in any more, and wait until the last one is out.

        Returns:
            Whether the caller is the one to release what the calls used: the first that shuts it,
            in the process that loaded it.

        Raises:
            EngineError: the calling thread is inside itself (a signal's handler, a callback), and
                would wait for itself.
        """
        if self.forked:
            return False
        with self._changed:
            if get_ident() in self._inside:
                raise EngineError("an engine cannot be closed by a thread that is inside of infer")
            first, self._closed = not self._closed, True
            while self._inside:
                self._changed.wait()
            return first
