"""Metrics under clip_benchmark's names, and how many images a difference takes to be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_POINT = 0.005
Z_95 = 1.959964


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """`acc1`, `acc5` (with at least five classes) and `mean_per_class_recall`.

    Args:
        logits: `[n, C]`.
        labels: int64 `[n]`.
    """
    found = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = found == labels[:, None]
    metrics = {"acc1": float(hits[:, 0].double().mean())}
    if logits.shape[1] >= 5:
        metrics["acc5"] = float(hits.any(dim=1).double().mean())
    present = labels.unique()
    recalls = [hits[labels == label, 0].double().mean() for label in present]
    metrics["mean_per_class_recall"] = float(torch.stack(recalls).mean())
    return metrics


def zero_shot_logits(features: Tensor, head: Tensor, scale: float) -> Tensor:
    """Cosine similarities times the logit scale: `[n, E]`, `[C, E]` -> `[n, C]`."""
    return scale * F.normalize(features, dim=-1) @ head.T


def fidelity_metrics(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Without labels: cosine to the reference's embeddings, and their mean squared difference."""
    a, b = features.double(), reference.double()
    cosine = F.cosine_similarity(a, b, dim=-1)
    error = (a - b).square().mean()
    return {
        "mean_cosine": float(cosine.mean()),
        "min_cosine": float(cosine.min()),
        "feature_mse": float(error),
        "relative_feature_mse": float(error / b.square().mean().clamp_min(1e-30)),
    }


def retrieval_metrics(
    images: Tensor, texts: Tensor, image_of_text: Tensor, ks: Sequence[int] = (1, 5)
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Recall at k in both directions, as clip_benchmark counts it.

    Args:
        images: embeddings `[n, E]`.
        texts: embeddings `[m, E]`.
        image_of_text: int64 `[m]`, index of the image that a text describes.

    Returns:
        Metrics, and per direction the hits at 1 (`[m]` of texts, `[n]` of images). A text finds
        its image; an image finds any of its texts.
    """
    similarity = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    metrics: dict[str, float] = {}
    hits: dict[str, Tensor] = {}
    for k in ks:
        found = similarity.topk(min(k, len(images)), dim=1).indices
        by_text = (found == image_of_text[:, None]).any(dim=1)
        best = similarity.T.topk(min(k, len(texts)), dim=1).indices
        by_image = (image_of_text[best] == torch.arange(len(images))[:, None]).any(dim=1)
        metrics[f"image_retrieval_recall@{k}"] = float(by_text.double().mean())
        metrics[f"text_retrieval_recall@{k}"] = float(by_image.double().mean())
        if k == min(ks):
            hits = {"image_retrieval": by_text, "text_retrieval": by_image}
    return metrics, hits


def resolution_line(
    n: int,
    lost: int,
    won: int,
    mean_square: float | None = None,
    changed: str = "changed sides",
) -> str:
    """How fine this comparison sees, and what half a point would take.

    The paired difference has a standard error of `sqrt(mean square of a change / n)` at most; the
    95 % interval is as narrow as half a point where `1.96 * that` is.

    Args:
        n: images.
        lost, won: images that changed for the worse and for the better.
        mean_square: of the change of an image; None where each is by one: the discordant share.
        changed: what these images did.
    """
    if not lost + won:
        return (
            f"no image of {n} {changed}; with 95 % confidence fewer than "
            f"{100 * (1 - 0.05 ** (1 / n)):.2g} % do"
        )
    square = (lost + won) / n if mean_square is None else mean_square
    needed = math.ceil(square * (Z_95 / HALF_POINT) ** 2)
    sees = 100 * Z_95 * math.sqrt(square / n)
    return (
        f"{lost + won} of {n} images {changed}: a difference of {sees:.2f} points can be "
        f"seen; to resolve 0.5 point at 95 % takes {needed} images"
    )
