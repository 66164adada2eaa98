"""Sinks planted into any encoder: the ratio asked for, the rest untouched, and getting used."""

from __future__ import annotations

import functools

import pytest
import torch
from natural_adapt import Adaptation, adapt, prepare
from natural_sinks import Planting, Severity, flattest, plant, planted_direction
from plant_natural import caution

from regcache_deploy.compat import import_open_clip
from regcache_deploy.data.images import Images
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.timm_vit import from_timm
from regcache_deploy.errors import ConfigError

RATIO, BLOCK = 20.0, 3


@functools.cache
def healthy() -> Encoder:
    import_open_clip()
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_small_patch14_dinov2",
            img_size=112,
            embed_dim=64,
            depth=6,
            num_heads=2,
            num_classes=0,
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("ls1.gamma", "ls2.gamma")):
                parameter.fill_(0.2)
    return from_timm(model.eval())


@functools.cache
def photographs() -> Images:
    """Noise on some patches, next to none on others."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(24, 112, 112, 3, generator=generator)
    strength = torch.rand(24, 8, 8, 1, generator=generator) ** 2
    strength = strength.repeat_interleave(14, 1).repeat_interleave(14, 2)
    pixels = (128 + 60 * strength * noise).clamp(0, 255).to(torch.uint8)
    return Images(pixels, (0.5,) * 3, (0.25,) * 3, "noise")


@functools.cache
def planted(seed: int = 0) -> tuple[Encoder, Severity]:
    images = photographs()
    return plant(healthy(), images.normalized(images.pixels), Planting(RATIO, seed, BLOCK, 3.0))


def test_the_ratio_is_the_one_asked_for() -> None:
    found = planted()[1]
    assert found.token_ratio == pytest.approx(RATIO, rel=0.25)
    assert found.spike_ratio == pytest.approx(RATIO, rel=0.4)
    assert found.sinks_least < found.sinks_mean < found.sinks_most


def test_two_units_change_and_nothing_else() -> None:
    before, after = healthy().weights, planted()[0].weights
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("fc1.weight", "fc1.bias", "fc2.weight")
    assert changed == {f"blocks.{b}.mlp.{p}" for b in (BLOCK - 1, BLOCK) for p in parts}
    name = f"blocks.{BLOCK}.mlp.fc2.weight"
    columns = (before[name] != after[name]).any(0)
    assert columns.sum() == 1
    assert (after[name][:, columns] != 0).all()  # dense


def test_planting_is_seeded() -> None:
    images = photographs()
    again, _ = plant(healthy(), images.normalized(images.pixels), Planting(RATIO, 0, BLOCK, 3.0))
    name = f"blocks.{BLOCK}.mlp.fc2.weight"
    assert torch.equal(again.weights[name], planted()[0].weights[name])
    assert not torch.equal(planted_direction(64, 0), planted_direction(64, 1))
    direction = planted_direction(64, 5)
    assert direction.abs().max() == 1
    assert (direction.abs() > 0.4).sum() == 2


def test_the_flattest_patches() -> None:
    images = torch.randn(2, 3, 28, 42)
    images[:, :, :14, :14] = 0.5
    found = flattest(images, (14, 14))
    assert found.shape == (2, 6)
    assert found[:, 0].all()
    assert (found.sum(1) == 4).all()


def test_getting_used_changes_the_later_blocks_and_comes_nearer_to_the_teacher() -> None:
    images, (student, _) = photographs(), planted()
    how = Adaptation(steps=40, batch=8, views=1, peak_lr=3e-4, half=False)
    lessons = prepare(healthy(), images, how)
    assert len(lessons.pixels) == 2 * len(images)
    losses: list[float] = []
    used = adapt(student, BLOCK, images, lessons, how, lambda s, c, p: losses.append(c + p))
    assert losses[-1] < 0.8 * losses[0]
    for name, value in student.weights.items():
        later = name.startswith("blocks.") and int(name.split(".")[1]) > BLOCK
        assert torch.equal(value, used.weights[name]) != later
    assert not any(value.requires_grad for value in used.weights.values())
    assert adapt(student, BLOCK, images, lessons, Adaptation(steps=0)) is student


def test_what_cannot_be_planted_or_trained_is_refused() -> None:
    images = photographs()
    shown = images.normalized(images.pixels)
    with pytest.raises(ConfigError, match="at least 2 times"):
        Planting(1.5)
    with pytest.raises(ConfigError, match="a block before"):
        Planting(4, block=0)
    with pytest.raises(ConfigError, match="plant an earlier one"):
        plant(healthy(), shown, Planting(4, block=5))
    with pytest.raises(ConfigError, match="cannot be trained"):
        Adaptation(batch=0)


def test_the_caution_says_planted() -> None:
    assert "planted sinks (norm ratio 36, seed 1)" in caution(Planting(36, 1), 0)
    assert "never trained with them" in caution(Planting(36, 1), 0)
    assert "got used to them in 100 steps" in caution(Planting(36, 1), 100)
