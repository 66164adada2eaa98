"""Let an encoder get used to its sinks: distil it to the features that it had without them.

Only the blocks behind the planted one learn, so the sinks stay what they are. The teacher is the
encoder before the planting; student and teacher see the same photographs and altered copies of
them. Sinks are left out of the loss: what a token says that has become a place to rest is free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from regcache_deploy.data.copies import Alterations, altered
from regcache_deploy.data.images import Images
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.errors import ConfigError

EMBED_BATCH = 16

VIEWS = Alterations(area=(0.3, 1.0))
"""Of the training copies; milder ones among them than copy detection has."""

VIEW_SEED = 7_000_000
"""Added to the seed, so that training never sees the copies that copy detection asks for."""


@dataclass(frozen=True)
class Adaptation:
    """How to train.

    Attributes:
        steps: optimizer steps; 0 leaves the encoder as it was planted.
        batch: images a step.
        views: altered copies of every photograph, beside itself.
        peak_lr: of AdamW, with a short warm-up and a cosine decay. The natural ViT-S/14 is stiff: a
            step of 5e-6 on every weight already makes the loss grow.
        seed: of copies and order.
        half: bfloat16 autocast: several times faster where the CPU has it.
    """

    steps: int = 150
    batch: int = 8
    views: int = 1
    peak_lr: float = 2e-6
    seed: int = 0
    half: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1 or self.views < 0 or not self.peak_lr > 0:
            raise ConfigError(f"an adaptation cannot be trained with {self}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Lessons:
    """Training images and the teacher's answers.

    Attributes:
        pixels: uint8 `[m, H, W, 3]`: photographs, then their copies, view by view.
        targets: the teacher's tokens behind its final norm, float16 `[m, N, D]`.
        spread: mean squared distance of a target from their mean: class tokens, patches. The loss
            is in these units: all features of an encoder have much in common, and a cosine near 1
            says little about what tells images apart.
    """

    pixels: Tensor
    targets: Tensor
    spread: tuple[float, float]


@torch.no_grad()
def prepare(teacher: Encoder, images: Images, adaptation: Adaptation) -> Lessons:
    """One pass of the teacher; the lessons serve any number of students."""
    seeds = [VIEW_SEED + 1000 * adaptation.seed + view for view in range(adaptation.views)]
    views = [altered(images.pixels, seed, 0, VIEWS) for seed in seeds]
    pixels = torch.cat([images.pixels, *views])
    targets = []
    for part in pixels.split(EMBED_BATCH):
        tokens = teacher.run_blocks(teacher.embed(images.normalized(part)))
        targets.append(teacher.norm("norm", tokens).half())
    found, special = torch.cat(targets), teacher.spec.num_prefix_tokens
    parts = (found[:, :special].flatten(0, 1).float(), found[:, special:].flatten(0, 1).float())
    spread = [float((part - part.mean(0)).square().sum(-1).mean()) for part in parts]
    return Lessons(pixels, found, (spread[0], spread[1]))


def adapt(
    student: Encoder,
    block: int,
    images: Images,
    lessons: Lessons,
    adaptation: Adaptation,
    report: Callable[[int, float, float], None] = lambda step, cls, patches: None,
) -> Encoder:
    """Train the blocks behind `block`.

    Args:
        student: planted in `block`; its final norm stands before the pooling, as the teacher's.
        block: k; it and what is before it stay as they are.
        images: their normalization.
        lessons: of the encoder without sinks.
        adaptation: how.
        report: called every 20 steps with step and both losses (class token, patches): squared
            error in units of the teacher's spread.
    """
    if not adaptation.steps:
        return student
    first, special = block + 1, student.spec.num_prefix_tokens
    with torch.no_grad():
        states = torch.cat(
            [
                student.run_blocks(student.embed(images.normalized(part)), 0, first)
                for part in lessons.pixels.split(EMBED_BATCH)
            ]
        )
        norms = states[:, special:].abs().amax(-1)
        plain = (norms <= 0.5 * norms.amax(-1).median()).float()
    learning = {
        name: value.clone().requires_grad_()
        for name, value in student.weights.items()
        if (match := re.match(r"blocks\.(\d+)\.", name)) and int(match[1]) >= first
    }
    model = student.replace(learning)
    optimizer = torch.optim.AdamW(learning.values(), lr=adaptation.peak_lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(adaptation.seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(adaptation.steps):
        for group in optimizer.param_groups:
            group["lr"] = adaptation.peak_lr * _schedule(step, adaptation.steps)
        if len(order) < adaptation.batch:
            order = torch.cat([order, torch.randperm(len(states), generator=generator)])
        rows, order = order[: adaptation.batch], order[adaptation.batch :]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=adaptation.half):
            tokens = model.run_blocks(states[rows], first)
        found = model.norm("norm", tokens.float())
        error = (found - lessons.targets[rows].float()).square().sum(-1)
        cls = error[:, :special].mean() / lessons.spread[0]
        weight = plain[rows]
        patches = (error[:, special:] * weight).sum() / weight.sum() / lessons.spread[1]
        optimizer.zero_grad(set_to_none=True)
        (cls + patches).backward()
        torch.nn.utils.clip_grad_norm_(learning.values(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step + 1 == adaptation.steps:
            report(step, float(cls.detach()), float(patches.detach()))
    return student.replace({name: value.detach() for name, value in learning.items()})


def _schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: 5 % warm-up, then a cosine to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
