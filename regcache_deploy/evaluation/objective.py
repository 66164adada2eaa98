"""What a search maximises: top-1 accuracy with labels, fidelity to the float features without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """Outcome of one configuration on one image set.

    Attributes:
        value: what is maximised, in [0, 1].
        fidelity: mean cosine between these features and the float model's; breaks ties.
        per_image: `[n]`, the contributions whose mean is `value`.
    """

    value: float
    fidelity: float
    per_image: Tensor

    @property
    def key(self) -> tuple[float, float]:
        """Sort key: the value first, then the fidelity."""
        return round(self.value, 9), self.fidelity


class Objective(Protocol):
    """Scores embeddings `[n, E]` of a fixed image set."""

    @property
    def name(self) -> str: ...

    def score(self, features: Tensor) -> Score: ...


def zero_shot_predictions(features: Tensor, text_features: Tensor) -> Tensor:
    """Class of largest cosine: features `[n, E]`, text `[C, E]` normalized -> `[n]`."""
    return (F.normalize(features, dim=-1) @ text_features.T).argmax(dim=-1)


def mean_cosine(features: Tensor, reference: Tensor) -> float:
    """Mean cosine similarity of two `[n, E]` feature sets, image by image."""
    return float(F.cosine_similarity(features, reference, dim=-1).mean())


@dataclass(frozen=True)
class ZeroShotTop1:
    """Top-1 accuracy of the zero-shot head.

    Attributes:
        text_features: `[C, E]`, L2-normalized.
        labels: `[n]` class indices.
        reference: float model's features `[n, E]`.
    """

    text_features: Tensor
    labels: Tensor
    reference: Tensor
    name: str = "top1"

    def score(self, features: Tensor) -> Score:
        correct = zero_shot_predictions(features, self.text_features) == self.labels
        per_image = correct.to(torch.float64)
        return Score(float(per_image.mean()), mean_cosine(features, self.reference), per_image)


@dataclass(frozen=True)
class FeatureFidelity:
    """Mean cosine to the float model's features: needs neither labels nor a text encoder."""

    reference: Tensor
    name: str = "cosine"

    def score(self, features: Tensor) -> Score:
        cosine = F.cosine_similarity(features, self.reference, dim=-1).to(torch.float64)
        value = float(cosine.mean())
        return Score(value, value, cosine)
