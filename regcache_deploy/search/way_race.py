"""The race of the ways on the search images.

Each is calibrated in full and judged on the same images; among those that cannot be told apart the
cheapest graph wins. Ways that cost more are asked only where none of the others is level with
floating point, and within a budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from torch import Tensor

from ..evaluation import FeatureFidelity, Objective, Score
from ..evaluation.objective import smooth_accuracy
from ..work.count import Work
from ..work.format import metric_title
from .cost import calibration_walks
from .embedder import Embedder, Embedding
from .graph_cost import Operators, graph_cost
from .statistics import compare_scores
from .ways import DEAR, Way

TIED_LOSS = 0.003
"""Of the images: what a way may lose to the best one, on balance, and still be its equal; on few
images, one."""

TIED_SHARE = 0.1
"""The same for a graded objective: this share more of the best one's loss."""

MAX_SHARE = 0.6
"""Of the search's block-forwards: what the race may add to them, once the plain ways have run."""


@dataclass(frozen=True)
class Raced:
    """A way and what it gave on the search images.

    Attributes:
        cost: CPU time of its graph in that of the quantizer alone, by arithmetic.
        tied: cannot be told from the best one.
    """

    way: Way
    score: Score = field(repr=False)
    cost: float
    tied: bool = False
    chosen: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.way.name,
            "title": self.way.title,
            "value": self.score.value,
            "fidelity": self.score.fidelity,
            "cost": round(self.cost, 4),
            "tied": self.tied,
            "chosen": self.chosen,
        }


@dataclass(frozen=True)
class WayRace:
    """What a race found.

    Attributes:
        raced: the ways that were tried; exactly one is chosen.
        untried: the others.
        level: a plain way is level with floating point, so the untried ones could not win; else
            they were beyond the budget.
    """

    raced: list[Raced]
    untried: list[Way]
    level: bool


def race_ways(
    ways: Sequence[Way],
    searched: Embedder,
    register: Mapping[int, Tensor],
    objective: Objective,
    work: Work,
    seed: int,
    budget: int | None = None,
) -> WayRace:
    """Calibrate and score the ways on all search images, plain graphs first.

    Where one of those is level with what floating point reaches, with RegCache or without, the
    dearer ways are not tried: a way that cannot be told from float cannot be told from them, and
    of equals the cheapest wins.

    Args:
        ways: the plain quantizer first.
        searched: embeds the search images.
        register: of the choice that some ways have.
        objective: over the search images.
        work: gets the block-forwards.
        seed: of the bootstrap.
        budget: block-forwards that dearer ways may not take the race beyond; None for no limit.

    Returns:
        The tried ones in the order of `ways`.
    """
    spec, raced, spent = searched.encoder.spec, list[Raced](), 0
    plain_cost = graph_cost(spec, ways[0].config, Operators())

    def cost_of(way: Way) -> int:
        walks = calibration_walks(way.baseline) * len(searched.tokens)
        return spec.depth * (len(searched.images) + walks)

    def run(way: Way) -> None:
        nonlocal spent
        features = searched.features(way.title, way.baseline, way.config, register)
        spent += cost_of(way)
        cost = graph_cost(spec, way.config, searched.operators[way.title]) / plain_cost
        raced.append(Raced(way, objective.score(features), cost))

    def prepare(some: Sequence[Way]) -> None:
        searched.prepare(Embedding(way.baseline, way.config, register) for way in some)

    plain = [way for way in ways if way.name not in DEAR]
    prepare(plain)
    for way in plain:
        run(way)
    level, asked = _level(raced, searched, register, objective, seed)
    spent += asked
    untried = sorted((w for w in ways if w.name in DEAR), key=lambda way: DEAR.index(way.name))
    if not level:
        prices = list(accumulate(map(cost_of, untried), initial=spent))[1:]
        prepare([w for w, p in zip(untried, prices, strict=True) if budget is None or p <= budget])
    while untried and not level:
        if budget is not None and spent + cost_of(untried[0]) > budget:
            break
        run(untried.pop(0))
    work.add(spent)
    order = [way.name for way in ways]
    raced.sort(key=lambda each: order.index(each.way.name))
    return WayRace(choose(raced, objective, seed), untried, level)


