"""k-NN and linear probe: how good features are where there is no text side."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from regcache_engines.engine import unit_length

from ..compat import require
from ..errors import DataError
from .metrics import Array, top_indices

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""k and T of the weighted k-NN classifier of DINO (arXiv 2104.14294, section 4.1)."""

CHUNK = 1024


def knn_logits(
    features: npt.ArrayLike,
    train: npt.ArrayLike,
    labels: npt.ArrayLike,
    classes: int,
    k: int = NEIGHBOURS,
) -> Array:
    """Votes of the k nearest training images by cosine, weighted by `exp(cosine / T)`.

    Args:
        features: `[n, E]`.
        train: `[m, E]`.
        labels: int64 `[m]`.
        classes: number C of classes.
        k: neighbours, at most m of them.

    Returns:
        `[n, C]`; a class without a vote has -inf.
    """
    known, truth = np.asarray(train), np.asarray(labels)
    _check(known, truth)
    bank = unit_length(known)
    votes = []
    for start in range(0, len(np.asarray(features)), CHUNK):
        cosine = unit_length(np.asarray(features)[start : start + CHUNK]) @ bank.T
        index = top_indices(cosine, min(k, len(bank)))
        near = np.take_along_axis(cosine, index, axis=1)
        out = np.zeros((len(cosine), classes), np.float32)
        np.add.at(out, (np.arange(len(out))[:, None], truth[index]), np.exp(near / TEMPERATURE))
        out[out == 0] = -np.inf  # a vote is never 0
        votes.append(out)
    return np.concatenate(votes)


def linear_probe_logits(
    features: npt.ArrayLike,
    train: npt.ArrayLike,
    labels: npt.ArrayLike,
    classes: int,
    c: float = 1.0,
) -> Array:
    """Multinomial logistic regression on standardized training features.

    Args:
        features: `[n, E]`.
        train: `[m, E]`.
        labels: int64 `[m]`.
        classes: number C of classes; one that is not in `labels` gets -inf.
        c: inverse of the L2 penalty.

    Returns:
        `[n, C]`.
    """
    require("sklearn", "search")
    from sklearn.linear_model import LogisticRegression

    known, truth = np.asarray(train, np.float32), np.asarray(labels)
    _check(known, truth)
    mean, spread = known.mean(axis=0), np.maximum(known.std(axis=0, ddof=1), 1e-6)
    model = LogisticRegression(C=c, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged after max_iter: good enough for a probe
        model.fit((known - mean) / spread, truth)
    scores = model.decision_function((np.asarray(features, np.float32) - mean) / spread)
    if scores.ndim == 1:  # two classes have one score
        scores = np.stack([-scores, scores], axis=1)
    out = np.full((len(scores), classes), -np.inf, np.float32)
    out[:, model.classes_] = scores
    return out


def _check(train: Array, labels: Array) -> None:
    if len(train) != len(labels) or len(np.unique(labels)) < 2:
        raise DataError(
            f"a probe needs labelled training images of at least two classes; there are "
            f"{len(train)} images of {len(np.unique(labels))} classes: pass --train-data"
        )
