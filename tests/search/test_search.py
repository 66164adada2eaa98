"""The search: shortcuts equal the long way, and its strategies find known optima."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.errors import ConfigError
from regcache_deploy.evaluation import FeatureFidelity, Score, ZeroShotTop1
from regcache_deploy.quantization.baselines import BASELINES, make_baseline
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.quantization.simulate import SimulatedNumerics
from regcache_deploy.search.cost import exhaustive_block_forwards
from regcache_deploy.search.sensitivity import measure_sensitivity
from regcache_deploy.search.settings import SearchSettings
from regcache_deploy.search.space import SearchSpace
from regcache_deploy.search.statistics import gain_probability, survivors
from regcache_deploy.search.stopping import Stop
from regcache_deploy.search.strategies import race_budget, search
from regcache_deploy.work.count import Work
from tests.search.search_helpers import DEPTH, OneByOne, encoder_and_images, problem_for

BOTH = RegCacheConfig(1, 3, 2, 2)


@lru_cache(maxsize=1)
def made() -> tuple[Encoder, Tensor]:
    return encoder_and_images()


@pytest.mark.parametrize("name", sorted(BASELINES))
@pytest.mark.parametrize(
    "config",
    [BOTH, RegCacheConfig(1, 0, 2, 2), RegCacheConfig(1, 2, 2, 0), RegCacheConfig(2, 0, 2, 0)],
    ids=["both", "delete", "prefix", "nothing"],
)
def test_shared_hidden_states_give_what_a_full_calibration_gives(
    name: str, config: RegCacheConfig
) -> None:
    encoder, images = made()
    problem = problem_for(encoder, images, name)
    score, setup = problem.evaluate(config), problem.setup
    regcache = RegCache(config, problem.registers[1] if config.has_prefix else {})
    full = setup.baseline.calibrate(encoder, setup.calibration_tokens, regcache=regcache)
    after = full.encoder.run_blocks(
        setup.tokens(encoder, problem.all_rows), numerics=full.numerics(), regcache=full.regcache
    )
    whole = problem.objective.score(encoder.pool(after))
    tolerance = 1e-6 if name != "ptq4vit" else 2e-3  # its probe is drawn anew from the later start
    assert score.value == pytest.approx(whole.value, abs=tolerance)


def test_a_subset_of_the_images_gives_their_part_of_the_whole() -> None:
    encoder, images = made()
    problem = problem_for(encoder, images)
    rows = torch.tensor([4, 0, 3])
    part, whole = problem.evaluate(BOTH, rows), problem.evaluate(BOTH)
    assert torch.allclose(part.per_image, whole.per_image[rows], atol=1e-6)


class Counter:
    """Counts images through `Encoder.block`, whoever calls it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, original = 0, Encoder.block

        def block(encoder: Encoder, index: int, tokens: Tensor, *more: object) -> Tensor:
            self.count += len(tokens)
            return original(encoder, index, tokens, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(Encoder, "block", block)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_exhaustive_count_is_what_really_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, images = made()
    space = SearchSpace((0, 1), 2, prefix=(0, 1, 3), delete=(0, 2))
    problem = problem_for(encoder, images, name, blocks=(0, 1))
    counter = Counter(monkeypatch)
    found = search(problem, space, SearchSettings(strategy="exhaustive"))
    assert len(found.trials) == len(space.grid()) == 2 * 2 * 2 + 2
    walks = 2 if name == "ptq4vit" else 1
    formula = exhaustive_block_forwards(space, DEPTH, problem.size, 6, walks)
    assert counter.count == problem.work.block_forwards == formula


def test_race_counts_what_really_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, images = made()
    problem = problem_for(encoder, images, blocks=(0, 1, 2))
    counter = Counter(monkeypatch)
    search(problem, SearchSpace((0, 1, 2), 2))
    assert counter.count == problem.work.block_forwards > 0


@pytest.mark.parametrize("memory", [0, 20_000, 10**9])
def test_memory_budget_changes_the_work_and_not_the_result(memory: int) -> None:
    encoder, images = made()
    rich, poor = problem_for(encoder, images), problem_for(encoder, images, memory=memory)
    for config in (BOTH, RegCacheConfig(1, 2, 2, 2), RegCacheConfig(2, 0, 2, 2)):
        assert poor.evaluate(config).per_image.tolist() == rich.evaluate(config).per_image.tolist()
    assert poor.evaluator.budget.used <= memory
    more = poor.work.block_forwards - rich.work.block_forwards
    assert more > 0 if memory < 10**9 else more == 0


def test_sensitivity_quantizes_one_layer_at_a_time() -> None:
    encoder, images = made()
    weights = {"blocks.2.mlp.fc1.bias": encoder.weights["blocks.2.mlp.fc1.bias"].clone()}
    weights["blocks.2.mlp.fc1.bias"][5] = 4000.0  # one huge hidden unit, which nothing reads
    fc2 = encoder.weights["blocks.2.mlp.fc2.weight"].clone()
    fc2[:, 5] = 0
    broken = encoder.replace(weights | {"blocks.2.mlp.fc2.weight": fc2})
    reference = broken(images)
    tokens = broken.embed(images)
    labels = torch.arange(12)
    head = torch.nn.functional.normalize(reference, dim=-1)
    objective = ZeroShotTop1(head, labels, reference)
    found = measure_sensitivity(
        broken, tokens, lambda _, rows: tokens[rows], 12, objective, batch_size=5
    )
    assert (found.layer, found.block) == ("blocks.2.mlp.fc2", 2)
    assert len(found.layers) == 4 * DEPTH
    quantization = make_baseline("naive", form="paper").calibrate(broken, tokens).quantization
    alone = broken(images, SimulatedNumerics(quantization.only("blocks.1.attn.qkv")))
    assert found.layers["blocks.1.attn.qkv"].fidelity == pytest.approx(
        objective.score(alone).fidelity, abs=1e-6
    )


@dataclass
class Surface(OneByOne):
    """A search problem whose score is a formula, with a fixed part of noise for every image."""

    peak: tuple[int, int, int]
    height: float = 1.0
    size: int = 256
    depth: int = 8
    calibration: int = 64
    seed: int = 0
    noise: float = 0.02
    work: Work = field(default_factory=Work)
    asked: list[tuple[RegCacheConfig, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objective = FeatureFidelity(torch.zeros(1, 1))
        generator = np.random.default_rng(self.seed)
        self.hard = generator.normal(0, 0.1, self.size)
        self.own = generator.normal(0, self.noise, (self.size, 16, 16, 16))

    def expected(self, config: RegCacheConfig) -> float:
        block, tau, count = self.peak
        if config.is_empty:
            return 0.5
        distance = abs(np.log1p(config.prefix_count) - np.log1p(tau)) / 3
        distance += min(abs(config.delete_count - count), 2) / 2
        wrong = 0.3 * (config.has_prefix and config.prefix_block != block)
        return float(0.5 + 0.4 * self.height - 0.2 * distance - 0.1 * wrong)

    def price(self, config: RegCacheConfig, images: int, calibration: int | None = None) -> int:
        return (images + (calibration or self.calibration)) * (self.depth - config.first_block)

    def evaluate(
        self,
        config: RegCacheConfig,
        rows: Tensor | None = None,
        calibration: int | None = None,
        stop: Stop | None = None,
    ) -> Score:
        rows = torch.arange(self.size) if rows is None else rows
        own = self.own[:, config.prefix_block, config.prefix_count, config.delete_count]
        values = torch.from_numpy((self.expected(config) + self.hard + own)[rows.numpy()])
        if stop is not None:
            seen = 0
            for piece in stop.pieces(rows, 64):
                seen += len(piece)
                if stop(values[:seen], len(rows)):
                    break
            values = values[:seen]
        self.asked.append((config, len(values)))
        self.work.add(self.price(config, len(values), calibration))
        return Score.of(values, values, values)


PEAKS = [(2, 5, 7), (0, 15, 10), (3, 1, 1), (1, 11, 3), (3, 4, 6)]
SPACE = SearchSpace((0, 1, 2, 3), 3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("peak", PEAKS)
def test_race_is_as_good_as_the_full_grid_for_a_twentieth(
    peak: tuple[int, int, int], seed: int
) -> None:
    surface, whole = Surface(peak, seed=seed), Surface(peak, seed=seed)
    budget = race_budget(SPACE, surface.depth, surface.size, surface.calibration)
    found = search(surface, SPACE, seed=seed, budget=budget)
    grid = search(whole, SPACE, SearchSettings(strategy="exhaustive"))
    error, least = 1 - found.score.value, 1 - grid.score.value
    assert error <= 1.005 * least + 0.002
    assert surface.work.block_forwards <= budget
    corners = {(c.prefix_count > 0, c.delete_count > 0) for c, n in surface.asked if n == 256}
    assert len(corners) == 4


@pytest.mark.parametrize("seed", range(5))
def test_the_best_block_may_depend_on_tau(seed: int) -> None:
    # at the race's first tau, 4, block 3 is the worst of the four; at the best tau it is the best
    surface = Surface((3, 7, 9), seed=seed)
    plain = surface.expected

    def expected(config: RegCacheConfig) -> float:
        turned = config.has_prefix and config.prefix_count < 6
        return plain(config) - 0.05 * turned * config.prefix_block / 3

    surface.expected = expected  # type: ignore[method-assign]
    budget = race_budget(SPACE, surface.depth, surface.size, surface.calibration)
    found = search(surface, SPACE, seed=seed, budget=budget).best
    assert (found.prefix_block, found.delete_count) == (3, 9)
    assert surface.work.block_forwards <= budget


def test_search_without_gain_chooses_nothing() -> None:
    for strategy in ("default", "confirmed", "exhaustive"):
        found = search(Surface((2, 5, 7), height=-0.5), SPACE, SearchSettings(strategy=strategy))
        assert found.best.is_empty
        assert found.p_value == 1.0


def test_noise_alone_is_no_gain() -> None:
    for seed in range(5):
        flat = Surface((2, 5, 7), height=0.0, seed=seed, noise=0.1)
        flat.expected = lambda config: 0.5  # type: ignore[method-assign]
        found = search(flat, SPACE, SearchSettings(strategy="exhaustive"), seed=seed)
        assert found.candidate is not None
        assert not found.candidate.is_empty  # the best of many is ahead, by accident
        assert found.best.is_empty


def test_fixed_dimensions_stay_fixed() -> None:
    surface = Surface((1, 5, 7))
    found = search(surface, SearchSpace((2,), 2, prefix=(3,), delete=(1,)))
    assert found.best == RegCacheConfig(2, 3, 2, 1)
    assert surface.asked == [(RegCacheConfig(2, 3, 2, 1), 256)]


def test_search_on_healthy_random_weights_finds_nothing() -> None:
    encoder, images = encoder_and_images(40)
    for bits in (Bits(8, 8), Bits(6, 6)):
        problem = problem_for(encoder, images, calibration=8, blocks=(0, 1), bits=bits)
        assert search(problem, SearchSpace((0, 1), 1)).best.is_empty


def test_survivors_keep_the_best_and_drop_the_hopeless() -> None:
    generator = np.random.default_rng(0)
    lost = 0
    for trial in range(200):
        means = {"best": 0.05, "close": 0.04, "far": -1.0}
        full = {k: m + generator.normal(0, 0.3, 400) for k, m in means.items()}
        truth = max(full, key=lambda k: full[k].mean())
        alive = survivors({k: v[:40] for k, v in full.items()}, 400, 0.05, trial)
        assert "far" not in alive
        lost += truth not in alive
    assert lost <= 0.05 * 200 + 10  # the stated error, and three standard deviations
    assert list(survivors(full, 400, 0.05, 0)) == [truth]


def test_gain_needs_size_and_evidence() -> None:
    top1 = ZeroShotTop1(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1))
    zeros, ones = torch.zeros(40).double(), torch.ones(40).double()
    few, many = zeros.clone(), zeros.clone()
    few[:2], many[:20] = 1, 1
    nothing, a, b = (Score.of(x, ones, x) for x in (zeros, few, many))
    assert gain_probability(top1, nothing, a) == pytest.approx(0.25)
    assert gain_probability(top1, nothing, b) < 1e-5
    assert gain_probability(top1, b, a) == 1.0


def test_one_image_that_gains_enormously_does_not_hide_that_all_gain() -> None:
    cosine = FeatureFidelity(torch.zeros(1, 1))
    generator = torch.Generator().manual_seed(0)
    error = 1e-4 * (1 + torch.rand(96, generator=generator).double())
    before = 4 * error
    before[7] = 0.86
    nothing, choice = (Score.of(1 - x, 1 - x, 1 - x) for x in (before, error))
    assert gain_probability(cosine, nothing, choice) < 1e-6
    assert gain_probability(cosine, choice, nothing) == 1.0


@pytest.mark.parametrize(
    "changes",
    [{"strategy": "fast"}, {"ranking": "norm"}, {"memory": 0.0}, {"error": 0.9}],
)
def test_settings_are_checked(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="take"):
        SearchSettings(**changes)  # type: ignore[arg-type]
