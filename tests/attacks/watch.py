"""Run a command and see what it does: exit code, words, files opened, files left behind."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tests.attacks.fault import Outcome, Place

ROOT = Path(__file__).parents[2]
STRACE = shutil.which("strace")

_opened: set[tuple[str, bool]] | None = None
_hooked = False


def environment(place: Place, **more: str) -> dict[str, str]:
    """Of a command that runs by itself."""
    own = {
        "HOME": str(place.home),
        "XDG_CACHE_HOME": str(place.home / "cache"),
        "MPLCONFIGDIR": str(place.home / "matplotlib"),
        "TMPDIR": str(place.temporary),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(place.home / "hub"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "export", "engines")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return dict(os.environ) | own | more


def run_here(place: Place, words: Sequence[str], seconds: float) -> Outcome:
    """In this process: imports are paid once. Files that native code opens are not seen."""
    from regcache_deploy.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    faults: tuple[str, ...] = ()
    begin = time.monotonic()
    with (
        _as_if(place),
        _audited() as opened,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            with _alarm(seconds):
                code = main([*words, "-q"])
        except TookTooLong:
            code, faults = -1, (f"not finished after {seconds:g} s",)
        except BaseException as error:  # a traceback is what it would be
            code, faults = 1, (f"traceback: {type(error).__name__}: {error}",)
    spent = time.monotonic() - begin
    return Outcome(code, spent, out.getvalue(), err.getvalue(), frozenset(opened), faults)


def run_apart(
    place: Place,
    words: Sequence[str],
    seconds: float,
    before: Sequence[str] = (),
    trace: bool = False,
    program: Sequence[str] = (sys.executable, "-m", "regcache_deploy.cli.main"),
    **variables: str,
) -> Outcome:
    """In a process of its own.

    Args:
        before: a command that the command is run by (`setpriv ...`).
        trace: under strace, where there is one.
        program: another one than `regcache`.
        variables: of the environment; an empty one is taken out.
    """
    log = place.root / "strace.log"
    tracer = [STRACE, "-f", "--seccomp-bpf", "-qq", "-y", "-o", str(log)]
    tracer += ["-e", "trace=open,openat,openat2,execve,connect"]
    traced = [str(word) for word in tracer] if trace and STRACE else []
    command = [*before, *traced, *program, *words, "-q"]
    variables = environment(place, **variables)
    variables = {name: value for name, value in variables.items() if value}
    begin = time.monotonic()
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        cwd=place.given,
        env=variables,
        start_new_session=True,
    )
    faults: tuple[str, ...] = ()
    try:
        out, err = process.communicate(timeout=seconds + 10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the tracer, and what it traces
        out, err = process.communicate()
        faults = (f"not finished after {seconds + 10:g} s",)
    opened = read_trace(log.read_text(errors="replace")) if log.exists() else set()
    return Outcome(
        process.returncode,
        time.monotonic() - begin,
        out.decode(errors="replace"),
        err.decode(errors="replace"),
        frozenset(opened),
        faults,
    )


def read_trace(text: str) -> set[tuple[str, bool]]:
    """Files that succeeded to open, and addresses that were called, out of strace's lines (-y)."""
    found = set()
    opens = r'open(?:at2?)?\((?:[^"<]*<([^>"]*)>)?[^"<]*"([^"]*)", ([^)]*)\) += \d'
    for folder, name, flags in re.findall(opens, text):
        path = os.path.normpath(os.path.join(folder, name))
        found.add((path, "O_WRONLY" in flags or "O_RDWR" in flags))
    for address in re.findall(r"connect\(.*?(\{sa_family=AF_INET6?,[^}]*\})", text):
        found.add((f"network: {address}", True))
    return found


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What is in a folder: kind, size and time of the last change of every entry."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        size = state.st_size if stat.S_ISREG(state.st_mode) else 0
        found[str(path.relative_to(folder))] = (state.st_mode >> 12, size, state.st_mtime_ns)
    return {name: entry[:2] if entry[0] == 4 else entry for name, entry in found.items()}


class TookTooLong(BaseException):
    """No part of a command may catch it."""


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _audited() -> Iterator[set[tuple[str, bool]]]:
    """Python's own opens and connections, while it lasts. A hook can never be taken off again."""
    global _opened, _hooked
    if not _hooked:
        sys.addaudithook(_note)
        _hooked = True
    _opened = set()
    try:
        yield _opened
    finally:
        _opened = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        flags = arguments[2] or 0
        write = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        _opened.add((os.path.abspath(os.fsdecode(arguments[0])), write))
    elif event == "socket.connect":
        _opened.add((f"network: {arguments[1]}", True))
    elif event in ("os.system", "subprocess.Popen"):
        _opened.add((f"program: {arguments[0]}", False))


@contextlib.contextmanager
def _as_if(place: Place) -> Iterator[None]:
    """This process's folders and variables are those of a command of its own."""
    known: Mapping[str, str] = dict(os.environ)
    folder = os.getcwd()
    os.environ.update(environment(place))
    tempfile.tempdir = None
    os.chdir(place.given)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(known)
        tempfile.tempdir = None
