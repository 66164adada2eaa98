"""Tiny encoders and problems for the search tests; weights are random, sinks are planted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.evaluation import FeatureFidelity
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.search.evaluator import Setup
from regcache_deploy.search.problem import SearchProblem
from regcache_deploy.search.question import Answer, Ask
from regcache_deploy.search.register.capture import capture, rank_candidates
from regcache_deploy.work.cache import PartCache
from regcache_deploy.work.count import Work

DEPTH = 4


def encoder_and_images(count: int = 12) -> tuple[Encoder, Tensor]:
    """A random 4-block tower of open_clip at width 64, and random images."""
    from regcache_deploy.compat import import_open_clip
    from regcache_deploy.encoders.open_clip_vit import from_open_clip

    import_open_clip()
    from open_clip.transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = VisionTransformer(
            image_size=64,
            patch_size=16,
            width=64,
            layers=DEPTH,
            heads=2,
            mlp_ratio=2,
            output_dim=16,
        )
    generator = torch.Generator().manual_seed(1)
    return from_open_clip(tower.eval()), torch.randn(count, 3, 64, 64, generator=generator)


def problem_for(
    encoder: Encoder,
    images: Tensor,
    name: str = "naive",
    *,
    calibration: int = 6,
    blocks: tuple[int, ...] = (1,),
    bits: Bits | None = None,
    folder: Path | None = None,
    **changes: Any,
) -> SearchProblem:
    """Calibrates on the first images, searches on the others, by feature fidelity."""
    with torch.no_grad():
        tokens, reference = encoder.embed(images), encoder(images)
        ranking = rank_candidates(encoder, [images], blocks, max(blocks), 6)
        found = capture(encoder, lambda rows: images[rows], ranking.by_input)
    search = tokens[calibration:]
    objective = changes.pop("objective", FeatureFidelity(reference[calibration:]))
    setup = Setup(
        encoder=encoder,
        baseline=changes.pop("baseline", make_baseline(name, bits).fast()),
        calibration_tokens=tokens[:calibration],
        tokens=Fixed(search),
        objective=objective,
        batch_size=4,
        memory=changes.pop("memory", 2**30),
    )
    registers = {t: each.register() for t, each in found.items()}
    cache = PartCache(folder, {"test": 1}, Work())
    return SearchProblem(setup, len(search), registers, cache, **changes)


@dataclass(frozen=True)
class Fixed:
    """Tokens that are there already."""

    tokens: Tensor

    def __call__(self, encoder: Encoder, rows: Tensor) -> Tensor:
        return self.tokens[rows]


class OneByOne:
    """For a problem that only has `evaluate`: many questions, each answered when it is drawn."""

    work: Work
    evaluate: Any

    def evaluate_many(
        self, asked: Iterable[Ask], told: Callable[[int], None] = lambda n: None
    ) -> list[Answer]:
        found = []
        for each in asked:
            before = self.work.block_forwards
            score = self.evaluate(each.config, each.rows, each.calibration, each.stop)
            found.append(Answer(score, self.work.block_forwards - before))
            told(1)
        return found

    def look_ahead(self, asked: Iterable[Ask]) -> None:
        pass
