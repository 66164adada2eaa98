"""A search on activations that overflow: a typed error at every stage, and a state that resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.errors import DataError
from regcache_deploy.evaluation import FeatureFidelity
from regcache_deploy.search.sensitivity import measure_sensitivity
from tests.search.search_helpers import Fixed, encoder_and_images, problem_for


def overflowing(encoder: Encoder) -> Encoder:
    """Finite weights; the hidden layer of block 2 is beyond float32."""
    name = "blocks.2.mlp.fc1.weight"
    return encoder.replace({name: torch.full_like(encoder.weights[name], 3e38)})


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def made() -> tuple[Encoder, Tensor, Tensor]:
    encoder, images = encoder_and_images()
    return encoder, images, encoder.embed(images)


def test_sensitivity_names_the_layer() -> None:
    encoder, images, tokens = made()
    objective = FeatureFidelity(encoder(images))
    with pytest.raises(DataError, match=r"blocks\.2\.mlp\.fc2"):
        measure_sensitivity(
            overflowing(encoder), tokens, lambda _, rows: tokens[rows], len(images), objective
        )


def test_calibration_names_the_layer() -> None:
    encoder, images, _ = made()
    problem = problem_for(encoder, images)
    problem = replace(problem, setup=replace(problem.setup, encoder=overflowing(encoder)))
    with pytest.raises(DataError, match=r"blocks\.2\.mlp\.fc2"):
        problem.evaluate(RegCacheConfig(1, 2, 1, 1))


def test_one_bad_search_image_says_so_and_earlier_parts_stay(tmp_path: Path) -> None:
    encoder, images, _ = made()
    problem = problem_for(encoder, images, folder=tmp_path)
    first, second = RegCacheConfig(1, 0, 1, 0), RegCacheConfig(1, 2, 1, 1)
    known = problem.evaluate(first)
    kept = set(tmp_path.iterdir())
    good = problem.setup.tokens(encoder, problem.all_rows)
    good[3] = torch.nan
    damaged = problem_for(encoder, images, folder=tmp_path)
    damaged = replace(damaged, setup=replace(damaged.setup, tokens=Fixed(good)))
    with pytest.raises(DataError, match="NaN or infinite features"):
        damaged.evaluate(second)
    assert kept <= set(tmp_path.iterdir())
    again = problem_for(encoder, images, folder=tmp_path)
    assert again.evaluate(first).per_image.tolist() == known.per_image.tolist()
    assert again.work.resumed > 0
