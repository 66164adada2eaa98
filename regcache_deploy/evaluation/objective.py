"""What a search maximises: top-1 accuracy with labels, fidelity to the float features without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

SURE = 3.0
"""Logit that the smooth accuracy gives to an image of median margin."""


@dataclass(frozen=True)
class Score:
    """Outcome of one configuration on one image set.

    Attributes:
        value: what is maximised; at most 1.
        fidelity: mean cosine between these features and the float model's; breaks ties.
        per_image: `[n]` float64, the contributions whose mean is `value`.
        cosine: `[n]` float64, fidelity image by image.
        margin: `[n]` float64, how far the prediction is from tipping over: cosine to the right
            class less the best other one; the contribution itself where there are no classes.
    """

    value: float
    fidelity: float
    per_image: Tensor
    cosine: Tensor
    margin: Tensor

    @property
    def key(self) -> tuple[float, float]:
        """Sort key: the value first, then the fidelity."""
        return round(self.value, 9), self.fidelity

    @classmethod
    def of(cls, per_image: Tensor, cosine: Tensor, margin: Tensor) -> Score:
        """The score of per-image outcomes, each `[n]`."""
        return cls(float(per_image.mean()), float(cosine.mean()), per_image, cosine, margin)


class Objective(Protocol):
    """Scores embeddings `[m, E]` of the images `rows` of a fixed set; of all without `rows`."""

    @property
    def name(self) -> str: ...

    @property
    def reference(self) -> Tensor:
        """The float model's features of all images."""
        ...

    @property
    def smooth(self) -> bool:
        """Every image has a graded outcome, so that `per_image` is fit for racing."""
        ...

    def score(self, features: Tensor, rows: Tensor | None = None) -> Score: ...


def zero_shot_predictions(features: Tensor, text_features: Tensor) -> Tensor:
    """Class of largest cosine: features `[n, E]`, text `[C, E]` normalized -> `[n]`."""
    return (F.normalize(features, dim=-1) @ text_features.T).argmax(dim=-1)


def mean_cosine(features: Tensor, reference: Tensor) -> float:
    """Mean cosine similarity of two `[n, E]` feature sets, image by image."""
    return float(F.cosine_similarity(features, reference, dim=-1).mean())


def _cosine(features: Tensor, reference: Tensor) -> Tensor:
    # In float64: near 1 the float32 result has too few digits to compare by.
    return F.cosine_similarity(features.double(), reference.double(), dim=-1)


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
    smooth: bool = False

    def score(self, features: Tensor, rows: Tensor | None = None) -> Score:
        labels = self.labels if rows is None else self.labels[rows]
        reference = self.reference if rows is None else self.reference[rows]
        similarity = F.normalize(features, dim=-1) @ self.text_features.T
        correct = (similarity.argmax(dim=-1) == labels).to(torch.float64)
        right = similarity.gather(1, labels[:, None]).squeeze(1)
        others = similarity.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        return Score.of(correct, _cosine(features, reference), (right - others).double())


@dataclass(frozen=True)
class FeatureFidelity:
    """Mean cosine to the float model's features: needs neither labels nor a text encoder."""

    reference: Tensor
    name: str = "cosine"
    smooth: bool = True

    def score(self, features: Tensor, rows: Tensor | None = None) -> Score:
        reference = self.reference if rows is None else self.reference[rows]
        cosine = _cosine(features, reference)
        return Score.of(cosine, cosine, cosine)


@dataclass(frozen=True)
class FeatureError:
    """One minus the squared error to the float features, in units of their mean square."""

    reference: Tensor
    name: str = "mse"
    smooth: bool = True

    def score(self, features: Tensor, rows: Tensor | None = None) -> Score:
        scale = self.reference.double().square().sum(dim=-1).mean()
        reference = self.reference if rows is None else self.reference[rows]
        error = (features.double() - reference.double()).square().sum(dim=-1) / scale
        return Score.of(1 - error, _cosine(features, reference), 1 - error)


def smooth_accuracy(margin: Tensor, scale: float) -> Tensor:
    """Correctness with a soft edge, `[n]` in 0..1: has less noise than 0 and 1 to race on.

    Args:
        margin: `[n]` from `Score.margin` of a top-1 objective.
        scale: margin of a typical image; it counts `sigmoid(SURE)`.
    """
    return torch.sigmoid(margin * (SURE / max(scale, 1e-12)))
