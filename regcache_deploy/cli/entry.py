"""The console scripts: a command, then the end of the process without taking torch apart first."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from .main import bench_main, build_main, export_main, main


def regcache() -> NoReturn:
    """`regcache`, and `python -m regcache_deploy`."""
    leave(main)


def regcache_export() -> NoReturn:
    """`regcache-export`."""
    leave(export_main)


def regcache_build() -> NoReturn:
    """`regcache-build`."""
    leave(build_main)


def regcache_bench() -> NoReturn:
    """`regcache-bench`."""
    leave(bench_main)


def leave(command: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code.

    What was registered for the end is run and what was printed is flushed; the interpreter's own
    end, which frees every module of torch one by one, takes seconds and is left out.
    """
    code = command()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe has its exit code already
            stream.flush()
    os._exit(code)
