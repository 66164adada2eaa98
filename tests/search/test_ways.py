"""The race of the ways: what is in it, who wins, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.evaluation import FeatureFidelity, Objective, Score, ZeroShotTop1
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.baselines.repqvit import RepQViT
from regcache_deploy.search.embedder import Embedder, Embedding
from regcache_deploy.search.graph_cost import Operators, graph_cost
from regcache_deploy.search.settings import WAY_NAMES
from regcache_deploy.search.way_race import (
    Raced,
    WayRace,
    choose,
    fidelity_way,
    race_ways,
    reason,
)
from regcache_deploy.search.ways import DEAR, TITLES, Way, ways_of
from regcache_deploy.work.count import Work
from tests.tiny_plans import SPEC

FOUND = RegCacheConfig(1, 3, 1, 2, range_delete_count=4)
NOTHING = RegCacheConfig(1, 0, 1, 0)
TOP1: Objective = ZeroShotTop1(torch.eye(4), torch.zeros(4, dtype=torch.int64), torch.eye(4))
COSINE: Objective = FeatureFidelity(torch.eye(4))


def raced(name: str, hits: Tensor, cost: float, fidelity: float = 0.99) -> Raced:
    score = Score.of(hits.double(), torch.full((len(hits),), fidelity).double(), hits.double())
    return Raced(Way(name, make_baseline("naive"), NOTHING), score, cost)


def hits(wrong: int, of: int = 1000) -> Tensor:
    return (torch.arange(of) >= wrong).float()


def winner(found: list[Raced]) -> str:
    chosen = [each.way.name for each in found if each.chosen]
    assert len(chosen) == 1
    return chosen[0]


def test_every_name_has_a_title() -> None:
    assert tuple(TITLES) == WAY_NAMES


@pytest.mark.parametrize("name", ["naive", "ptq4vit", "repqvit"])
def test_the_ways_of_a_quantizer(name: str) -> None:
    baseline = make_baseline(name)
    before = baseline.identity()
    ways = ways_of(baseline, FOUND, "blocks.1.mlp.fc2", SPEC)
    names = [way.name for way in ways]
    assert names[0] == "quantizer"
    assert ways[0].baseline is baseline
    assert set(names) == set(WAY_NAMES) - (
        set() if name == "repqvit" else {"ranges", "regcache_ranges"}
    )
    assert {way.name for way in ways if way.config == FOUND} == {
        way for way in names if way.startswith("regcache")
    }
    assert all(way.config.is_empty for way in ways if not way.name.startswith("regcache"))
    kept = next(way for way in ways if way.name == "fc2_float")
    assert kept.baseline.keep_float == {"blocks.1.mlp.fc2"}
    # every way's parts are its own, and the baseline that was given is as it was
    assert len({str(way.baseline.identity()) + way.name for way in ways}) == len(ways)
    assert baseline.identity() == before


def test_without_a_gain_no_way_has_regcache() -> None:
    ways = ways_of(RepQViT(), NOTHING, "blocks.1.mlp.fc2", SPEC)
    assert all(way.config.is_empty for way in ways)


def test_the_cheapest_of_equals_wins() -> None:
    found = choose(
        [
            raced("quantizer", hits(400), 1.0),
            raced("channels", hits(101), 1.02),
            raced("fc2_float", hits(100), 1.2),
        ],
        TOP1,
        seed=0,
    )
    assert winner(found) == "channels"
    assert [each.tied for each in found] == [False, True, True]
    assert reason(WayRace(found, [], level=False), "top1").startswith(
        "outlier channels in float: the cheapest graph"
    )


def test_a_cheap_way_that_loses_images_does_not_win() -> None:
    for lost, wins in [(103, "quantizer"), (104, "fc2_float")]:
        ways = [raced("quantizer", hits(lost), 1.0), raced("fc2_float", hits(100), 1.2)]
        assert winner(choose(ways, TOP1, seed=0)) == wins


def test_on_few_images_one_of_them_is_a_tie() -> None:
    for lost, wins in [(21, "quantizer"), (22, "fc2_float")]:
        ways = [raced("quantizer", hits(lost, 100), 1.0), raced("fc2_float", hits(20, 100), 1.2)]
        assert winner(choose(ways, TOP1, seed=0)) == wins


def test_a_difference_that_is_no_accident_is_no_tie() -> None:
    """On 20,000 images 0.1 % is a certain loss."""
    ways = [raced("quantizer", hits(2020, 20000), 1.0), raced("fc2_float", hits(2000, 20000), 1.2)]
    assert winner(choose(ways, TOP1, seed=0)) == "fc2_float"


def test_equal_in_all_but_the_features_the_nearer_one_wins() -> None:
    ways = [
        raced("quantizer", hits(100), 1.0, fidelity=0.972),
        raced("ranges", hits(100), 1.0, fidelity=0.997),
    ]
    assert winner(choose(ways, TOP1, seed=0)) == "ranges"
    ways[1] = raced("ranges", hits(100), 1.0, fidelity=0.974)
    assert winner(choose(ways, TOP1, seed=0)) == "quantizer"


def test_a_graded_objective_has_ties_too() -> None:
    def graded(name: str, value: float, cost: float) -> Raced:
        return raced(name, torch.full((100,), value), cost, fidelity=value)

    ways = [graded("quantizer", 0.99895, 1.0), graded("fc2_float", 0.9990, 1.2)]
    assert winner(choose(ways, COSINE, seed=0)) == "quantizer"
    ways[0] = graded("quantizer", 0.9980, 1.0)
    assert winner(choose(ways, COSINE, seed=0)) == "fc2_float"


def test_the_cost_knows_what_a_graph_computes() -> None:
    plain = graph_cost(SPEC, NOTHING, Operators())
    fc2 = tuple(name for name in SPEC.linears() if name.endswith("fc2"))
    assert graph_cost(SPEC, NOTHING, Operators(multipliers=fc2)) > plain
    assert graph_cost(SPEC, NOTHING, Operators(few_channels=fc2)) > plain
    assert graph_cost(SPEC, NOTHING, Operators(floats=fc2)) > plain
    deleting = replace(FOUND, prefix_count=0)
    assert graph_cost(SPEC, deleting, Operators()) < plain
    assert graph_cost(SPEC, FOUND.deleting(0, 4), Operators()) > plain


def test_where_fidelity_disagrees_it_is_said() -> None:
    """The recognizing way has the worse features; told apart by images, not by cosines."""
    ways = [
        raced("quantizer", hits(300), 1.0, fidelity=0.99),
        raced("regcache", hits(100), 1.0, fidelity=0.93),
    ]
    found = choose(ways, TOP1, seed=0)
    assert winner(found) == "regcache"
    assert fidelity_way(found) == "quantizer alone"
    ways[0] = raced("quantizer", hits(300), 1.0, fidelity=0.9)
    assert fidelity_way(choose(ways, TOP1, seed=0)) is None


class FakeEmbedder:
    """Hands out outcomes `[n]` in place of features; float's under "fp32" and "healed"."""

    def __init__(self, outcomes: dict[str, Tensor]) -> None:
        self.outcomes, self.asked = outcomes, list[str]()
        self.encoder = SimpleNamespace(spec=SPEC)
        self.images, self.tokens = range(1000), range(10)
        self.operators = dict.fromkeys(TITLES.values(), Operators())

    def features(self, title: str, *_: object) -> Tensor:
        name = next(key for key, value in TITLES.items() if value == title)
        self.asked.append(name)
        return self.outcomes.get(name, hits(900))

    def prepare(self, wanted: Iterable[Embedding]) -> None:
        list(wanted)

    def float_features_with(self, *_: object) -> Tensor:
        self.asked.append("healed")
        return self.outcomes["healed"]


