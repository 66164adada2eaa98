"""The end of a top-1 race: good choices differ on few images, and it is known on which.

Two choices of nearly the same accuracy agree on every image but those near the decision boundary.
Three of them are evaluated on all images: the leader and, of its delete count, the survivors of
least and of largest tau. What lies between them flips images that one of the three decides
narrowly, or on which they differ: on these, a small part of all, the rivals are asked with the
whole calibration set. Those ahead or level there are confirmed on all images, and where one of them
wins by another delete count or target block, its neighbours are asked in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..encoders.regcache import RegCacheConfig
from ..evaluation import Score
from .book import Allowance, TrialBook
from .result import preference
from .space import SearchSpace

SHARE = 0.15
"""Of all images: the ones of least margin, at least `FEWEST`."""

FEWEST = 24
TOLERANCE = 0.1
"""Of the contested images: what loses more tells that its whole column of taus is hopeless."""

TO_CONFIRM = 3
"""Full evaluations that asking leaves in the budget, beside the corners of the best choice."""

ROUNDS = 3

Column = tuple[bool, int, int, int]


def contest(
    book: TrialBook, space: SearchSpace, alive: list[RegCacheConfig], allowance: Allowance
) -> list[RegCacheConfig]:
    """Evaluate the best of `alive` and of its neighbourhood on all images.

    Args:
        book: gets the full scores.
        alive: survivors of the screen, best first.
        allowance: what may be spent.

    Returns:
        Choices that were not asked for lack of budget.
    """
    size, corners = book.problem.size, space.corner_count
    reserve = corners + TO_CONFIRM
    dropped: dict[RegCacheConfig, None] = {}  # a set's order changes from run to run
    book.full([(alive[0], "final")])
    for _ in range(ROUNDS):
        leader = book.leader
        anchors = [leader, *_ends(leader, alive)]
        book.full(
            (config, "final")
            for config in anchors
            if config in book.complete or allowance.covers(config, size, reserve=reserve)
        )
        anchors = [config for config in anchors if config in book.complete]
        rows = contested_images([book.complete[config] for config in anchors])
        ahead, missed = _ask(book, _rivals(leader, alive, space), rows, allowance, reserve)
        dropped |= dict.fromkeys(missed)
        beaten: set[Column] = set()
        for config, later in _one_by_one(_by_trust(ahead, leader)):
            if column(config) in beaten:
                continue
            if not allowance.covers(config, size, reserve=corners):
                dropped[config] = None
                continue
            book.look_ahead(each for each in later if column(each) not in beaten)
            book.full([(config, "final")])
            if book.complete[config].value < book.complete[book.leader].value:
                beaten |= {column(config)} - {column(leader)}
        if column(book.leader) == column(leader):
            break
    return [config for config in dropped if config not in book.complete]


def _one_by_one(
    configs: Sequence[RegCacheConfig],
) -> Iterator[tuple[RegCacheConfig, Sequence[RegCacheConfig]]]:
    """Each choice, and all from it on: what may be asked with it before its outcome is known."""
    for place, config in enumerate(configs):
        yield config, configs[place:]


def column(config: RegCacheConfig) -> Column:
    """What choices that differ in nothing but tau share."""
    counts = config.range_delete_count, config.delete_count
    return config.has_prefix, config.prefix_block, *counts


def contested_images(scores: Sequence[Score]) -> Tensor:
    """Indices of the images on which some of the choices differ, then of those decided narrowly.

    Args:
        scores: of a few good choices on all images.
    """
    margins = torch.stack([score.margin for score in scores])
    narrow = margins.abs().amin(dim=0)
    narrow[(margins > 0).any(dim=0) & (margins <= 0).any(dim=0)] = 0.0
    size = len(narrow)
    count = min(size, max(FEWEST, int(SHARE * size)))
    return narrow.argsort(stable=True)[:count]


def _ends(leader: RegCacheConfig, alive: Iterable[RegCacheConfig]) -> list[RegCacheConfig]:
    """Survivors of the leader's column with the least and the largest tau."""
    taus = sorted(
        (c for c in alive if c.has_prefix and column(c) == column(leader)),
        key=lambda c: c.prefix_count,
    )
    return [c for c in dict.fromkeys([*taus[:1], *taus[-1:]]) if c != leader]


def _ask(
    book: TrialBook,
    rivals: Iterable[RegCacheConfig],
    rows: Tensor,
    allowance: Allowance,
    reserve: int,
) -> tuple[list[RegCacheConfig], list[RegCacheConfig]]:
    """Rivals no worse on `rows` than the best one, best first; and those not asked."""
    best = float(book.complete[book.leader].per_image[rows].sum())
    spare = TOLERANCE * len(rows)
    outcomes: dict[RegCacheConfig, Score] = {}
    hopeless, missed = set[Column](), list[RegCacheConfig]()
    for config, later in _one_by_one([c for c in rivals if c not in book.complete]):
        if column(config) in hopeless:
            continue
        if not allowance.covers(config, len(rows), reserve=reserve):
            missed.append(config)
            continue
        book.look_ahead((each for each in later if column(each) not in hopeless), rows)
        outcomes |= book.ask([(config, "contested images")], rows)
        lost = best - float(outcomes[config].per_image.sum())
        if lost > spare and column(config) != column(book.leader):
            hopeless.add(column(config))
    ahead = [c for c, score in outcomes.items() if float(score.per_image.sum()) >= best]
    return sorted(ahead, key=lambda c: preference(c, outcomes[c]), reverse=True), missed


def _by_trust(ahead: Sequence[RegCacheConfig], leader: RegCacheConfig) -> list[RegCacheConfig]:
    """The leader's own column first, in the order given.

    The contested images are those that this column decides narrowly. A choice from elsewhere may
    gain there and lose on images that the column never doubted.
    """
    return sorted(ahead, key=lambda config: column(config) != column(leader))


def _rivals(
    leader: RegCacheConfig, alive: list[RegCacheConfig], space: SearchSpace
) -> list[RegCacheConfig]:
    """The leader's column, nearest tau first; the survivors; the columns of other target blocks.

    The delete count of the ranges is what the screen tells best, tau what it tells worst: so every
    tau of the leader's delete counts is a rival. Behind its column come other delete counts of the
    graph: once the sinks are out of the ranges, they differ by a few images.
    """

    def distance(config: RegCacheConfig) -> tuple[int, float]:
        step = abs(np.log1p(config.prefix_count) - np.log1p(leader.prefix_count))
        return abs(config.prefix_block - leader.prefix_block), float(step)

    same_count = [
        space.config(block, tau, leader.delete_count, leader.range_delete_count)
        for block in space.blocks
        for tau in space.prefix
    ]
    same_count.sort(key=distance)
    own = [config for config in same_count if column(config) == column(leader)]
    others = [
        space.config(leader.prefix_block, leader.prefix_count, count, leader.range_delete_count)
        for count in space.deleted(leader.range_delete_count)
    ]
    others.sort(key=lambda choice: abs(choice.delete_count - leader.delete_count))
    rivals = dict.fromkeys([*own, *others, *alive, *same_count])
    return [rival for rival in rivals if space.holds(rival)]