def _level(
    raced: Sequence[Raced],
    searched: Embedder,
    register: Mapping[int, Tensor],
    objective: Objective,
    seed: int,
) -> tuple[bool, int]:
    """Whether one of them cannot be told from the better of FP32 and FP32 with RegCache.

    Also the block-forwards that the answer took.
    """
    best = max(raced, key=lambda each: each.score.key).score
    if not _tied(best, objective.score(objective.reference), objective, seed):
        return False, 0
    config = next((each.way.config for each in raced if not each.way.config.is_empty), None)
    if config is None:
        return True, 0
    mended = objective.score(searched.float_features_with(config, register))
    asked = searched.encoder.spec.depth * len(searched.images)
    return _tied(best, mended, objective, seed), asked


def choose(raced: Sequence[Raced], objective: Objective, seed: int) -> list[Raced]:
    """Mark the ways that cannot be told from the best one, and the cheapest of them."""
    best = max(raced, key=lambda each: each.score.key)
    tied = [replace(each, tied=_tied(each.score, best.score, objective, seed)) for each in raced]

    def key(each: Raced) -> tuple[float, float, int]:
        # A per cent of a computed cost is no difference, nor is a part of the features' error; what
        # is left equal goes to the simpler way, which stands first.
        error = round(math.log2(max(1 - each.score.fidelity, 1e-9)))
        return round(each.cost, 2), -round(each.score.value, 9), error

    chosen = min((each for each in tied if each.tied), key=key)
    return [replace(each, chosen=each is chosen) for each in tied]


def _tied(score: Score, best: Score, objective: Objective, seed: int) -> bool:
    if objective.smooth:
        return 1 - score.value <= (1 + TIED_SHARE) * (1 - best.value)
    if best.value - score.value > max(TIED_LOSS, 1 / len(score.per_image)) + 1e-9:
        return False
    if compare_scores("top1", best, score, seed).p_value < 0.05:
        return False
    return not _nearer_to_tipping(score, best)


def _nearer_to_tipping(score: Score, best: Score) -> bool:
    """Whether its images are, on the mean, surely and noticeably nearer to the wrong side.

    A few hundred images that are right or wrong say little; how clearly they are right says more.
    """
    from scipy.stats import ttest_1samp

    scale = float(best.margin.median())
    change = (smooth_accuracy(score.margin, scale) - smooth_accuracy(best.margin, scale)).numpy()
    if change.mean() >= -TIED_LOSS or not change.std():
        return bool(change.mean() < -TIED_LOSS)
    return float(ttest_1samp(change, 0.0, alternative="less").pvalue) < 0.05


def fidelity_way(raced: Sequence[Raced]) -> str | None:
    """Title of the way that fidelity to FP32 alone would have chosen; None where it is the same."""
    cosines = [each.score.cosine for each in raced]
    graded = [
        replace(each, score=Score.of(cosine, cosine, cosine))
        for each, cosine in zip(raced, cosines, strict=True)
    ]
    wanted = next(
        each for each in choose(graded, FeatureFidelity(cosines[0]), seed=0) if each.chosen
    )
    chosen = next(each for each in raced if each.chosen)
    return None if wanted.way.name == chosen.way.name else wanted.way.title


def reason(race: WayRace, metric: str) -> str:
    """One sentence: what was chosen, and why."""
    raced = race.raced
    by = f"by {metric_title(metric)} on the search images"
    chosen = next(each for each in raced if each.chosen)
    best = max(raced, key=lambda each: each.score.key)
    others = [each.way.title for each in raced if each.tied and each is not chosen]
    untried = ""
    if race.untried:
        why = "for it is level with floating point" if race.level else "for lack of budget"
        untried = f"; {len(race.untried)} dearer ways were not tried, {why}"
    if chosen is best and not others:
        return f"{chosen.way.title}: the best of {len(raced)} ways {by}{untried}"
    alike = f"{len(others)} other{'s' * (len(others) > 1)}"
    return (
        f"{chosen.way.title}: the cheapest graph of those that cannot be told apart {by} "
        f"({alike}: {', '.join(others)}){untried}"
    )
