"""The race: many choices on few images, few choices on all of them.

1. Screen, on a small subset. It follows the structure of the problem: the number of sinks does not
   depend on the prefix, so delete counts are compared at one prefix, those of the ranges with
   everything absent deleted and with nothing deleted: too few absent is a disaster either way, too
   many costs only what is deleted; tau acts through log tau, so a few values show its slope; then
   steps to neighbours.
2. What may still be best by the paired bootstrap (`statistics.survivors`) goes on. With a smooth
   objective: to more images, its leader's neighbours with it, and the last ones to all images. With
   top-1: to the images near the decision boundary, which alone tell good choices apart
   (`contest.py`).
3. The corners of the best one are evaluated on all images.

Every step stays within the budget; what it cannot afford to keep is counted as undecided.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..encoders.regcache import RegCacheConfig
from ..evaluation import Score
from ..evaluation.objective import smooth_accuracy
from .book import Allowance, Look, TrialBook
from .contest import contest
from .result import preference
from .space import Counts, SearchSpace
from .statistics import survivors

FIRST_IMAGES = 32
SECOND_SHARE = 0.25
FINALISTS = 8
PROBE_PREFIX = 4
COARSE_PREFIX = (1, 2, 8, 15)
REFINEMENTS = 6
KEPT_DELETES = 2
FINALISTS_KEPT = 2
"""Full evaluations that the screening leaves in the budget, beside the corners."""

Pool = dict[RegCacheConfig, Score]


class Race:
    """One race. Its full scores end up in `book.complete`."""

    def __init__(
        self,
        book: TrialBook,
        space: SearchSpace,
        error: float,
        seed: int,
        budget: int | None,
    ) -> None:
        self.book, self.space, self.error, self.seed = book, space, error, seed
        self.allowance = Allowance(book.problem, space, budget)
        self.size = book.problem.size
        self.order = torch.from_numpy(np.random.default_rng(seed).permutation(self.size))
        self.missed: dict[RegCacheConfig, None] = {}
        self.scale = 1.0

    def run(self) -> list[RegCacheConfig]:
        """Returns the choices that the budget left undecided."""
        first = self.order[: min(FIRST_IMAGES, self.size)]
        pool: Pool = {}
        self._screen(pool, first)
        alive = self._survivors(pool)
        if self.book.problem.objective.smooth:
            second = self.order[: max(2 * len(first), int(SECOND_SHARE * self.size))]
            if len(second) < self.size:
                alive = self._second_round(alive, second)
            self._finals(alive)
            self._corners(forced=False)
        else:
            self.missed |= dict.fromkeys(contest(self.book, self.space, alive, self.allowance))
            self._corners(forced=True)
        return [config for config in self.missed if config not in self.book.complete]

    # -- 1: screen --------------------------------------------------------------------------

    def _screen(self, pool: Pool, rows: Tensor) -> None:
        space = self.space
        prefixes = [tau for tau in space.prefix if tau] or [0]
        probe = nearest(PROBE_PREFIX, prefixes)
        block = nearest(space.delete_block, space.blocks)
        if space.holds(space.nothing):
            self._look(pool, [(space.nothing, "screen: nothing")], rows)
            self.scale = float(pool[space.nothing].margin.abs().median())
        counts = {
            space.config(block, probe, count, absent): count == max(space.deleted(absent))
            for absent in space.absent
            for count in ends(space.deleted(absent))
        }
        # One for every count whatever the budget: without these, nothing has been tried.
        forced = {config for config, most in counts.items() if most}
        self._look(pool, [(config, "screen: delete count") for config in counts], rows, forced)
        if space.two_counts:
            self._between(pool, block, probe, rows)
        looks: list[Look] = []
        for absent, count in self._kept_counts(pool):
            alone = space.config(block, 0, count, absent)
            if space.holds(alone):
                looks.append((alone, "screen: no prefix"))
            for other in space.blocks:
                looks.append((space.config(other, probe, count, absent), "screen: block"))
        self._look(pool, looks, rows)
        choices = [
            space.config(
                config.prefix_block if config.has_prefix else block,
                tau,
                config.delete_count,
                config.range_delete_count,
            )
            for config in self._ranked(pool)[:2]
            for tau in COARSE_PREFIX
            if tau in space.prefix
        ]
        self._look(pool, [(choice, "screen: prefix count") for choice in choices], rows)
        self._refine(pool, rows, FIRST_IMAGES, "screen: neighbours")

    def _between(self, pool: Pool, block: int, probe: int, rows: Tensor) -> None:
        """Delete half of what is absent, where the ends look best."""
        ranges = [c.range_delete_count for c in self._ranked(pool) if c.range_delete_count]
        looks = []
        for absent in list(dict.fromkeys(ranges))[:KEPT_DELETES]:
            half = nearest(absent // 2, self.space.deleted(absent))
            config = self.space.config(block, probe, half, absent)
            looks.append((config, "screen: delete count"))
        self._look(pool, looks, rows)

    def _kept_counts(self, pool: Pool) -> list[Counts]:
        """The best delete counts; with two of them, the best of every kind.

        On few images all that saturates looks alike, so the two best would be neighbours.
        """
        ranked = [(c.range_delete_count, c.delete_count) for c in self._ranked(pool)]
        if not self.space.two_counts:
            return list(dict.fromkeys(ranked))[:KEPT_DELETES]
        kinds: dict[tuple[bool, bool], Counts] = {}
        for absent, count in ranked:
            if absent or not kinds:
                kinds.setdefault((count == absent, count == 0), (absent, count))
        return list(kinds.values())

    def _refine(self, pool: Pool, rows: Tensor, calibration: int | None, stage: str) -> None:
        for _ in range(REFINEMENTS):
            if not pool:
                return
            leader = self._ranked(pool)[0]
            looks = [(config, stage) for config in neighbours(leader, self.space)]
            self._look(pool, looks, rows, calibration=calibration)
            if self._ranked(pool)[0] == leader:
                return

    def _look(
        self,
        pool: Pool,
        looks: Iterable[Look],
        rows: Tensor,
        forced: Collection[RegCacheConfig] = (),
        calibration: int | None = FIRST_IMAGES,
    ) -> None:
        """Ask for what is not in the pool, as far as the budget covers it or it is forced."""
        reserve = self.space.corner_count + FINALISTS_KEPT
        seen = set(pool)

        def new() -> Iterator[Look]:
            for config, stage in looks:
                if config in seen:
                    continue
                covered = self.allowance.covers(config, len(rows), calibration, reserve)
                # The first one is always affordable: a race needs a runner.
                if seen and config not in forced and not covered:
                    self.missed[config] = None
                    continue
                seen.add(config)
                yield config, stage

        pool |= self.book.ask(new(), rows, calibration)

    # -- 2: more images ---------------------------------------------------------------------

    def _second_round(self, alive: list[RegCacheConfig], rows: Tensor) -> list[RegCacheConfig]:
        pool: Pool = {}
        self._look(pool, [(c, "second round") for c in alive], rows, calibration=None)
        self._refine(pool, rows, None, "second round: neighbours")
        return self._survivors(pool)

    def _survivors(self, pool: Pool) -> list[RegCacheConfig]:
        outcomes = {config: self._measure(pool[config]) for config in self._ranked(pool)}
        return list(survivors(outcomes, self.size, self.error / 2, self.seed))

    # -- 3: all images ----------------------------------------------------------------------

    def _finals(self, alive: list[RegCacheConfig]) -> None:
        most, drawn = FINALISTS + self.space.corner_count, set(self.book.complete)

        def looks() -> Iterator[Look]:
            # The corners first: they are evaluated whatever they cost.
            first = [*((c, "corner") for c in self.space.corners_of(alive[0])), (alive[0], "final")]
            drawn.update(config for config, _ in first)
            yield from first
            for config in alive[1:]:
                if len(drawn) >= most or not self.allowance.covers(config, self.size):
                    self.missed[config] = None
                    continue
                drawn.add(config)
                yield config, "final"

        self.book.full(looks())

    def _corners(self, forced: bool) -> None:
        """The corners beside the best: everybody looks at them."""
        self.book.full(
            (config, "corner")
            for config in self.space.corners_of(self.book.leader)
            if forced or self.allowance.covers(config, self.size)
        )

    # -- shared -----------------------------------------------------------------------------

    def _ranked(self, pool: Pool) -> list[RegCacheConfig]:
        """Best first, by the measure that is raced on; then the usual preference."""

        def key(config: RegCacheConfig) -> tuple[float, ...]:
            score = pool[config]
            return (round(float(self._measure(score).mean()), 12), *preference(config, score))

        return sorted(pool, key=key, reverse=True)

    def _measure(self, score: Score) -> npt.NDArray[np.float64]:
        """Graded per-image outcome `[m]`."""
        if self.book.problem.objective.smooth:
            values = score.per_image
        else:
            values = smooth_accuracy(score.margin, self.scale)
        array: npt.NDArray[np.float64] = values.numpy()
        return array


def neighbours(config: RegCacheConfig, space: SearchSpace) -> list[RegCacheConfig]:
    """Choices one step away in tau or k~ or both, and the other target blocks.

    A step of the ranges' count keeps what is special about the graph's: all of them, none, or a
    number between, which takes steps of its own.

    The best block depends on tau: on a planted ViT-B/16 block k was the worst of four at tau 4 and
    the best one at tau 6. So all of them are asked wherever the walk through tau has come.
    """
    out = [
        space.config(config.prefix_block, tau, count, absent)
        for tau in around(config.prefix_count, space.prefix)
        for absent, count in _beside(config, space)
    ]
    if config.has_prefix:
        tau, count, absent = config.prefix_count, config.delete_count, config.range_delete_count
        out += [space.config(block, tau, count, absent) for block in space.blocks]
        out += [
            space.config(config.prefix_block, tau, other, absent)
            for other in around(count, space.deleted(absent))
        ]
    return [choice for choice in dict.fromkeys(out) if space.holds(choice)]


def _beside(config: RegCacheConfig, space: SearchSpace) -> list[Counts]:
    found = []
    for absent in around(config.range_delete_count, space.absent):
        wanted = config.delete_count if config.saturates else absent
        found.append((absent, nearest(wanted, space.deleted(absent))))
    return found


def ends(values: tuple[int, ...]) -> list[int]:
    """The last and the first one."""
    return list(dict.fromkeys([*values[-1:], *values[:1]]))


def around(value: int, allowed: tuple[int, ...]) -> tuple[int, ...]:
    """`value` and its neighbours among `allowed`; the nearest ones where it is not allowed."""
    index = allowed.index(nearest(value, allowed))
    return allowed[max(0, index - 1) : index + 2]


def nearest(value: int, allowed: tuple[int, ...] | list[int]) -> int:
    return min(allowed, key=lambda a: (abs(a - value), a))
