"""The search itself: the race by default, or the full grid, plain, pruned or confirmed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..encoders.regcache import RegCacheConfig
from .book import Advance, Problem, TrialBook, decide
from .cost import exhaustive_block_forwards
from .race import Race
from .result import SearchResult
from .settings import SearchSettings
from .space import SearchSpace
from .statistics import MIN_RELATIVE_GAIN
from .stopping import Floor, NotBetter, Stop

SHARE = 1 / 20
"""Of the exhaustive grid: what the race may spend, all preparations included, by default."""

CONFIRM_ERROR = 0.001
"""Chance that the confirmed grid leaves a choice that is better by more than the smallest gain."""


def race_budget(
    space: SearchSpace,
    depth: int,
    n: int,
    calibration: int,
    walks: int = 1,
    share: float = SHARE,
) -> int:
    """Block-forwards of the default strategy: a share of the published grid of (t, tau, k~).

    A second delete count makes the space larger and the budget not.
    """
    grid = exhaustive_block_forwards(space.published, depth, n, calibration, walks)
    return int(share * grid)


def search(
    problem: Problem,
    space: SearchSpace,
    settings: SearchSettings | None = None,
    *,
    seed: int = 0,
    budget: int | None = None,
    advance: Advance = lambda n: None,
) -> SearchResult:
    """Find (t, tau, k~), or that nothing is gained.

    Args:
        problem: asked for scores.
        space: what may be chosen.
        settings: strategy and error probability.
        seed: order of the images in the race, and the bootstrap.
        budget: block-forwards that `problem.work` should not exceed; None is unbounded. The
            corners of the leader are evaluated on all images even beyond it.
        advance: told after every evaluation; of a grid, not of the race before it.
    """
    settings = settings or SearchSettings()
    walks_later = settings.strategy in AFTER_RACE
    book = TrialBook(problem, (lambda n: None) if walks_later else advance)
    if space.fixed:
        config = space.grid()[0]
        book.full([(config, "fixed")])
        return SearchResult(config, book.complete[config], book.trials)
    if settings.strategy == "exhaustive":
        book.full((config, "grid") for config in in_order(space))
        return decide(book, space, settings.error, compared=len(space.grid()))
    undecided = Race(book, space, settings.error, seed, budget).run()
    if walks_later:
        leave = AFTER_RACE[settings.strategy](book, space, seed)
        walk(book, space, f"{settings.strategy} grid", *leave, advance)
        return decide(book, space, settings.error, compared=len(space.grid()))
    return decide(book, space, settings.error, undecided)


def in_order(space: SearchSpace) -> list[RegCacheConfig]:
    """The grid, earliest block first: each set of hidden states is made from the one before."""
    return sorted(space.grid(), key=lambda choice: choice.first_block)


def pruned(book: TrialBook, space: SearchSpace, seed: int) -> tuple[Tensor, Stop]:
    """Order of the images and rule by which a choice is left once it is certain to be worse.

    No image adds more than 1 to an objective, so the images on which the leader loses most come
    first. The floor is the leader's value and stays: which choice is evaluated how far does not
    depend on the order of the grid.
    """
    leader = book.complete[book.leader]
    return leader.per_image.argsort(stable=True), Floor(leader.value)


def confirmed(book: TrialBook, space: SearchSpace, seed: int) -> tuple[Tensor, Stop]:
    """The same once it is almost certain not to be better by more than the smallest gain.

    The order is drawn apart from the race's, which chose the leader.
    """
    leader = book.complete[book.leader]
    order = torch.from_numpy(np.random.default_rng((seed, 1)).permutation(book.problem.size))
    error = CONFIRM_ERROR / len(space.grid())
    return order, NotBetter(leader.per_image[order], MIN_RELATIVE_GAIN, error)


AFTER_RACE = {"pruned": pruned, "confirmed": confirmed}
"""Grids that are walked after the race, which gives them the leader to compare with."""


def walk(
    book: TrialBook, space: SearchSpace, stage: str, order: Tensor, stop: Stop, advance: Advance
) -> None:
    """Evaluate every other choice of the grid on the images in this order, until the rule stops."""
    advance(len(book.complete))
    book.advance = advance
    left = [config for config in in_order(space) if config not in book.complete]
    book.until(((config, stage) for config in left), order, stop)
