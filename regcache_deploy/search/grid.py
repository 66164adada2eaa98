"""The search itself: target block first, then prefix count and delete count jointly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..encoders.regcache import RegCacheConfig
from ..evaluation import Score
from .problem import SearchProblem

MAX_PREFIX, MAX_DELETE = 15, 10
COARSE_PREFIX = (0, 1, 2, 4, 8, 15)
COARSE_DELETE = (0, 2, 4, 6, 8, 10)
PROBES = ((4, 4), (4, 8))
"""(tau, k~) at which target blocks are compared before the joint search."""


@dataclass(frozen=True)
class Trial:
    """One evaluated choice."""

    stage: str
    config: RegCacheConfig
    score: Score


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search.

    Attributes:
        best: the chosen numbers; empty if nothing beats the baseline alone.
        score: of the choice on the search images.
        trials: everything evaluated, in order.
    """

    best: RegCacheConfig
    score: Score
    trials: list[Trial] = field(repr=False)


@dataclass(frozen=True)
class SearchSpace:
    """Values that may be chosen; a single value fixes a dimension.

    Attributes:
        blocks: target blocks t.
        prefix: prefix counts tau.
        delete: delete counts k~.
        delete_block: block k.
    """

    blocks: tuple[int, ...]
    delete_block: int
    prefix: tuple[int, ...] = tuple(range(MAX_PREFIX + 1))
    delete: tuple[int, ...] = tuple(range(MAX_DELETE + 1))


def search(
    problem: SearchProblem, space: SearchSpace, advance: Callable[[int], None] = lambda n: None
) -> SearchResult:
    """Find (t, tau, k~).

    1. Target blocks are compared at the probes.
    2. At the best one, a coarse grid over (tau, k~) with the corners tau = 0 and k~ = 0.
    3. Neighbours of the best point, until none is better.

    Ties go to the higher fidelity to the float features, so a flat accuracy surface still has
    one optimum.
    """
    trials: dict[RegCacheConfig, Trial] = {}

    def ask(stage: str, config: RegCacheConfig) -> Score:
        config = _normal_form(config, space)
        if config not in trials:
            trials[config] = Trial(stage, config, problem.evaluate(config))
            advance(1)
        return trials[config].score

    block = _best_block(space, ask)
    for prefix in _thin(space.prefix, COARSE_PREFIX):
        for delete in _thin(space.delete, COARSE_DELETE):
            ask("grid", RegCacheConfig(block, prefix, space.delete_block, delete))
    best = max(trials.values(), key=_preference)
    while True:
        for neighbour in _neighbours(replace(best.config, prefix_block=block), space):
            ask("refine", neighbour)
        better = max(trials.values(), key=_preference)
        if better is best:
            return SearchResult(best.config, best.score, list(trials.values()))
        best = better


def _best_block(
    space: SearchSpace, ask: Callable[[str, RegCacheConfig], Score]
) -> int:
    if len(space.blocks) == 1:
        return space.blocks[0]

    def score(block: int) -> tuple[float, float]:
        return max(
            ask(
                "block",
                RegCacheConfig(
                    block,
                    _nearest(tau, space.prefix),
                    space.delete_block,
                    _nearest(count, space.delete),
                ),
            ).key
            for tau, count in PROBES
        )

    return max(sorted(space.blocks), key=score)


def _normal_form(config: RegCacheConfig, space: SearchSpace) -> RegCacheConfig:
    """Without a prefix the target block means nothing: one name for one choice."""
    return config if config.has_prefix else replace(config, prefix_block=space.delete_block)


def _preference(trial: Trial) -> tuple[float, float, int, int]:
    """Best score; then the smaller intervention."""
    config = trial.config
    return (*trial.score.key, -config.prefix_count, -config.delete_count)


def _neighbours(config: RegCacheConfig, space: SearchSpace) -> list[RegCacheConfig]:
    out = []
    for tau in _around(config.prefix_count, space.prefix):
        for count in _around(config.delete_count, space.delete):
            out.append(replace(config, prefix_count=tau, delete_count=count))
    return out


def _around(value: int, allowed: tuple[int, ...]) -> list[int]:
    index = allowed.index(value)
    return list(allowed[max(0, index - 1) : index + 2])


def _thin(allowed: tuple[int, ...], coarse: tuple[int, ...]) -> list[int]:
    return [v for v in coarse if v in allowed] or list(allowed)


def _nearest(value: int, allowed: tuple[int, ...]) -> int:
    return min(allowed, key=lambda a: (abs(a - value), a))
