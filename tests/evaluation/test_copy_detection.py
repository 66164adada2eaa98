"""Copy detection: alterations are seeded, and the figures are right on toy features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regcache_deploy.data.copies import Alterations, altered, with_copies
from regcache_deploy.data.images import Images
from regcache_deploy.evaluation.instances import (
    InstanceTop1,
    SymmetricInstances,
    margins,
    search_objective,
)


def some_images(count: int = 6) -> Images:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pixels = torch.from_numpy(small).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return Images(pixels, (0.5,) * 3, (0.5,) * 3, "squares")


def colours(images: torch.Tensor) -> torch.Tensor:
    """An encoder of a kind: mean colour and brightness of the four quarters."""
    quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
    return torch.cat([quarters, images.mean((2, 3))], dim=1)


def test_copies_depend_on_the_seed_and_on_the_index_alone() -> None:
    pixels = some_images().pixels
    first = altered(pixels, seed=3)
    assert torch.equal(first, altered(pixels, seed=3))
    assert not torch.equal(first, altered(pixels, seed=4))
    in_parts = torch.cat([altered(pixels[:4], 3, 0), altered(pixels[4:], 3, 4)])
    assert torch.equal(first, in_parts)
    assert first.shape == pixels.shape
    assert first.dtype == torch.uint8
    assert not torch.equal(first, pixels)


def test_without_alterations_a_copy_is_the_image() -> None:
    pixels = some_images().pixels
    nothing = Alterations(area=(1, 1), flip=0, brightness=(1, 1), colour=(1, 1))
    assert torch.equal(altered(pixels, alterations=nothing), pixels)
    mirrored = altered(pixels, alterations=Alterations((1, 1), 1.0, (1, 1), (1, 1)))
    assert torch.equal(mirrored, pixels.flip(2))


def test_a_set_with_copies() -> None:
    images = some_images()
    both = with_copies(images, seed=1)
    assert len(both) == 2 * len(images)
    assert torch.equal(both.pixels[: len(images)], images.pixels)
    assert torch.equal(both.pixels[len(images) :], altered(images.pixels, 1))
    assert both.labels is None


def test_margins_of_toy_features() -> None:
    index = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    queries = torch.tensor([[5.0, 0.0], [3.0, 4.0], [4.0, 3.0], [1.0, 1.0]])
    found = margins(queries, index, torch.tensor([0, 1, 1, 0]))
    assert found.tolist() == pytest.approx([1.0, 0.2, -0.2, 0.0])


def test_the_objective_on_toy_features() -> None:
    index = torch.eye(3)
    reference = torch.eye(3)
    objective = InstanceTop1(index, reference)
    features = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
    score = objective.score(features)
    assert score.per_image.tolist() == [1, 0, 1]
    assert score.value == pytest.approx(2 / 3)
    assert score.cosine[1] == pytest.approx(0.5 / 1.25**0.5)
    assert score.margin[1] == pytest.approx(-0.5 / 1.25**0.5)
    assert not objective.smooth


def test_a_tie_is_a_miss_so_a_collapsed_encoder_finds_nothing() -> None:
    objective = InstanceTop1(torch.eye(4), torch.eye(4))
    assert objective.score(torch.ones(4, 4)).value == 0
    same = torch.ones(8, 3)
    assert SymmetricInstances(same).score(same).value == 0


def test_the_outcome_of_an_image_does_not_depend_on_the_others_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    index, features = (torch.randn(20, 5, generator=generator) for _ in range(2))
    objective = InstanceTop1(index, index + features)
    whole = objective.score(features)
    rows = torch.tensor([7, 3, 19, 0])
    part = objective.score(features[rows], rows)
    assert torch.equal(part.per_image, whole.per_image[rows])
    assert torch.allclose(part.margin, whole.margin[rows])
    assert torch.allclose(part.cosine, whole.cosine[rows])


def test_the_symmetric_form() -> None:
    images = torch.eye(3)
    copies = torch.tensor([[1.0, 0.2, 0.0], [0.9, 1.0, 0.0], [0.0, 1.0, 0.4]])
    both = torch.cat([images, copies])
    score = SymmetricInstances(both).score(both)
    assert score.per_image.tolist() == [1, 0, 1]
    assert score.fidelity == pytest.approx(1)
    assert len(score.cosine) == 3
    with pytest.raises(ValueError, match="whole set"):
        SymmetricInstances(both).score(both[:2], torch.arange(2))


def test_a_shift_of_all_features_is_seen_by_the_fixed_index_alone() -> None:
    """What the docstring says of both forms."""
    generator = torch.Generator().manual_seed(1)
    images = torch.nn.functional.normalize(torch.randn(40, 64, generator=generator), dim=-1)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    both = torch.cat([images, images])
    assert SymmetricInstances(both).score(both @ turn).value == 1
    assert InstanceTop1(images, images).score(images @ turn).value < 0.5


def test_the_objective_of_search_images() -> None:
    images = some_images(5)
    normalized = images.normalized(images.pixels)
    reference, steps = colours(normalized), list[int]()
    objective = search_objective(colours, images, reference, 2, batch_size=2, advance=steps.append)
    copies = images.normalized(altered(images.pixels, 2))
    assert torch.allclose(objective.index, colours(copies))
    assert sum(steps) == len(images)
    score = objective.score(reference)
    assert score.fidelity == pytest.approx(1)
    assert 0 <= score.value <= 1
