"""From image sets to registers: ranked candidates, what they are in their images, their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...encoders.canonical import Encoder
from ...encoders.regcache import RegCacheConfig
from ...errors import DataError
from ...work.workers import Team
from ..problem import SearchProblem
from ..question import Ask
from ..settings import SearchSettings
from ..space import SearchSpace
from .capture import (
    TOP_CANDIDATES,
    TOP_SINGLES,
    Candidate,
    Captures,
    Ranking,
    RankSetup,
    capture,
    source_images,
)

if TYPE_CHECKING:
    from ...evaluation.image_sets import ImageSets

SINGLE_PROBE = (4, 4)
"""(tau, k~) at which single candidates are compared."""

SINGLE_PROBE_IMAGES = 32

PARTS = 4
"""Of the images that are ranked, for each worker."""


def find_captures(
    encoder: Encoder,
    sets: ImageSets,
    space: SearchSpace,
    settings: SearchSettings,
    batch_size: int,
    advance: Callable[[int], None] = lambda n: None,
    team: Team | None = None,
) -> tuple[Ranking, dict[int, Captures]]:
    """Candidates by both rankings, and what the chosen ones are in their images.

    `advance` is told of every search image that was ranked; a `team` shares them.
    """
    work, k = sets.cache.work, space.delete_block
    size = TOP_CANDIDATES if settings.candidates == "average" else TOP_SINGLES

    def ranked_by_all() -> Ranking:
        setup = RankSetup(encoder, sets.search, space.blocks, k, size, batch_size)
        count = len(sets.search)
        if team is None:
            return setup.rank(0, count, advance)
        # several to a worker, for the progress, and each of whole batches
        length = -(-count // (PARTS * team.size * batch_size)) * batch_size
        jobs = [(start, min(start + length, count)) for start in range(0, count, length)]
        parts = list[Ranking]()
        for place, part in team.answers(setup, jobs):
            parts.append(part)
            advance(jobs[place][1] - jobs[place][0])
        return Ranking.of(parts, size)

    def rank() -> dict[str, Tensor]:
        found = ranked_by_all()
        work.add(len(sets.search) * (max(*space.blocks, k) + 1))
        lists = {f"input/{t}": c for t, c in found.by_input.items()} | {"fc2": found.by_fc2}
        return {
            name: torch.tensor([[c.score, c.image, c.position] for c in each], dtype=torch.float64)
            for name, each in lists.items()
        }

    key = {"blocks": list(space.blocks), "k": k, "candidates": size}
    ranked = {n: _candidates(t) for n, t in sets.cache.part("ranking", rank, **key).items()}
    ranking = Ranking({t: ranked[f"input/{t}"] for t in space.blocks}, ranked["fc2"])
    wanted = {t: ranking.chosen(settings.ranking, t) for t in space.blocks}

    def run() -> dict[str, Tensor]:
        found = capture(encoder, sets.images, wanted, batch_size)
        work.add(source_images(wanted) * encoder.spec.depth)
        return {
            f"{t}/{name}": value
            for t, each in found.items()
            for name, value in [("state", each.states), *each.normed.items()]
        }

    parts = sets.cache.part("captures", run, ranking=settings.ranking, **key)
    here = {name: value.to(encoder.device) for name, value in parts.items()}
    return ranking, {t: _capture_of(here, t, encoder.spec.depth) for t in space.blocks}


def _candidates(table: Tensor) -> list[Candidate]:
    return [Candidate(score, int(image), int(place)) for score, image, place in table.tolist()]


def _capture_of(parts: Mapping[str, Tensor], block: int, depth: int) -> Captures:
    return Captures(
        block, parts[f"{block}/state"], {i: parts[f"{block}/{i}"] for i in range(block, depth)}
    )


def make_register(
    encoder: Encoder, captures: Captures, settings: SearchSettings, members: slice
) -> dict[int, Tensor]:
    if not len(captures.states):
        raise DataError("there is no candidate for the register; add search images")
    if settings.register == "solo":
        return captures.solo_register(encoder, members)
    return captures.register(members)


def take_best_singles(
    problem: SearchProblem,
    space: SearchSpace,
    captures: dict[int, Captures],
    settings: SearchSettings,
    seed: int,
) -> None:
    """Exchange every register for its best single candidate at one probe (the paper's v2).

    The paper maximises over candidate and count together; the probe separates the two.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(problem.size, generator=generator)[:SINGLE_PROBE_IMAGES]
    tau = min((p for p in space.prefix if p), key=lambda p: abs(p - SINGLE_PROBE[0]), default=0)
    count = min(space.delete, key=lambda c: abs(c - SINGLE_PROBE[1]))
    registers = dict(problem.registers)
    for block, found in captures.items():
        if not tau:
            continue
        singles = [
            make_register(problem.setup.encoder, found, settings, slice(i, i + 1))
            for i in range(len(found.states))
        ]
        config: RegCacheConfig = space.config(block, tau, count)
        asked = (Ask(config, rows, register=single) for single in singles)
        scores = [answer.score.key for answer in problem.evaluate_many(asked)]
        registers[block] = singles[max(range(len(singles)), key=lambda i: scores[i])]
    problem.registers = registers
