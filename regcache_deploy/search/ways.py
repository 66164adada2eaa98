"""The ways to an INT8 file, raced on the search images: quantizer alone, treated, RegCache, both.

No way is best for every encoder. Smoothing spreads a spike that RegCache removes, a few channels in
float carry it, and a healthy encoder needs none of them. So each is calibrated in full and judged
on the same images; among those that cannot be told apart the cheapest graph wins. Ways that cost
more are asked only where none of the others is level with floating point.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from regcache_export.spec import EncoderSpec

from ..encoders.regcache import RegCacheConfig
from ..evaluation import FeatureFidelity, Objective, Score
from ..quantization.baselines import Baseline
from ..quantization.baselines.repqvit import RepQViT
from ..quantization.treatment import MAX_FLOAT_CHANNELS, Treatment
from ..work.count import Work
from ..work.format import metric_title
from .cost import calibration_walks
from .embedder import Embedder
from .graph_cost import Operators, graph_cost
from .settings import ALONE, REGCACHE
from .statistics import compare_scores

TIED_LOSS = 0.003
"""Of the images: what a way may lose to the best one, on balance, and still be its equal; on few
images, one."""

TIED_SHARE = 0.1
"""The same for a graded objective: this share more of the best one's loss."""

TITLES = {
    ALONE: "quantizer alone",
    "ranges": "ranges by output error",
    "smoothed": "smoothing",
    "channels": "outlier channels in float",
    "treated": "smoothing and outlier channels",
    "fc2_float": "the sensitive block's fc2 in float",
    REGCACHE: "RegCache",
    "regcache_ranges": "RegCache, ranges by output error",
    "regcache_treated": "RegCache with smoothing and outlier channels",
}


@dataclass(frozen=True)
class Way:
    """One quantizer with one choice of RegCache's numbers.

    Attributes:
        name: a key of `TITLES`.
    """

    name: str
    baseline: Baseline
    config: RegCacheConfig

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def plain(self) -> bool:
        """Every linear is one integer product: none is treated, none more than asked in float."""
        return self.baseline.treatment.is_empty and self.name != "fc2_float"


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


def ways_of(
    baseline: Baseline, config: RegCacheConfig, sensitive_layer: str, spec: EncoderSpec
) -> list[Way]:
    """Every way that this quantizer has, the plain one first.

    Args:
        baseline: as asked for.
        config: that the search found; empty where it found no gain, and then no way has it.
        sensitive_layer: its block's fc2 is the one that may stay in float.
        spec: of the encoder.
    """
    nothing = replace(config, prefix_count=0).deleting(0)
    fc2 = f"blocks.{int(sensitive_layer.split('.')[1])}.mlp.fc2"
    roles: tuple[str, ...] = ("out_proj", "fc2")
    if not isinstance(baseline, RepQViT):  # which has a range per channel there already
        roles = ("qkv", "fc1", *roles)
    treatments = {
        "smoothed": Treatment(roles),
        "channels": Treatment(float_channels=MAX_FLOAT_CHANNELS),
        "treated": Treatment(roles, MAX_FLOAT_CHANNELS),
    }
    by_error = copy.copy(baseline)
    if isinstance(by_error, RepQViT):
        by_error.range_rule = "output_error"
    ways = [Way(ALONE, baseline, nothing)]
    if isinstance(baseline, RepQViT):
        ways.append(Way("ranges", by_error, nothing))
    ways += [Way(name, _with(by_error, each), nothing) for name, each in treatments.items()]
    if fc2 in spec.linears() and fc2 not in baseline.keep_float:
        kept = copy.copy(by_error)
        kept.keep_float = baseline.keep_float | {fc2}
        ways.append(Way("fc2_float", kept, nothing))
    if not config.is_empty:
        ways.append(Way(REGCACHE, baseline, config))
        if isinstance(baseline, RepQViT):
            ways.append(Way("regcache_ranges", by_error, config))
        both = _with(by_error, treatments["treated"])
        ways.append(Way("regcache_treated", both, config))
    return ways


def _with(baseline: Baseline, treatment: Treatment) -> Baseline:
    changed = copy.copy(baseline)
    changed.treatment = treatment
    return changed


@dataclass(frozen=True)
class WayRace:
    """The ways that were tried, exactly one chosen, and those that could not win any more."""

    raced: list[Raced]
    untried: list[Way]


def race_ways(
    ways: Sequence[Way],
    searched: Embedder,
    register: Mapping[int, Tensor],
    objective: Objective,
    work: Work,
    seed: int,
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

    Returns:
        The tried ones in the order of `ways`.
    """
    spec, raced = searched.encoder.spec, list[Raced]()
    plain_cost = graph_cost(spec, ways[0].config, Operators())

    def run(way: Way) -> None:
        features = searched.features(way.title, way.baseline, way.config, register)
        images = len(searched.images) + calibration_walks(way.baseline) * len(searched.tokens)
        work.add(spec.depth * images)
        cost = graph_cost(spec, way.config, searched.operators[way.title]) / plain_cost
        raced.append(Raced(way, objective.score(features), cost))

    for way in ways:
        if way.plain:
            run(way)
    dearer = [way for way in ways if not way.plain]
    if not _level(raced, searched, register, objective, work, seed):
        for way in dearer:
            run(way)
        dearer = []
    order = [way.name for way in ways]
    raced.sort(key=lambda each: order.index(each.way.name))
    return WayRace(choose(raced, objective, seed), dearer)


def _level(
    raced: Sequence[Raced],
    searched: Embedder,
    register: Mapping[int, Tensor],
    objective: Objective,
    work: Work,
    seed: int,
) -> bool:
    """Whether one of them cannot be told from the better of FP32 and FP32 with RegCache."""
    best = max(raced, key=lambda each: each.score.key).score
    reference = objective.score(objective.reference)
    if not _tied(best, reference, objective, seed):
        return False
    config = next((each.way.config for each in raced if not each.way.config.is_empty), None)
    if config is None:
        return True
    healed = objective.score(searched.float_features_with(config, register))
    work.add(searched.encoder.spec.depth * len(searched.images))
    return _tied(best, healed, objective, seed)


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
    return compare_scores("top1", best, score, seed).p_value >= 0.05


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
        untried = (
            f"; {len(race.untried)} dearer ways were not tried, for it is level with floating point"
        )
    if chosen is best and not others:
        return f"{chosen.way.title}: the best of {len(raced)} ways {by}{untried}"
    alike = f"{len(others)} other{'s' * (len(others) > 1)}"
    return (
        f"{chosen.way.title}: the cheapest graph of those that cannot be told apart {by} "
        f"({alike}: {', '.join(others)}){untried}"
    )
