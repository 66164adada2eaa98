"""Workers through Ray: processes of this machine, or of a running cluster.

A worker keeps one open station and nothing else. Where one is lost, with its process or with its
machine, its job goes to another worker, and a new one takes its place.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regcache_engines.container import usable_cpus, within_cpu_limit

from ..compat import require
from ..errors import ConfigError, RegCacheError
from .devices import CPU, CUDA, use_device
from .memory import keep_freed_memory
from .settings import RAY_URL
from .threads import settle_threads
from .workers import Found, Job, Place, Station, Team

ATTEMPTS = 3
"""How often a job may end its worker before it is to blame."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_worker_niceness": "0",
}
"""Ray would report to its makers, print what it thinks of lost workers on stdout, and have its
workers wait for everybody else (niceness 15). It reads the second word when it is imported."""

TOKEN = {"RAY_AUTH_MODE": "token"}
"""For processes of this machine: they listen on every interface, and run what they are sent."""

ASKED_TOKEN = "; a cluster that asks for a token needs RAY_AUTH_MODE=token here, too"
"""Ray's client does not say more than that it has waited."""

log = logging.getLogger(__name__)


@contextmanager
def open_team(
    workers: str | None, device: torch.device, threads: int | None, scratch: Path | None = None
) -> Iterator[Team | None]:
    """The workers of `--workers`; None without that option.

    Args:
        workers: how many processes of this machine, `auto` or `ray://HOST:PORT` of a cluster.
        device: the driver's; workers have one of its kind, each a GPU of its own.
        threads: of each worker; None takes an even share of this machine, or one on a cluster.
        scratch: folder for hidden states, where a worker finds it.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or there are not enough GPUs.
    """
    if workers is None:
        yield None
        return
    team = RayTeam(workers, device, threads, scratch)
    try:
        yield team
    finally:
        team.close()


