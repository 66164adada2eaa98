"""What a strategy may ask, what it may spend, and what it has learnt so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ..encoders.regcache import RegCacheConfig
from ..evaluation import Objective, Score
from ..work.count import Work
from .result import SearchResult, Trial, preference
from .space import SearchSpace
from .statistics import gain_probability
from .stopping import Stop

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
    undecided: Collection[RegCacheConfig] = (),
    compared: int | None = None,
) -> SearchResult:
    """The best choice whose gain over nothing is no accident, or nothing.

    The best of many is ahead by accident, too, so the test takes the Bonferroni correction for the
    number of choices `compared`; None counts those that were evaluated on all images.

    Where the user's fixed values leave no "nothing" to compare with, the best one.
    """
    scores, candidate = book.complete, book.leader
    asked = {trial.config for trial in book.trials}
    result = SearchResult(
        candidate,
        scores[candidate],
        book.trials,
        scores.get(space.nothing),
        candidate,
        undecided=len(undecided),
        not_tried=tuple(config for config in undecided if config not in asked),
    )
    if result.nothing is None:
        return result
    ranked = sorted(scores, key=lambda config: preference(config, scores[config]), reverse=True)
    first_p = 1.0
    for config in ranked:
        if config.is_empty:
            continue
        p = gain_probability(book.problem.objective, result.nothing, scores[config])
        first_p = p if config == candidate else first_p
        enough = error / (compared or len(scores))
        if p < enough:
            for other in _cheaper(config, scores):
                q = gain_probability(book.problem.objective, result.nothing, scores[other])
                if q < enough:
                    config, p = other, q
                    break
            return replace(result, best=config, score=scores[config], p_value=p)
    return replace(result, best=space.nothing, score=result.nothing, p_value=first_p)


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
