"""Commands in processes that can be killed: forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.attacks.fault import Outcome, Place
from tests.attacks.watch import environment

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.attacks.preloaded"])


@dataclass(frozen=True)
class Limits:
    """What the system gives a child.

    Attributes:
        file_bytes: largest file that it may write.
        memory_bytes: address space beyond what it has when it begins.
        variables: of the environment; an empty one is taken out.
        stdout: a file in place of the one that is read.
    """

    file_bytes: int | None = None
    memory_bytes: int | None = None
    variables: dict[str, str] = field(default_factory=dict)
    stdout: Path | None = None


class Child:
    """A running command."""

    def __init__(self, place: Place, words: Sequence[str], limits: Limits | None = None) -> None:
        self._log = place.root / "child"
        self._begin = time.monotonic()
        arguments = (str(place.given), list(words), environment(place), limits or Limits())
        self.process = _context.Process(target=_run, args=(*arguments, str(self._log)))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def wait(self, seconds: float) -> Outcome:
        """The outcome; a child that does not end is killed."""
        self.process.join(seconds)
        faults: tuple[str, ...] = ()
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            faults = (f"not finished after {seconds:g} s",)
        texts = []
        for end in ("out", "err"):
            path = self._log.with_suffix(f".{end}")
            texts.append(path.read_text(errors="replace") if path.exists() else "")
        code = self.process.exitcode
        assert code is not None
        out, err = texts
        return Outcome(code, time.monotonic() - self._begin, out, err, faults=faults)


def run_child(
    place: Place, words: Sequence[str], seconds: float = 120, limits: Limits | None = None
) -> Outcome:
    """A command, to its end."""
    return Child(place, words, limits).wait(seconds)


def call_child(function: Callable[[], None], seconds: float) -> str:
    """A function in a fresh fork of this process; what went wrong, or nothing."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "" if status == 0 else f"the child ended with status {status}"
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return f"the child hung for {seconds:g} s"


def _run(
    folder: str, words: list[str], variables: dict[str, str], limits: Limits, log: str
) -> None:
    """In the child."""
    out = os.fspath(limits.stdout) if limits.stdout else f"{log}.out"
    for number, path in ((1, out), (2, f"{log}.err")):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    for stream, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, stream, os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace"))
    variables = variables | limits.variables
    os.environ.clear()
    os.environ.update({name: value for name, value in variables.items() if value})
    os.chdir(folder)
    if limits.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    if limits.memory_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + limits.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    from regcache_deploy.cli.main import main

    code = main([*words, "-q"])
    for opened in (sys.stdout, sys.stderr):
        try:
            opened.flush()
        except OSError:
            code = code or 1
    os._exit(code)
