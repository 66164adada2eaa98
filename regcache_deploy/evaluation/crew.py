"""FP32, the quantizer alone and the simulation in other processes, batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..data.stream import Batch
from ..errors import ConfigError
from ..quantization.simulate import Calibration
from ..work.devices import find_device
from ..work.ray_team import open_team
from ..work.workers import Place, Team, in_order
from .runner import IN_TORCH, Runner

Features = dict[str, npt.NDArray[np.float32]]
"""Runner -> `[b, E]`."""


Names = tuple[tuple[str, ...], npt.NDArray[np.int64] | None]
"""Keys and labels of a batch."""


@dataclass(frozen=True)
class Simulations:
    """Runners in torch, by name; a `Station` of workers."""

    calibrations: Mapping[str, Calibration]

    def to(self, device: torch.device) -> Simulations:
        """The same on a device."""
        return Simulations({name: each.to(device) for name, each in self.calibrations.items()})

    def open(self, place: Place) -> Callable[[Batch], Features]:
        """What embeds a batch, at that place."""
        from .torch_runners import run_of

        placed = self.to(place.device).calibrations
        runs = {name: run_of(calibration) for name, calibration in placed.items()}
        return lambda batch: {name: run(batch) for name, run in runs.items()}


@dataclass(frozen=True)
class Crew:
    """Workers and what they embed with."""

    team: Team
    station: Simulations

    def answered(
        self, batches: Iterable[Batch], here: Sequence[Runner]
    ) -> Iterator[tuple[Names, Features]]:
        """Names and embeddings of every batch, in order; batches are made as workers become idle.

        Args:
            here: further runners, in this process. Pixels are not kept for them: where a worker is
                slow, many batches wait for its answer.
        """
        asked = deque[tuple[Names, Features]]()

        def jobs() -> Iterator[Batch]:
            for batch in batches:
                own = {runner.name: runner.run(batch) for runner in here}
                asked.append(((batch.keys, batch.labels), own))
                yield batch

        for found in in_order(self.team.answers(self.station, jobs())):
            names, own = asked.popleft()
            yield names, found | own


@contextmanager
def open_crew(
    runners: Sequence[Runner], workers: str | None, device: str, threads: int | None
) -> Iterator[Crew]:
    """The workers of `--workers` for the runners in torch. Engines stay in this process.

    Raises:
        ConfigError: no runner is in torch, or as `open_team`.
    """
    found = {each.name: each.calibration for each in runners if each.calibration is not None}
    if not found:
        raise ConfigError(
            f"--workers: {', '.join(IN_TORCH)} are computed by workers, an engine is not, and "
            "--on names engines only"
        )
    with open_team(workers, find_device(device), threads) as team:
        assert team is not None
        yield Crew(team, Simulations(found))
