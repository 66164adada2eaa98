"""k-NN and linear probe: how good features are where there is no text side."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""k and T of the weighted k-NN classifier of DINO (arXiv 2104.14294, section 4.1)."""

CHUNK = 1024


def knn_logits(
    features: Tensor, train: Tensor, labels: Tensor, classes: int, k: int = NEIGHBOURS
) -> Tensor:
    """Votes of the k nearest training images by cosine, weighted by `exp(cosine / T)`.

    Args:
        features: `[n, E]`.
        train: `[m, E]`.
        labels: int64 `[m]`.
        classes: number C of classes.
        k: neighbours, at most m of them.

    Returns:
        `[n, C]`.
    """
    _check(train, labels)
    bank = F.normalize(train, dim=-1)
    votes = []
    for part in features.split(CHUNK):
        cosine = F.normalize(part, dim=-1) @ bank.T
        near, index = cosine.topk(min(k, len(bank)), dim=1)
        out = torch.zeros(len(part), classes)
        votes.append(out.scatter_add_(1, labels[index], (near / TEMPERATURE).exp()))
    return torch.cat(votes)


def linear_probe_logits(
    features: Tensor, train: Tensor, labels: Tensor, classes: int, c: float = 1.0
) -> Tensor:
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
    from sklearn.linear_model import LogisticRegression

    _check(train, labels)
    mean, spread = train.mean(dim=0), train.std(dim=0).clamp_min(1e-6)
    model = LogisticRegression(C=c, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged after max_iter: good enough for a probe
        model.fit(((train - mean) / spread).numpy(), labels.numpy())
    scores = torch.as_tensor(model.decision_function(((features - mean) / spread).numpy()))
    if scores.ndim == 1:  # two classes have one score
        scores = torch.stack([-scores, scores], dim=1)
    out = torch.full((len(features), classes), -torch.inf, dtype=scores.dtype)
    out[:, torch.as_tensor(model.classes_)] = scores
    return out.float()


def _check(train: Tensor, labels: Tensor) -> None:
    if len(train) != len(labels) or len(labels.unique()) < 2:
        raise DataError(
            f"a probe needs labelled training images of at least two classes; there are "
            f"{len(train)} images of {len(labels.unique())} classes: pass --train-data"
        )
