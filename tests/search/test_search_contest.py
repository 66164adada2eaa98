"""The end of a top-1 race: the flat top, where choices differ on few images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.evaluation import Score
from regcache_deploy.evaluation.objective import ZeroShotTop1
from regcache_deploy.search.contest import contested_images
from regcache_deploy.search.settings import SearchSettings
from regcache_deploy.search.space import SearchSpace
from regcache_deploy.search.stopping import Stop
from regcache_deploy.search.strategies import race_budget, search
from regcache_deploy.work.count import Work
from tests.search.search_helpers import OneByOne

SPACE = SearchSpace((0, 1, 2), 2)
DEPTH, CALIBRATION = 6, 64


@dataclass
class FlatTop(OneByOne):
    """Top-1 whose margins move a little with log tau and much with the delete count.

    Every image has its own margin, its own slope in log tau and its own noise.
    """

    deleted: int
    block: int
    seed: int
    size: int = 256
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        blank = torch.zeros(self.size, 1)
        labels = torch.zeros(self.size, dtype=torch.int64)
        self.objective = ZeroShotTop1(torch.ones(1, 1), labels, blank)
        generator = np.random.default_rng(self.seed)
        self.base = generator.normal(1.3, 1.0, self.size)
        self.slope = generator.normal(0.0, 0.05, self.size)
        self.harm = generator.exponential(1.0, self.size)
        self.noise = generator.normal(0, 0.01, (self.size, 3, 16, 11))

    def price(self, config: RegCacheConfig, images: int, calibration: int | None = None) -> int:
        return (images + (calibration or CALIBRATION)) * (DEPTH - config.first_block)

    def evaluate(
        self,
        config: RegCacheConfig,
        rows: Tensor | None = None,
        calibration: int | None = None,
        stop: Stop | None = None,
    ) -> Score:
        rows = torch.arange(self.size) if rows is None else rows
        self.work.add(self.price(config, len(rows), calibration))
        tau, count = config.prefix_count, config.delete_count
        harm = 2.0 * max(self.deleted - count, 0) + 0.4 * max(count - self.deleted, 0)
        harm += 0.4 * (not config.has_prefix) + 0.3 * (config.prefix_block != self.block)
        margin = self.base + self.slope * np.log1p(tau) - self.harm * harm
        margin = torch.from_numpy(margin + self.noise[:, config.prefix_block, tau, count])[rows]
        return Score.of((margin > 0).double(), torch.sigmoid(margin), margin)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("deleted", "block"), [(6, 2), (3, 1)])
def test_the_best_tau_of_a_flat_top_is_found_for_a_twentieth(
    deleted: int, block: int, seed: int
) -> None:
    raced, whole = FlatTop(deleted, block, seed), FlatTop(deleted, block, seed)
    budget = race_budget(SPACE, DEPTH, raced.size, CALIBRATION)
    found = search(raced, SPACE, seed=seed, budget=budget)
    grid = search(whole, SPACE, SearchSettings(strategy="exhaustive"))
    values = sorted({trial.score.value for trial in grid.trials})
    assert values[-1] > values[0] + 0.3
    assert found.score.value == grid.score.value
    assert raced.work.block_forwards <= budget
    asked = {(t.config.prefix_count > 0, t.config.delete_count > 0) for t in found.full_trials}
    assert len(asked) == 4


def test_contested_images_are_those_that_differ_then_the_narrow_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(400, generator=generator, dtype=torch.float64)
    other = one.clone()
    other[7] = -other[7]
    scores = [Score.of((m > 0).double(), m, m) for m in (one, other)]
    rows = contested_images(scores)
    assert rows[0] == 7
    assert len(rows) == 60
    rest = one.abs()[rows[1:]]
    assert float(rest.max()) <= float(one.abs()[[i for i in range(400) if i not in rows]].min())
