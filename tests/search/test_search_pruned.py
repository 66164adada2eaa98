"""The pruned grid: the full grid's optimum, and no choice left that might have been it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import planted_vit
import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.evaluation import Objective, ZeroShotTop1
from regcache_deploy.search.book import Advance
from regcache_deploy.search.problem import SearchProblem
from regcache_deploy.search.result import SearchResult
from regcache_deploy.search.settings import SearchSettings
from regcache_deploy.search.space import SearchSpace
from regcache_deploy.search.stopping import Floor
from regcache_deploy.search.strategies import in_order, search
from tests.search.search_helpers import problem_for
from tests.search.test_search import Counter

SPACE = SearchSpace((5, 6), 6, prefix=(0, 1, 4, 15), delete=(0, 2, 4, 6))
IMAGES, CALIBRATION = 30, 6


@lru_cache(maxsize=1)
def planted() -> tuple[Encoder, Tensor]:
    """Random weights with planted sinks, random images."""
    structure = planted_vit.small()
    size = structure.image_size
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, 3, size, size, generator=generator)
    return planted_vit.load(structure, 0).encoder, images


def top1(reference: Tensor) -> Objective:
    """As labels what the float model says about random classes, with every fifth one wrong."""
    generator = torch.Generator().manual_seed(2)
    classes = torch.randn(8, reference.shape[1], generator=generator)
    classes /= classes.norm(dim=1, keepdim=True)
    labels = (reference @ classes.T).argmax(dim=1)
    labels[::5] = (labels[::5] + 1) % 8
    return ZeroShotTop1(classes, labels, reference)


def made(objective: str, folder: Path | None = None) -> SearchProblem:
    encoder, images = planted()
    changes: dict[str, Any] = {}
    if objective == "top1":
        with torch.no_grad():
            changes["objective"] = top1(encoder(images[CALIBRATION:]))
    return problem_for(
        encoder, images, calibration=CALIBRATION, blocks=SPACE.blocks, folder=folder, **changes
    )


def run(problem: SearchProblem, strategy: str, advance: Advance = lambda n: None) -> SearchResult:
    settings = SearchSettings(strategy=strategy)
    return search(problem, SPACE, settings, budget=0, advance=advance)


@pytest.mark.parametrize("objective", ["cosine", "top1"])
def test_pruned_grid_decides_as_the_full_grid(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[str, list[int]] = {"exhaustive": [], "pruned": []}
    whole = run(made(objective), "exhaustive", steps["exhaustive"].append)
    problem = made(objective)
    counter = Counter(monkeypatch)
    pruned = run(problem, "pruned", steps["pruned"].append)
    assert [sum(n) for n in steps.values()] == [len(SPACE.grid())] * 2
    # Hidden states are booked for all images, also where a choice is left before it sees them.
    unused = problem.work.block_forwards - counter.count
    assert 0 <= unused <= problem.size * SPACE.blocks[-1]
    assert pruned.best == whole.best
    assert pruned.candidate == whole.candidate
    assert torch.allclose(pruned.score.per_image, whole.score.per_image, atol=1e-7)

    values = {trial.config: trial.score.value for trial in whole.trials}
    asked = {trial.config for trial in pruned.trials}
    assert asked == set(SPACE.grid())
    left = asked - {trial.config for trial in pruned.full_trials}
    assert len(left) > len(asked) / 4
    assert all(values[config] < pruned.score.value for config in left)


def test_pruned_grid_is_not_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made("cosine", tmp_path)
    one = run(first, "pruned")
    again = made("cosine", tmp_path)
    counter = Counter(monkeypatch)
    two = run(again, "pruned")
    assert counter.count == 0
    assert two.best == one.best
    assert [t.images for t in two.trials] == [t.images for t in one.trials]
    assert again.work.block_forwards == first.work.block_forwards


def test_a_floor_that_is_never_missed_changes_nothing() -> None:
    problem = made("cosine")
    config = in_order(SPACE)[3]
    plain = problem.evaluate(config)
    floored = problem.evaluate(config, stop=Floor(plain.value))
    assert torch.allclose(floored.per_image, plain.per_image, atol=1e-7)
    short = problem.evaluate(config, stop=Floor(1.0))
    assert 0 < len(short.per_image) < problem.size
    assert torch.allclose(short.per_image, plain.per_image[: len(short.per_image)], atol=1e-7)
