"""Metrics under clip_benchmark's names, and how many images a difference takes to be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from regcache_engines.engine import unit_length

Array = npt.NDArray[Any]

INSTANCES = "instances"
"""Copy detection: the task of `margins`."""

HALF_POINT = 0.005
Z_95 = 1.959964
PIECE = 1024


def classification_metrics(logits: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float]:
    """`acc1`, `acc5` (with at least five classes) and `mean_per_class_recall`.

    Args:
        logits: `[n, C]`; a class at -inf is not among the five, however few others there are.
        labels: int64 `[n]`.
    """
    scores, truth = np.asarray(logits), np.asarray(labels)
    first = scores.argmax(axis=1) == truth
    metrics = {"acc1": float(first.mean())}
    if scores.shape[1] >= 5:
        within = (top_indices(scores, 5) == truth[:, None]).any(axis=1)
        within &= np.take_along_axis(scores, truth[:, None], axis=1)[:, 0] > -np.inf
        metrics["acc5"] = float((first | within).mean())
    recalls = [first[truth == label].mean() for label in np.unique(truth)]
    metrics["mean_per_class_recall"] = float(np.mean(recalls))
    return metrics


def top_indices(scores: Array, count: int) -> npt.NDArray[np.int64]:
    """The `count` highest of every row, in no order: `[n, C]` -> `[n, count]`."""
    if count >= scores.shape[1]:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    found: npt.NDArray[np.int64] = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return found


def cosines(features: npt.ArrayLike, reference: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Cosine of every row with its counterpart, `[n]`."""
    a, b = (unit_length(np.asarray(rows, np.float64)) for rows in (features, reference))
    found: npt.NDArray[np.float64] = (a * b).sum(axis=1)
    return found


def fidelity_metrics(features: npt.ArrayLike, reference: npt.ArrayLike) -> dict[str, float]:
    """Without labels: cosine to the reference's embeddings, and their mean squared difference."""
    a, b = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    cosine = cosines(a, b)
    error = float(np.square(a - b).mean())
    return {
        "mean_cosine": float(cosine.mean()),
        "min_cosine": float(cosine.min()),
        "feature_mse": error,
        "relative_feature_mse": error / max(float(np.square(b).mean()), 1e-30),
    }


def margins(
    queries: npt.ArrayLike, index: npt.ArrayLike, own: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Cosine to the own entry less the best other one, float64 `[m]`; 0 or less is a miss.

    Args:
        queries: `[m, E]`.
        index: `[n, E]`, n at least 2.
        own: int64 `[m]`, the entry that a query shall find.
    """
    a, b = (unit_length(np.asarray(rows, np.float64)) for rows in (queries, index))
    return unit_margins(a, b, np.asarray(own))


def unit_margins(queries: Array, index: Array, own: Array) -> npt.NDArray[np.float64]:
    """`margins` of what is of unit length, in pieces: all pairs of 50,000 would take 20 GB."""
    found = np.empty(len(queries))
    for first in range(0, len(queries), PIECE):
        a = queries[first : first + PIECE].astype(np.float64)
        wanted, right = own[first : first + PIECE], np.empty(len(a))
        others = np.full(len(a), -np.inf)
        for start in range(0, len(index), PIECE):
            b = index[start : start + PIECE].astype(np.float64)
            similarity = a @ b.T
            (here,) = np.nonzero((wanted >= start) & (wanted < start + len(b)))
            columns = wanted[here] - start
            right[here] = similarity[here, columns]
            similarity[here, columns] = -np.inf
            np.maximum(others, similarity.max(axis=1), out=others)
        found[first : first + PIECE] = right - others
    return found


def retrieval_metrics(
    images: npt.ArrayLike,
    texts: npt.ArrayLike,
    image_of_text: npt.ArrayLike,
    ks: Sequence[int] = (1, 5),
) -> tuple[dict[str, float], dict[str, npt.NDArray[np.bool_]]]:
    """Recall at k in both directions, as clip_benchmark counts it.

    Args:
        images: embeddings `[n, E]`.
        texts: embeddings `[m, E]`.
        image_of_text: int64 `[m]`, index of the image that a text describes.

    Returns:
        Metrics, and per direction the hits at 1 (`[m]` of texts, `[n]` of images). A text finds
        its image; an image finds any of its texts.
    """
    pictures, lines = (unit_length(np.asarray(rows, np.float32)) for rows in (images, texts))
    owner, similarity = np.asarray(image_of_text), lines @ pictures.T
    metrics: dict[str, float] = {}
    hits: dict[str, npt.NDArray[np.bool_]] = {}
    for k in ks:
        by_text = (top_indices(similarity, k) == owner[:, None]).any(axis=1)
        best = owner[top_indices(similarity.T, k)]
        by_image = (best == np.arange(len(pictures))[:, None]).any(axis=1)
        metrics[f"image_retrieval_recall@{k}"] = float(by_text.mean())
        metrics[f"text_retrieval_recall@{k}"] = float(by_image.mean())
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
