"""From an image's features to the likeliest classes of a head, as libregcache finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .engine import MIN_NORM, FloatArray


@dataclass(frozen=True)
class Prediction:
    """One class of an image.

    Attributes:
        index: of the class in the head.
        label: its name; None where the head has none.
        score: softmax of logit scale x cosine over all classes, in [0, 1].
    """

    index: int
    label: str | None
    score: float


def best_classes(
    features: FloatArray, head: FloatArray, scale: float, labels: Sequence[str], top: int
) -> list[Prediction]:
    """The likeliest classes of one image, as libregcache's `classify.cpp` finds them.

    Args:
        features: `[E]`.
        head: `[classes, E]`, L2-normalized.
        scale: factor on the cosines.
        labels: one a class, or none.
        top: so many, or all where there are fewer.
    """
    # in float64, and equal scores in the order of the head
    exact = features.astype(np.float64)
    logits = scale / max(float(np.linalg.norm(exact)), MIN_NORM) * (head.astype(np.float64) @ exact)
    order = np.argsort(-logits, kind="stable")[:top]
    scores = np.exp(logits - logits[order[0]])
    scores /= scores.sum()
    return [
        Prediction(int(index), labels[index] if labels else None, float(scores[index]))
        for index in order
    ]
