"""The bundle on a real runtime, image by image beside the simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from regcache_engines.engine import Engine
from torch import Tensor

from ..errors import VerificationError
from .objective import zero_shot_predictions

MIN_TOP1_AGREEMENT = 0.995
MIN_MEAN_COSINE = 0.9999


@dataclass(frozen=True)
class Agreement:
    """How the deployed graph agrees with the simulation on the same images.

    Attributes:
        top1: share of images with the same predicted class, or None without a text head.
        mean_cosine, min_cosine: of the embeddings.
        n: images.
    """

    top1: float | None
    mean_cosine: float
    min_cosine: float
    n: int

    def to_json(self) -> dict[str, float]:
        values = {"top1": self.top1, "mean_cosine": self.mean_cosine}
        values |= {"min_cosine": self.min_cosine, "n": self.n}
        return {k: v for k, v in values.items() if v is not None}

    def check(self) -> None:
        """Raise VerificationError where the graph that runs is not the one that was simulated."""
        if self.top1 is not None and self.top1 < MIN_TOP1_AGREEMENT:
            raise VerificationError(
                f"the deployed graph predicts the simulation's class on only {self.top1:.2%} of "
                f"{self.n} images (at least {MIN_TOP1_AGREEMENT:.1%} expected)"
            )
        if not self.mean_cosine >= MIN_MEAN_COSINE:
            raise VerificationError(
                f"the deployed embeddings have mean cosine {self.mean_cosine:.6f} with the "
                f"simulation's (at least {MIN_MEAN_COSINE} expected)"
            )


def run_engine(
    engine: Engine, batches: Iterable[Tensor], advance: Callable[[int], None] = lambda n: None
) -> Tensor:
    """Embeddings `[n, E]` of a deployed graph over batches of normalized images."""
    features = []
    for images in batches:
        features.append(torch.from_numpy(engine.infer(images.numpy())))
        advance(1)
    return torch.cat(features)


def compare_features(deployed: Tensor, simulated: Tensor, text_features: Tensor | None) -> Agreement:
    """Compare embeddings `[n, E]` of the deployed graph with the simulation's."""
    cosine = F.cosine_similarity(deployed.double(), simulated.double(), dim=-1)
    top1 = None
    if text_features is not None:
        same = zero_shot_predictions(deployed, text_features) == zero_shot_predictions(
            simulated, text_features
        )
        top1 = float(same.double().mean())
    return Agreement(top1, float(cosine.mean()), float(cosine.min()), len(cosine))
