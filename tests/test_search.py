"""The search: shortcuts equal the long way, and the strategy finds known optima."""

from __future__ import annotations

import pytest
import torch

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders import Encoder, RegCache, RegCacheConfig
from regcache_deploy.encoders.open_clip_vit import from_open_clip
from regcache_deploy.errors import DataError
from regcache_deploy.evaluation import FeatureFidelity, Score, ZeroShotTop1
from regcache_deploy.quantization import BASELINES, SimulatedNumerics, make_baseline
from regcache_deploy.search import SearchProblem, measure_sensitivity, search
from regcache_deploy.search.grid import SearchSpace
from regcache_deploy.search.register import capture_register, find_candidates

import_open_clip()
from open_clip.transformer import VisionTransformer  # noqa: E402

DEPTH = 4


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    tower = VisionTransformer(
        image_size=64, patch_size=16, width=64, layers=DEPTH, heads=2, mlp_ratio=2, output_dim=16
    )
    return from_open_clip(tower.eval())


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_candidates_are_the_largest_patches_and_never_cls(
    encoder: Encoder, images: torch.Tensor
) -> None:
    found = find_candidates(encoder, images.split(5), [1, 2], size=7)
    tokens = encoder.run_blocks(encoder.embed(images), stop=2)
    norms = tokens[:, 1:].abs().amax(-1)
    two_each = norms.topk(2, dim=1).values.flatten().sort(descending=True).values[:7]
    assert [c.score for c in found[2]] == pytest.approx(two_each.tolist(), rel=1e-5)
    assert all(c.position >= 1 for c in found[1] + found[2])
    assert max(sum(c.image == i for c in found[2]) for i in range(12)) <= 2


def test_register_is_the_mean_of_the_keys_in_their_own_images(
    encoder: Encoder, images: torch.Tensor
) -> None:
    candidates = find_candidates(encoder, [images], [1], size=9)[1]
    register = capture_register(encoder, images, candidates, 1, batch_size=2)
    assert sorted(register) == [1, 2, 3]
    tokens = encoder.run_blocks(encoder.embed(images), stop=2)
    chosen = torch.stack([tokens[c.image, c.position] for c in candidates])
    weight = encoder.weights["blocks.2.attn.qkv.weight"][64:128]
    bias = encoder.weights["blocks.2.attn.qkv.bias"][64:128]
    keys = encoder.norm("blocks.2.norm1", chosen) @ weight.T + bias
    got, _ = encoder.prefix_kv(2, register[2])
    assert torch.allclose(got.flatten(), keys.mean(0), atol=1e-5)


def test_no_reference_images_is_a_data_error(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="reference images"):
        find_candidates(encoder, [], [1])


def problem_for(encoder: Encoder, images: torch.Tensor, name: str) -> SearchProblem:
    tokens = encoder.embed(images)
    reference = encoder(images)
    candidates = find_candidates(encoder, [images], [1], size=6)[1]
    return SearchProblem(
        encoder=encoder,
        baseline=make_baseline(name).fast(),
        calibration_tokens=tokens[:6],
        search_tokens=tokens[6:],
        objective=FeatureFidelity(reference[6:]),
        registers={1: capture_register(encoder, images, candidates, 1)},
        batch_size=4,
    )


@pytest.mark.parametrize("name", sorted(BASELINES))
@pytest.mark.parametrize(
    "config",
    [RegCacheConfig(1, 3, 2, 2), RegCacheConfig(1, 0, 2, 2), RegCacheConfig(1, 2, 2, 0)],
    ids=["both", "delete", "prefix"],
)
def test_shared_hidden_states_give_what_a_full_calibration_gives(
    encoder: Encoder, images: torch.Tensor, name: str, config: RegCacheConfig
) -> None:
    problem = problem_for(encoder, images, name)
    score = problem.evaluate(config)
    regcache = RegCache(config, problem.registers[1] if config.has_prefix else {})
    full = problem.baseline.calibrate(encoder, problem.calibration_tokens, regcache=regcache)
    after = full.encoder.run_blocks(
        problem.search_tokens, numerics=full.numerics(), regcache=full.regcache
    )
    whole = problem.objective.score(encoder.pool(after))
    tolerance = 1e-6 if name != "ptq4vit" else 2e-3  # its probe is drawn anew from the later start
    assert score.value == pytest.approx(whole.value, abs=tolerance)


def test_sensitivity_quantizes_one_layer_at_a_time(encoder: Encoder, images: torch.Tensor) -> None:
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
    told: list[int] = []
    found = measure_sensitivity(broken, tokens, tokens, objective, 5, told.append)
    assert (found.layer, found.block) == ("blocks.2.mlp.fc2", 2)
    assert sum(told) == len(found.layers) == 4 * DEPTH
    quantization = make_baseline("naive").calibrate(broken, tokens).quantization
    alone = broken(images, SimulatedNumerics(quantization.only("blocks.1.attn.qkv")))
    assert found.layers["blocks.1.attn.qkv"].fidelity == pytest.approx(
        objective.score(alone).fidelity, abs=1e-6
    )


class Surface:
    """A search problem whose score is a formula."""

    def __init__(self, peak: tuple[int, int, int], height: float = 1.0) -> None:
        self.peak, self.height = peak, height
        self.asked: list[RegCacheConfig] = []

    def evaluate(self, config: RegCacheConfig) -> Score:
        self.asked.append(config)
        block, tau, count = self.peak
        if config.is_empty:
            value = 0.5
        else:
            distance = abs(config.prefix_count - tau) / 15 + abs(config.delete_count - count) / 10
            value = 0.5 + 0.5 * self.height - 0.2 * distance
            value -= 0.1 * (config.has_prefix and config.prefix_block != block)
        return Score(value, value, torch.tensor([value]))


@pytest.mark.parametrize("peak", [(2, 5, 7), (0, 15, 10), (3, 1, 1), (1, 11, 3)])
def test_search_finds_the_peak_of_a_smooth_surface(peak: tuple[int, int, int]) -> None:
    surface = Surface(peak)
    found = search(surface, SearchSpace((0, 1, 2, 3), 3))  # type: ignore[arg-type]
    best = found.best
    assert (best.prefix_block, best.prefix_count, best.delete_count) == peak
    assert len(surface.asked) == len(set(surface.asked)) < 100
    corners = {(c.prefix_count > 0, c.delete_count > 0) for c in surface.asked}
    assert len(corners) == 4


def test_search_without_gain_chooses_nothing() -> None:
    found = search(Surface((2, 5, 7), height=-0.5), SearchSpace((0, 1, 2), 2))  # type: ignore[arg-type]
    assert found.best.is_empty


def test_fixed_dimensions_stay_fixed() -> None:
    surface = Surface((1, 5, 7))
    space = SearchSpace((2,), 2, prefix=(3,), delete=(1,))
    found = search(surface, space)  # type: ignore[arg-type]
    assert found.best == RegCacheConfig(2, 3, 2, 1)
    assert surface.asked == [RegCacheConfig(2, 3, 2, 1)]