class RayTeam:
    """A `Team` of Ray actors; see `open_team`."""

    def __init__(
        self, workers: str, device: torch.device, threads: int | None, scratch: Path | None
    ) -> None:
        if device.type not in (CPU, CUDA):
            raise ConfigError(f"--workers: workers compute on cpu or cuda, not on {device.type}")
        own = workers.isdecimal() and sys.modules.get("ray") is None  # what it has read it keeps
        for name, value in (SETTINGS | TOKEN if own else SETTINGS).items():
            os.environ.setdefault(name, value)
        self._ray = require("ray", "scale")
        self._own = not self._ray.is_initialized()
        self._idle = deque[_Hired]()
        self._busy: dict[Any, tuple[_Hired, bool]] = {}  # call -> worker, and whether it is new
        gpus = int(device.type == CUDA)
        if workers.isdecimal():
            self.size = int(workers)
            threads = threads or max(1, within_cpu_limit(usable_cpus()) // self.size)
            if gpus and self.size > torch.cuda.device_count():
                raise ConfigError(
                    f"--workers {workers}: each takes a GPU, and this machine has "
                    f"{torch.cuda.device_count()}"
                )
            self._connect("local", num_cpus=self.size * threads, include_dashboard=False)
            share = 1 / self.size
        else:
            self._connect(workers)
            threads = threads or 1
            rooms = rooms_of(self._ray.nodes(), threads, gpus)
            self.size = sum(rooms)
            if not self.size:
                self.close()
                raise ConfigError(f"--workers {workers}: no machine of it has room for one")
            share = 1 / max(rooms)
        log.info("%d workers, %d threads each, on %s", self.size, threads, device.type)
        remote = self._ray.remote(num_cpus=threads, num_gpus=gpus)(_Worker)
        place = threads, device.type, share, scratch and scratch.absolute()
        self._new: Callable[[], Any] = lambda: remote.remote(*place)
        self._station: Any = None
        self._sent: Any = None
        self._number = 0
        for number in range(self.size):
            self._hire(number)

    def processes(self) -> list[int]:
        """Numbers of the processes that wait for a job."""
        found: list[int] = self._ray.get([worker.actor.process.remote() for worker in self._idle])
        return found

    def wait(self) -> list[int]:
        """Wait until every worker is there; see `processes`."""
        while self._busy:
            (done,), _ = self._ray.wait([*self._busy], num_returns=1)
            self._settle(done)
        return self.processes()

    def close(self) -> None:
        """End the workers, and the cluster that was started for them."""
        self._idle.clear()  # an actor ends where nobody holds it
        self._busy.clear()
        if self._own and self._ray.is_initialized():
            self._ray.shutdown()

    def answers(
        self, station: Station[Job, Found], jobs: Iterable[Job], homes: Sequence[int | None] = ()
    ) -> Iterator[tuple[int, Found]]:
        """See `Team`. Whoever leaves the iterator early gives up the answers that are under way."""
        if station is not self._station:
            self._station, self._number = station, self._number + 1
            self._sent = self._ray.put(station.to(torch.device(CPU)))
        waiting: _Waiting | _Coming = _Waiting(jobs, homes) if homes else _Coming(jobs)
        lost = Counter[int]()
        running: dict[Any, tuple[_Hired, int, Any]] = {}
        try:
            while waiting or running:
                for worker in list(self._idle):
                    away = {other.number for other, new in self._busy.values() if new}
                    taken = waiting.take(worker.number, away)
                    if taken is None:
                        continue
                    self._idle.remove(worker)
                    # in a list, so that only a worker that has not got it fetches the station
                    call = worker.actor.answer.remote(self._number, [self._sent], taken[1])
                    running[call] = worker, *taken
                    del taken
                (done,), _ = self._ray.wait([*running, *self._busy], num_returns=1)
                if done in self._busy:
                    self._settle(done)
                    continue
                worker, index, job = running.pop(done)
                try:
                    found = self._ray.get(done)
                except self._lost_errors() as error:
                    self._hire(worker.number)
                    lost[index] += 1
                    if lost[index] == ATTEMPTS:
                        raise RegCacheError(
                            f"a job ended {ATTEMPTS} workers one after the other "
                            f"({_line(error)}); where memory ran out, take fewer --workers or a "
                            "smaller --batch-size"
                        ) from error
                    log.warning("a worker was lost; its job goes to another one")
                    waiting.give_back(index, job)
                except self._ray.exceptions.RayTaskError as error:
                    self._idle.append(worker)
                    if isinstance(error.cause, RegCacheError):
                        raise error.cause from None
                    if isinstance(error.cause, (OSError, MemoryError, RuntimeError)):
                        raise error.cause from error  # a full disk is one here, too
                    raise
                else:
                    self._idle.append(worker)
                    yield index, found
        finally:
            self._busy |= {call: (worker, False) for call, (worker, *_) in running.items()}

    def _connect(self, address: str, **settings: Any) -> None:
        if not self._own:
            return
        try:
            with _keeping_sigterm():
                self._ray.init(
                    address, log_to_driver=False, logging_level=logging.ERROR, **settings
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            hint = "" if not address.startswith(RAY_URL) else ASKED_TOKEN
            raise ConfigError(f"--workers: Ray cannot be reached: {_line(error)}{hint}") from error

    def _hire(self, number: int) -> None:
        worker = _Hired(self._new(), number)
        self._busy[worker.actor.process.remote()] = worker, True

    def _settle(self, call: Any) -> None:
        """A worker is there, or is done with what nobody waits for."""
        worker, new = self._busy.pop(call)
        try:
            self._ray.get(call)
        except self._lost_errors() as error:
            if new:
                reason = str(error).strip().split("\n")[-1]  # of the traceback on its machine
                raise RegCacheError(f"a worker could not be started: {reason}") from error
            self._hire(worker.number)
            return
        except self._ray.exceptions.RayTaskError:
            if new:
                raise
        self._idle.append(worker)

    def _lost_errors(self) -> tuple[type[Exception], ...]:
        errors = self._ray.exceptions
        lost = errors.RayActorError, errors.WorkerCrashedError, errors.OutOfMemoryError
        return *lost, errors.ObjectLostError  # an answer that was still on a machine that went


def rooms_of(nodes: Iterable[Mapping[str, Any]], threads: int, gpus: int) -> list[int]:
    """How many workers each machine of a cluster that has room for one takes.

    No worker lies on two machines: three CPUs each are one worker of two threads each.

    Args:
        nodes: as `ray.nodes` gives them.
        threads, gpus: of one worker.
    """
    found = []
    for node in nodes:
        has = node["Resources"] if node["Alive"] else {}
        room = has.get("CPU", 0) // threads
        found.append(int(min(room, has.get("GPU", 0) // gpus) if gpus else room))
    return [room for room in found if room]


@dataclass(frozen=True, eq=False)
class _Hired:
    """A worker, seen from the driver; who takes the place of a lost one has its number."""

    actor: Any
    number: int


class _Coming:
    """Jobs for whoever is idle, made as they are taken; one is always ready."""

    def __init__(self, jobs: Iterable[Any]) -> None:
        self._more = enumerate(jobs)
        self._ready = deque[tuple[int, Any]]()

    def __bool__(self) -> bool:
        if not self._ready and (job := next(self._more, None)) is not None:
            self._ready.append(job)
        return bool(self._ready)

    def take(self, worker: int, away: Collection[int]) -> tuple[int, Any] | None:
        return self._ready.popleft() if self else None

    def give_back(self, index: int, job: Any) -> None:
        """A job that was not answered, as the next one."""
        self._ready.appendleft((index, job))


class _Waiting:
    """Jobs that wait, by the worker that they are for."""

    def __init__(self, jobs: Iterable[Any], homes: Sequence[int | None]) -> None:
        self._homes = homes
        self._jobs: dict[int | None, deque[tuple[int, Any]]] = {}
        for index, (job, home) in enumerate(zip(jobs, homes, strict=True)):
            self._jobs.setdefault(home, deque()).append((index, job))

    def __bool__(self) -> bool:
        return any(self._jobs.values())

    def take(self, worker: int, away: Collection[int]) -> tuple[int, Any] | None:
        """A job for a worker: its own, one for anybody, or of who has most left, if more than one.

        The last job of another one is left to it: it would be done with it sooner. But not where it
        is `away`: a cluster may never have room for it.
        """
        for home in (worker, None):
            if self._jobs.get(home):
                return self._jobs[home].popleft()
        most = max(self._jobs, key=lambda home: (len(self._jobs[home]), home in away), default=None)
        jobs = self._jobs.get(most)
        return jobs.pop() if jobs and (len(jobs) > 1 or most in away) else None

    def give_back(self, index: int, job: Any) -> None:
        """A job that was not answered, as the next one."""
        self._jobs[self._homes[index]].appendleft((index, job))


class _Worker:
    """What runs in a worker's process."""

    def __init__(self, threads: int, device: str, share: float, scratch: Path | None) -> None:
        settle_threads(threads)
        keep_freed_memory()
        self._place = Place(use_device(device), share, scratch)
        self._number = 0
        self._open: Callable[[Any], Any] | None = None

    def process(self) -> int:
        """Its number, once it is there."""
        return os.getpid()

    def answer(self, number: int, station: list[Any], job: Any) -> Any:
        """Answer a job of a station, which is opened where it is not yet."""
        import ray

        if number != self._number or self._open is None:
            self._open = None  # one station's memory at a time
            self._open = ray.get(station[0]).open(self._place)
            self._number = number
        return self._open(job)


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Ray takes SIGTERM for a crash: it prints a stack, and aborts three seconds later."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
