"""What a strategy may ask, what it may spend, and what it has learnt so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ..encoders.regcache import RegCacheConfig
from ..evaluation import Objective, Score
from ..work.count import Work
from .question import Answer, Ask
from .result import SearchResult, Trial, preference
from .space import SearchSpace
from .statistics import gain_probability
from .stopping import Stop

Advance = Callable[[int], None]

Look = tuple[RegCacheConfig, str]
"""A choice, and the stage of the strategy that asks for it."""


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

    def evaluate_many(
        self, asked: Iterable[Ask], told: Callable[[int], None] = lambda n: None
    ) -> list[Answer]:
        """Scores in order; every one is booked in `work` before the next one is drawn."""
        ...

    def look_ahead(self, asked: Iterable[Ask]) -> None:
        """What will probably be asked next."""
        ...

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
        self, looks: Iterable[Look], rows: Tensor | None = None, calibration: int | None = None
    ) -> dict[RegCacheConfig, Score]:
        """Evaluate on the images `rows`, with the first `calibration` calibration images.

        Args:
            looks: drawn one by one; `problem.work` holds what the last one takes before the next
                one is drawn.
        """
        return self._asked(looks, rows, calibration)

    def full(self, looks: Iterable[Look]) -> None:
        """Evaluate on all images with the whole calibration set, each choice once."""
        seen = set(self.complete)

        def new() -> Iterator[Look]:
            for config, stage in looks:
                if config not in seen:
                    seen.add(config)
                    yield config, stage

        self.complete |= self._asked(new())

    def until(self, looks: Iterable[Look], rows: Tensor, stop: Stop) -> None:
        """Evaluate on all images, or on fewer if `stop` leaves a choice.

        Args:
            rows: all images `[n]`, in the order in which they are asked.
        """
        for config, score in self._asked(looks, rows, stop=stop).items():
            if len(score.per_image) == self.problem.size:
                self.complete[config] = score

    def look_ahead(self, configs: Iterable[RegCacheConfig], rows: Tensor | None = None) -> None:
        """Name what `ask` or `full` will probably be asked next, for idle workers."""
        self.problem.look_ahead(Ask(config, rows) for config in configs)

    def _asked(
        self,
        looks: Iterable[Look],
        rows: Tensor | None = None,
        calibration: int | None = None,
        stop: Stop | None = None,
    ) -> dict[RegCacheConfig, Score]:
        """Evaluate, and write down each with the work so far, as if it had been asked alone."""
        work, drawn = self.problem.work.block_forwards, list[Look]()

        def asked() -> Iterator[Ask]:
            for config, stage in looks:
                drawn.append((config, stage))
                yield Ask(config, rows, calibration, stop)

        scores = {}
        answers = self.problem.evaluate_many(asked(), self.advance)
        for (config, stage), answer in zip(drawn, answers, strict=True):
            work, score = work + answer.work, answer.score
            images = len(score.per_image)
            if stop is not None and rows is not None and images == self.problem.size:
                back = rows.argsort()
                score = Score.of(score.per_image[back], score.cosine[back], score.margin[back])
            scores[config] = score
            self.trials.append(Trial(stage, config, score, images, work))
        return scores

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
