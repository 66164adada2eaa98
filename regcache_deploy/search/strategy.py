"""The search itself: the race by default, or the full grid, plain, pruned or confirmed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..encoders.regcache import RegCacheConfig
from ..evaluation import Objective, Score
from ..search_settings import SearchSettings
from .cost import Work, exhaustive_block_forwards
from .result import SearchResult, Trial, preference
from .space import SearchSpace
from .statistics import MIN_RELATIVE_GAIN, gain_probability
from .stopping import Floor, NotBetter, Stop

SHARE = 1 / 20
"""Of the exhaustive grid: what the race may spend, all preparations included."""

CONFIRM_ERROR = 0.001
"""Chance that the confirmed grid leaves a choice that is better by more than the smallest gain."""

Advance = Callable[[int], None]


class Problem(Protocol):
    """What a strategy asks; `SearchProblem` is one."""

    @property
    def size(self) -> int:
        """Search images."""
        ...

    @property
    def objective(self) -> Objective: ...

    @property
    def work(self) -> Work: ...

    def evaluate(
        self,
        config: RegCacheConfig,
        rows: Tensor | None = None,
        calibration: int | None = None,
        stop: Stop | None = None,
    ) -> Score: ...

    def price(self, config: RegCacheConfig, images: int, calibration: int | None = None) -> int:
        """Block-forwards of such an evaluation, hidden states that are there already."""
        ...


def race_budget(space: SearchSpace, depth: int, n: int, calibration: int, walks: int = 1) -> int:
    """Block-forwards of the default strategy: `SHARE` of the published grid of (t, tau, k~).

    A second delete count makes the space larger and the budget not.
    """
    published = space.published
    return int(SHARE * exhaustive_block_forwards(published, depth, n, calibration, walks))


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
    from .race import Race

    settings = settings or SearchSettings()
    walks_later = settings.strategy in AFTER_RACE
    book = TrialBook(problem, (lambda n: None) if walks_later else advance)
    if space.fixed:
        config = space.grid()[0]
        return SearchResult(config, book.full(config, "fixed"), book.trials)
    if settings.strategy == "exhaustive":
        for config in in_order(space):
            book.full(config, "grid")
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
    for config in in_order(space):
        if config not in book.complete:
            book.until(config, stage, order, stop)
            advance(1)


@dataclass(frozen=True)
class Allowance:
    """What a race may still spend.

    Attributes:
        budget: block-forwards that `problem.work` should not exceed; None is unbounded.
    """

    problem: Problem
    space: SearchSpace
    budget: int | None

    def covers(
        self,
        config: RegCacheConfig,
        images: int,
        calibration: int | None = None,
        reserve: int = 0,
    ) -> bool:
        """Whether such an evaluation leaves `reserve` evaluations on all images."""
        if self.budget is None:
            return True
        price = self.problem.price(config, images, calibration)
        kept = reserve * self.problem.price(self.space.nothing, self.problem.size)
        return self.problem.work.block_forwards + price + kept <= self.budget


class TrialBook:
    """Everything asked so far."""

    def __init__(self, problem: Problem, advance: Advance = lambda n: None) -> None:
        self.problem, self.advance = problem, advance
        self.trials: list[Trial] = []
        self.complete: dict[RegCacheConfig, Score] = {}

    def ask(
        self,
        config: RegCacheConfig,
        stage: str,
        rows: Tensor | None = None,
        calibration: int | None = None,
    ) -> Score:
        """Evaluate on the images `rows`, with the first `calibration` calibration images."""
        score = self.problem.evaluate(config, rows, calibration)
        images = self.problem.size if rows is None else len(rows)
        self.trials.append(Trial(stage, config, score, images, self.problem.work.block_forwards))
        self.advance(1)
        return score

    def full(self, config: RegCacheConfig, stage: str) -> Score:
        """Evaluate on all images with the whole calibration set, once."""
        if config not in self.complete:
            self.complete[config] = self.ask(config, stage)
        return self.complete[config]

    def until(self, config: RegCacheConfig, stage: str, rows: Tensor, stop: Stop) -> None:
        """Evaluate on all images, or on fewer if `stop` leaves the choice.

        Args:
            rows: all images `[n]`, in the order in which they are asked.
        """
        score = self.problem.evaluate(config, rows, stop=stop)
        images = len(score.per_image)
        if images == self.problem.size:
            back = rows.argsort()
            score = Score.of(score.per_image[back], score.cosine[back], score.margin[back])
            self.complete[config] = score
        self.trials.append(Trial(stage, config, score, images, self.problem.work.block_forwards))

    @property
    def leader(self) -> RegCacheConfig:
        """Best on all images."""
        return max(self.complete, key=lambda config: preference(config, self.complete[config]))


def decide(
    book: TrialBook,
    space: SearchSpace,
    error: float,
    undecided: int = 0,
    compared: int | None = None,
) -> SearchResult:
    """The best choice whose gain over nothing is no accident, or nothing.

    The best of many is ahead by accident, too, so the test takes the Bonferroni correction for the
    number of choices `compared`; None counts those that were evaluated on all images.

    Where the user's fixed values leave no "nothing" to compare with, the best one.
    """
    scores = book.complete
    nothing = scores.get(space.nothing)
    candidate = book.leader
    if nothing is None:
        return SearchResult(
            candidate, scores[candidate], book.trials, candidate=candidate, undecided=undecided
        )
    ranked = sorted(scores, key=lambda config: preference(config, scores[config]), reverse=True)
    first_p = 1.0
    for config in ranked:
        if config.is_empty:
            continue
        p = gain_probability(book.problem.objective, nothing, scores[config])
        first_p = p if config == candidate else first_p
        enough = error / (compared or len(scores))
        if p < enough:
            for other in _cheaper(config, scores):
                q = gain_probability(book.problem.objective, nothing, scores[other])
                if q < enough:
                    config, p = other, q
                    break
            return SearchResult(
                config, scores[config], book.trials, nothing, candidate, p, undecided
            )
    return SearchResult(space.nothing, nothing, book.trials, nothing, candidate, first_p, undecided)


def _cheaper(
    config: RegCacheConfig, scores: Mapping[RegCacheConfig, Score]
) -> list[RegCacheConfig]:
    """What deletes more in the graph, at no loss and alike otherwise; the fewest tokens first.

    Fewer tokens are faster, and an objective that counts images cannot tell these choices apart.
    """
    found = [
        other
        for other, score in scores.items()
        if other.delete_count > config.delete_count
        and other.deleting(config.delete_count, other.range_delete_count) == config
        and score.value >= scores[config].value
    ]
    return sorted(found, key=lambda other: -other.delete_count)
