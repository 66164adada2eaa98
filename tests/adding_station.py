"""A station for tests of workers; in a module that their processes can import."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from regcache_deploy.errors import DataError
from regcache_deploy.work.workers import Place

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Adding:
    """Answers with the sum of its own number, the job, and the process that added them.

    Attributes:
        once: a file that is made where a process is to end in the middle of a job; None ends none.
    """

    number: int
    once: Path | None = None

    def to(self, device: torch.device) -> Adding:
        return self

    def open(self, place: Place) -> Callable[[int], tuple[int, int]]:
        assert place.device == CPU
        assert place.share == 0.5

        def add(job: int) -> tuple[int, int]:
            if self.once is not None and job == 3 and not self.once.exists():
                self.once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if job == 1313:
                raise DataError("thirteen is no job")
            if job == 2828:
                raise OSError(errno.ENOSPC, "No space left on device", "part.npy")
            if job == 99:
                os.kill(os.getpid(), signal.SIGKILL)
            return self.number + job, os.getpid()

        return add