class Outcomes:
    """An objective whose features are the outcomes."""

    name, smooth = "top1", False

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference

    def score(self, features: Tensor, rows: Tensor | None = None) -> Score:
        return Score.of(features.double(), features.double(), features.double())


def tried(
    outcomes: dict[str, Tensor], config: RegCacheConfig = FOUND, budget: int | None = None
) -> tuple[WayRace, list[str]]:
    embedder, work = FakeEmbedder(outcomes), Work()
    ways = ways_of(RepQViT(), config, "blocks.1.mlp.fc2", SPEC)
    objective = Outcomes(outcomes["fp32"])
    race = race_ways(ways, cast(Embedder, embedder), {}, objective, work, 0, budget)
    calibrated = [name for name in embedder.asked if name != "healed"]
    passes = 1010 * len(calibrated) + 1000 * ("healed" in embedder.asked)
    assert work.block_forwards == SPEC.depth * passes
    return race, embedder.asked


def test_where_a_plain_graph_is_level_with_float_no_dearer_one_is_tried() -> None:
    race, asked = tried({"fp32": hits(60), "healed": hits(60), "regcache": hits(62)})
    assert asked == ["quantizer", "ranges", "regcache", "regcache_ranges", "healed"]
    assert winner(race.raced) == "regcache"
    untried = [way.name for way in race.untried]
    assert untried == list(DEAR)
    assert "5 dearer ways were not tried, for it is level" in reason(race, "top1")


