"""The bundle on a real runtime, image by image beside the simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_engines.engine import Engine

from ..encoders.regcache import RegCache
from ..errors import VerificationError
from ..quantization.simulate import Calibration
from ..work.gathered import Gathered
from .objective import zero_shot_predictions

MIN_TOP1_AGREEMENT = 0.995
MIN_MEAN_COSINE = 0.9999
CONTROL_FACTOR = 4.0
"""How much farther from the simulation than rounding noise the deployed graph may be."""


@dataclass(frozen=True)
class Agreement:
    """How the deployed graph agrees with the simulation on the same images.

    Attributes:
        top1: share of images with the same predicted class, or None without a text head.
        mean_cosine, min_cosine: of the embeddings.
        n: images.
        control: mean cosine between the simulation in float32 and in float64, measured only where
            the deployed graph misses the usual bound. In a deep encoder a single rounding tie
            early on moves codes everywhere behind it; nothing can agree with the float32
            simulation better than the simulation agrees with itself.
        control_top1: share of images with the same class in these two, measured likewise. Where
            quantization has broken an encoder, its logits lie close together, and noise decides.
    """

    top1: float | None
    mean_cosine: float
    min_cosine: float
    n: int
    control: float | None = None
    control_top1: float | None = None

    def to_json(self) -> dict[str, float]:
        return {k: v for k, v in asdict(self).items() if v is not None}

    @property
    def bound(self) -> float:
        """The mean cosine that is asked for."""
        if self.control is None:
            return MIN_MEAN_COSINE
        return min(MIN_MEAN_COSINE, 1 - CONTROL_FACTOR * (1 - self.control))

    @property
    def top1_bound(self) -> float:
        """The share of equal classes that is asked for."""
        if self.control_top1 is None:
            return MIN_TOP1_AGREEMENT
        return min(MIN_TOP1_AGREEMENT, 1 - CONTROL_FACTOR * (1 - self.control_top1))

    @property
    def within(self) -> bool:
        """Whether both bounds hold."""
        same = self.top1 is None or self.top1 >= self.top1_bound
        return same and self.mean_cosine >= self.bound

    def check(self) -> None:
        """Raise VerificationError where the graph that runs is not the one that was simulated."""
        if self.top1 is not None and self.top1 < self.top1_bound:
            raise VerificationError(
                f"the deployed graph predicts the simulation's class on only {self.top1:.2%} of "
                f"{self.n} images (at least {self.top1_bound:.1%} expected)"
            )
        if not self.mean_cosine >= self.bound:
            raise VerificationError(
                f"the deployed embeddings have mean cosine {self.mean_cosine:.6f} with the "
                f"simulation's (at least {self.bound:.6f} expected)"
            )


def float64_control(
    calibration: Calibration, batches: Iterable[Tensor], text_features: Tensor | None
) -> Agreement:
    """Agreement of the simulation in float32 with itself in float64, on batches of images.

    Quantizer parameters and integer codes stay what they are; only the arithmetic in between
    gets more exact.
    """
    encoder = calibration.encoder.replace(
        {name: weight.double() for name, weight in calibration.encoder.weights.items()}
    )
    regcache = calibration.regcache
    if regcache is not None:
        register = {block: value.double() for block, value in regcache.register.items()}
        regcache = RegCache(regcache.config, register)
    singles, doubles = [], []
    numerics = calibration.numerics(), calibration.numerics()
    for images in batches:
        singles.append(calibration.encoder(images, numerics[0], calibration.regcache))
        doubles.append(encoder(images.double(), numerics[1], regcache).float())
    return compare_features(torch.cat(doubles), torch.cat(singles), text_features)


def run_engine(
    engine: Engine, batches: Iterable[Tensor], advance: Callable[[int], None] = lambda n: None
) -> Tensor:
    """Embeddings `[n, E]` of a deployed graph over batches of normalized images."""
    features = Gathered()
    for images in batches:
        features.add(torch.from_numpy(engine.infer(images.numpy())))
        advance(1)
    return features.rows


def compare_features(
    deployed: Tensor, simulated: Tensor, text_features: Tensor | None
) -> Agreement:
    """Compare embeddings `[n, E]` of the deployed graph with the simulation's."""
    cosine = F.cosine_similarity(deployed.double(), simulated.double(), dim=-1)
    top1 = None
    if text_features is not None:
        same = zero_shot_predictions(deployed, text_features) == zero_shot_predictions(
            simulated, text_features
        )
        top1 = float(same.double().mean())
    return Agreement(top1, float(cosine.mean()), float(cosine.min()), len(cosine))
