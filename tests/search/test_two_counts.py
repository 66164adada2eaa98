"""The search over both delete counts: the space, the race within its old budget, the old race."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.errors import ConfigError
from regcache_deploy.evaluation import Score
from regcache_deploy.evaluation.corners import corner_configs
from regcache_deploy.evaluation.image_sets import load_image_sets
from regcache_deploy.quantization.choice import chosen_baseline
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.book import TrialBook, decide
from regcache_deploy.search.find import FoundChoice, find_choice, search_space
from regcache_deploy.search.race import neighbours
from regcache_deploy.search.result import SearchResult
from regcache_deploy.search.settings import SearchSettings
from regcache_deploy.search.space import SearchSpace
from regcache_deploy.search.stopping import Stop
from regcache_deploy.search.strategies import race_budget, search
from regcache_deploy.work.progress import Reporter
from tests.search.search_helpers import encoder_and_images, problem_for
from tests.search.test_search import SPACE as SMOOTH_SPACE
from tests.search.test_search import Surface
from tests.search.test_search_contest import CALIBRATION, DEPTH, FlatTop
from tests.search.test_search_contest import SPACE as TOP1_SPACE

WIDE = SearchSpace((0, 1, 2), 2, ranges=tuple(range(11)))


def counts_of(config: RegCacheConfig) -> tuple[int, int]:
    return config.range_delete_count, config.delete_count


# -- the space ------------------------------------------------------------------------------


def test_the_grid_has_every_pair_and_no_saturation_without_a_prefix() -> None:
    grid = WIDE.grid()
    assert len(grid) == len(set(grid)) == 3 * 15 * 66 + 11
    assert all(config.delete_count <= config.range_delete_count for config in grid)
    assert not any(config.saturates and not config.has_prefix for config in grid)
    assert set(WIDE.published.grid()) < set(grid)
    assert not any(config.saturates for config in WIDE.published.grid())
    assert all(WIDE.holds(config) for config in grid)


def test_neighbours_take_steps_in_every_dimension_and_stay_inside() -> None:
    config = WIDE.config(1, 4, 3, 6)
    found = neighbours(config, WIDE)
    assert {counts_of(c) for c in found} == {(5, 3), (6, 3), (7, 3), (6, 2), (6, 4)}
    assert {c.prefix_count for c in found} == {3, 4, 5}
    assert {c.prefix_block for c in found} == {0, 1, 2}
    none_deleted = neighbours(WIDE.config(1, 4, 0, 6), WIDE)
    assert {counts_of(c) for c in none_deleted} == {(5, 0), (6, 0), (7, 0), (6, 1)}
    all_deleted = neighbours(WIDE.config(1, 1, 6, 6), WIDE)
    assert {counts_of(c) for c in all_deleted} == {(5, 5), (6, 6), (7, 7), (6, 5)}
    for choice in (config, WIDE.config(1, 1, 0, 6), WIDE.nothing):
        assert all(WIDE.holds(c) for c in neighbours(choice, WIDE))


def test_corners_have_saturation_beside_the_published_ones() -> None:
    config = WIDE.config(1, 4, 3, 6)
    found = WIDE.corners_of(config)
    assert len(found) == WIDE.corner_count == 5
    assert {(c.prefix_count, *counts_of(c)) for c in found} == {
        (0, 0, 0),
        (0, 6, 6),
        (4, 0, 0),
        (4, 6, 0),
        (4, 6, 3),
    }
    assert len(WIDE.published.corners_of(WIDE.config(1, 4, 3))) == 4
    named = corner_configs(config)
    assert counts_of(named["prefix_only"]) == (0, 0)
    assert counts_of(named["saturate"]) == (6, 0)
    assert counts_of(named["delete_only"]) == (6, 3)
    assert not named["delete_only"].has_prefix
    assert named["baseline"].is_empty
    assert named["regcache"] == config


@pytest.mark.parametrize(
    ("fixed", "pairs"),
    [
        ({"delete_count": 3}, {(3, 3)}),
        ({"range_delete_count": 2}, {(2, 0), (2, 1), (2, 2)}),
        ({"range_delete_count": 6, "delete_count": 3}, {(6, 3)}),
        ({"range_delete_count": 12, "delete_count": 0}, {(12, 0)}),
    ],
)
def test_what_the_user_fixes(fixed: dict[str, Any], pairs: set[tuple[int, int]]) -> None:
    encoder, _ = encoder_and_images()
    for two_counts in (True, False):
        space = search_space(ExportOptions(**fixed, two_counts=two_counts), encoder, 2)
        assert {counts_of(c) for c in space.grid()} == pairs
    clipping = ExportOptions(**fixed, prefix_count=0)
    assert search_space(clipping, encoder, 2).grid()


def test_the_graph_never_deletes_more_than_was_absent() -> None:
    with pytest.raises(ConfigError, match="--range-delete-count 2"):
        ExportOptions(delete_count=3, range_delete_count=2)


# -- the race -------------------------------------------------------------------------------


@dataclass
class Saturating(FlatTop):
    """Ranges want `deleted` tokens absent or more; every one that is deleted costs some images."""

    price_of_deletion: float = 0.08

    def evaluate(
        self,
        config: RegCacheConfig,
        rows: Tensor | None = None,
        calibration: int | None = None,
        stop: Stop | None = None,
    ) -> Score:
        rows = torch.arange(self.size) if rows is None else rows
        self.work.add(self.price(config, len(rows), calibration))
        tau, absent, count = config.prefix_count, *counts_of(config)
        harm = 2.0 * max(self.deleted - absent, 0) + self.price_of_deletion * count
        harm += 0.4 * (not config.has_prefix) + 0.3 * (config.prefix_block != self.block)
        margin = self.base + self.slope * np.log1p(tau) - self.harm * harm
        noise = np.random.default_rng((self.seed, config.prefix_block, tau, absent, count))
        margin = torch.from_numpy(margin + noise.normal(0, 0.01, self.size))[rows]
        return Score.of((margin > 0).double(), torch.sigmoid(margin), margin)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("deleted", "block"), [(6, 2), (3, 1)])
def test_saturation_is_found_within_a_twentieth_of_the_published_grid(
    deleted: int, block: int, seed: int
) -> None:
    surface = Saturating(deleted, block, seed)
    budget = race_budget(WIDE, DEPTH, surface.size, CALIBRATION)
    assert budget == race_budget(WIDE.published, DEPTH, surface.size, CALIBRATION)
    found = search(surface, WIDE, seed=seed, budget=budget)
    best = found.best
    assert surface.work.block_forwards <= budget
    assert best.range_delete_count >= deleted
    assert best.delete_count <= 1
    assert best.prefix_block == block
    published = Saturating(deleted, block, seed)
    alike = search(published, WIDE.published, SearchSettings(strategy="exhaustive"))
    assert found.score.value > alike.score.value


@pytest.mark.parametrize("seed", range(4))
def test_where_deletion_gains_everything_is_deleted(seed: int) -> None:
    surface = Saturating(4, 2, seed, price_of_deletion=-0.15)
    budget = race_budget(WIDE, DEPTH, surface.size, CALIBRATION)
    found = search(surface, WIDE, seed=seed, budget=budget)
    assert found.best.delete_count >= 4
    assert surface.work.block_forwards <= budget


def test_among_equals_the_fewest_tokens_are_chosen() -> None:
    ones, zeros = torch.ones(40).double(), torch.zeros(40).double()
    worse = ones.clone()
    worse[0] = 0
    outcomes = {
        (6, 0): Score.of(ones, 0.9 * ones, ones),
        (6, 2): Score.of(ones, 0.8 * ones, ones),
        (6, 3): Score.of(ones, 0.7 * ones, ones),
        (6, 4): Score.of(worse, 0.9 * ones, ones),
        (8, 6): Score.of(ones, 0.6 * ones, ones),  # other ranges: another choice
    }
    book = TrialBook(Surface((2, 5, 7)))
    book.problem.objective = FlatTop(6, 2, 0).objective  # type: ignore[misc]
    book.complete = {WIDE.config(1, 4, d, r): score for (r, d), score in outcomes.items()}
    book.complete[WIDE.nothing] = Score.of(zeros, zeros, zeros)
    found = decide(book, WIDE, 0.05)
    assert counts_of(found.best) == (6, 3)
    assert found.candidate is not None
    assert counts_of(found.candidate) == (6, 0)
    assert found.score.fidelity == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["naive", "repqvit"])
def test_shared_hidden_states_give_what_a_full_calibration_gives(name: str) -> None:
    encoder, images = encoder_and_images()
    problem = problem_for(encoder, images, name)
    for config in (RegCacheConfig(1, 3, 2, 0, range_delete_count=2), RegCacheConfig(1, 3, 2, 2)):
        setup, regcache = problem.setup, RegCache(config, problem.registers[config.prefix_block])
        full = setup.baseline.calibrate(encoder, setup.calibration_tokens, regcache=regcache)
        after = full.encoder.run_blocks(
            setup.tokens(encoder, problem.all_rows),
            numerics=full.numerics(),
            regcache=full.regcache,
        )
        whole = problem.objective.score(encoder.pool(after))
        assert problem.evaluate(config).value == pytest.approx(whole.value, abs=1e-6)


# -- the published method -------------------------------------------------------------------


def digest(found: SearchResult) -> tuple[int, str]:
    """Every trial in its order: stage, choice, images, work."""
    rows = [
        [
            trial.stage,
            trial.config.prefix_block,
            trial.config.prefix_count,
            trial.config.delete_block,
            trial.config.delete_count,
            trial.images,
            trial.work,
        ]
        for trial in found.trials
    ]
    return len(rows), hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


PUBLISHED = {
    ("smooth", 0): (57, "25eb2a7f7e54888b"),
    ("smooth", 1): (57, "001b32bd1199ca01"),
    ("smooth", 2): (58, "4568de67141b37f3"),
    ("top1", 0): (55, "45ea78e17e631766"),
    ("top1", 1): (59, "6f285b662c8be77c"),
    ("top1", 2): (58, "7a8a6216d6591009"),
}
"""Trials of the race before there was a second count, at commit 967f908."""


@pytest.mark.parametrize(("kind", "seed"), PUBLISHED)
def test_one_count_asks_what_it_asked_before_there_were_two(kind: str, seed: int) -> None:
    surface: Any
    if kind == "smooth":
        surface, space = Surface((2, 5, 7), seed=seed), SMOOTH_SPACE
        budget = race_budget(space, surface.depth, surface.size, surface.calibration)
    else:
        surface, space = FlatTop(6, 2, seed), TOP1_SPACE
        budget = race_budget(space, DEPTH, surface.size, CALIBRATION)
    assert digest(search(surface, space, seed=seed, budget=budget)) == PUBLISHED[kind, seed]


@pytest.mark.parametrize("two_counts", [False, True])
def test_the_demo(two_counts: bool) -> None:
    """One count gives the choice of commit 967f908; two counts keep sinks that saturate."""
    few = {"search_images": 64, "calibration_images": 16, "limit": 2}
    options = ExportOptions(baseline="naive", two_counts=two_counts, **few)  # type: ignore[arg-type]
    model, quiet = load_model("demo"), Reporter(quiet=True)
    sets = load_image_sets(options, model, quiet)
    baseline = chosen_baseline(options, 0)
    found: FoundChoice = find_choice(options, baseline, model.encoder, sets, quiet)
    best = found.result.best
    assert found.cost.share <= 1 / 20
    if two_counts:
        assert best.saturates
        assert best.range_delete_count >= 6
        assert found.result.score.value >= 0.875
    else:
        assert (best.prefix_block, best.prefix_count, *counts_of(best)) == (2, 2, 6, 6)
        assert found.result.score.value == 0.875