def test_a_healthy_encoder_needs_two_calibrations() -> None:
    race, asked = tried({"fp32": hits(60), "quantizer": hits(61), "ranges": hits(60)}, NOTHING)
    assert asked == ["quantizer", "ranges"]
    assert winner(race.raced) == "ranges"


@pytest.mark.parametrize(
    "outcomes",
    [
        {"fp32": hits(60), "healed": hits(60), "regcache": hits(80)},
        # level with the sick encoder, not with the healed one
        {"fp32": hits(60), "healed": hits(20), "regcache": hits(60)},
    ],
)
def test_otherwise_every_way_is_tried(outcomes: dict[str, Tensor]) -> None:
    race, asked = tried(outcomes | {"regcache_treated": hits(21)})
    assert [each.way.name for each in race.raced] == list(TITLES)
    assert set(asked) - {"healed"} == set(TITLES)
    assert not race.untried
    assert winner(race.raced) == "regcache_treated"
    assert "not tried" not in reason(race, "top1")


def test_the_budget_holds_and_the_plain_ways_always_run() -> None:
    lost = {"fp32": hits(60), "healed": hits(60)}
    each = SPEC.depth * 1010
    race, asked = tried(lost, budget=6 * each)
    assert asked == ["quantizer", "ranges", "regcache", "regcache_ranges", *DEAR[:2]]
    assert [way.name for way in race.untried] == list(DEAR[2:])
    assert not race.level
    assert "3 dearer ways were not tried, for lack of budget" in reason(race, "top1")
    _, asked = tried(lost, budget=0)
    assert asked == ["quantizer", "ranges", "regcache", "regcache_ranges"]


def with_margin(name: str, wrong: int, cost: float, margin: float) -> Raced:
    """As many right, each by a margin of its own around the given one."""
    generator = torch.Generator().manual_seed(len(name))
    spread = margin + 0.02 * torch.randn(512, generator=generator).double()
    right = hits(wrong, 512).double()
    score = Score.of(right, torch.full((512,), 0.99).double(), spread)
    return Raced(Way(name, make_baseline("naive"), NOTHING), score, cost)


def test_as_many_images_by_a_hair_are_no_tie() -> None:
    """One image in 512 says little; that all of them stand nearer to the wrong side does."""
    sure, hair = with_margin("channels", 41, 1.01, 0.2), with_margin("regcache", 42, 1.0, 0.17)
    assert winner(choose([sure, hair], TOP1, seed=0)) == "channels"
    level = with_margin("regcache", 42, 1.0, 0.199)
    assert winner(choose([sure, level], TOP1, seed=0)) == "regcache"
