"""Work that other processes do: what is sent to them, and who sends it.

A station travels once: encoder, images and whatever else every job needs. Jobs are small and plain.
Whoever asks gets the answers as they come and keeps them, so that a worker has nothing to lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

Job = TypeVar("Job")
Found = TypeVar("Found")
Asked = TypeVar("Asked", contravariant=True)
Given = TypeVar("Given", covariant=True)


@dataclass(frozen=True)
class Place:
    """Where a worker is.

    Attributes:
        device: where torch computes.
        share: of the machine's memory and disk that is this worker's.
        scratch: a folder for files without a name, which another machine may not have.
    """

    device: torch.device
    share: float
    scratch: Path | None = None


class Station(Protocol[Asked, Given]):
    """What a worker builds once. It can be pickled, and so can its jobs and their answers."""

    def to(self, device: torch.device) -> Station[Asked, Given]:
        """The same on a device; it travels on the CPU."""
        ...

    def open(self, place: Place) -> Callable[[Asked], Given]:
        """What answers the jobs, at that place."""
        ...


class Team(Protocol):
    """Workers that answer jobs. Not for several threads at a time."""

    @property
    def size(self) -> int:
        """How many workers there are, or will be."""
        ...

    def answers(
        self, station: Station[Job, Found], jobs: Iterable[Job], homes: Sequence[int | None] = ()
    ) -> Iterator[tuple[int, Found]]:
        """Place of a job in `jobs` and its answer, as they come.

        Args:
            jobs: made as workers become idle, where no homes are given.
            homes: of each job, the worker (0 to `size` - 1) that has what it needs from others of
                this home; None, and no list, for any worker.

        Raises:
            RegCacheError: what a worker raised, or that a job ended its worker again and again.
        """
        ...


def in_order(answers: Iterable[tuple[int, Found]]) -> Iterator[Found]:
    """Answers in the order of their jobs; those that come early are kept."""
    early: dict[int, Found] = {}
    wanted = 0
    for place, found in answers:
        early[place] = found
        while wanted in early:
            yield early.pop(wanted)
            wanted += 1
