"""Evaluate a bundle beside the simulation and FP32 on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.stream import ImageStream
from ..errors import DataError
from ..work.progress import Reporter
from .metrics import classification_metrics, fidelity_metrics, resolution_line, zero_shot_logits
from .paired import PairedComparison, compare_answers, compare_paired
from .rows import Rows
from .runners import Runner

ZERO_SHOT = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
FIDELITY = "fidelity"
KNN, PROBE = "knn", "linear_probe"


@dataclass(frozen=True)
class Record:
    """One runner on one data set, under clip_benchmark's names.

    Attributes:
        dataset, task: what was measured.
        on: runner.
        metrics: by clip_benchmark's names.
        n: images.
        paired: against the reference runner on the same images, or None for it itself.
        resolution: how many images half a point takes, or None where nothing is counted.
    """

    dataset: str
    task: str
    on: str
    metrics: dict[str, float]
    n: int
    paired: PairedComparison | None = None
    resolution: str | None = None

    def to_json(self, model: str, pretrained: str | None) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "model": model,
            "pretrained": pretrained,
            "task": self.task,
            "metrics": self.metrics,
            "language": "en",
            "on": self.on,
            "n": self.n,
            "paired": self.paired.to_json() if self.paired else None,
            "resolution": self.resolution,
        }


@dataclass(frozen=True)
class Embedded:
    """Embeddings of one data set.

    Attributes:
        features: runner -> `[n, E]`.
        keys: names of the images.
        labels: int64 `[n]`, or None.
    """

    features: dict[str, Tensor] = field(repr=False)
    keys: tuple[str, ...]
    labels: Tensor | None


@torch.no_grad()
def embed(
    stream: ImageStream, runners: Sequence[Runner], batch_size: int, reporter: Reporter
) -> Embedded:
    """One pass over the images; every runner sees every batch.

    Raises:
        DataError: no image, or too many unreadable ones.
    """
    features = {runner.name: Rows() for runner in runners}
    keys: list[str] = []
    labels: list[Tensor] = []
    names = ", ".join(features)
    with reporter.stage(f"{stream.source} on {names}", stream.length) as advance:
        for batch in stream.batches(batch_size):
            for runner in runners:
                features[runner.name].append(runner.run(batch))
            keys += batch.keys
            if batch.labels is not None:
                labels.append(batch.labels)
            advance(len(batch.keys))
    return Embedded(
        {name: rows.tensor() for name, rows in features.items()},
        tuple(keys),
        torch.cat(labels) if labels else None,
    )


def classify(
    dataset: str, task: str, logits: dict[str, Tensor], labels: Tensor, seed: int
) -> list[Record]:
    """Records of a classification; the first runner is the reference of the paired statistics.

    Args:
        dataset: name for the records.
        task: `zeroshot_classification`, `knn` or `linear_probe`.
        logits: runner -> `[n, C]`.
        labels: int64 `[n]`.
        seed: of the bootstrap.
    """
    if not len(labels):
        raise DataError(f"{dataset}: no labelled image to classify")
    correct = {name: (value.argmax(dim=1) == labels).numpy() for name, value in logits.items()}
    reference = next(iter(correct))
    records = []
    for name, value in logits.items():
        paired, resolution = None, None
        if name != reference:
            paired = compare(correct[reference], correct[name], seed)
            resolution = resolution_line(paired.n, paired.lost, paired.won)
        metrics = classification_metrics(value, labels)
        records.append(Record(dataset, task, name, metrics, len(labels), paired, resolution))
    return records


def compare(reference: Any, model: Any, seed: int) -> PairedComparison:
    """Paired comparison of two arrays of hits."""
    return compare_paired(np.asarray(reference, int), np.asarray(model, int), seed)


def compare_captions(
    reference: Tensor, found: Tensor, image_of_text: Tensor, seed: int
) -> tuple[PairedComparison, str]:
    """Paired comparison of image retrieval, and its resolution, both counted by image.

    Captions of one image are found or lost together more often than those of two.

    Args:
        reference, found: whether each caption finds its image, bool `[m]`.
        image_of_text: int64 `[m]`; every image has a caption.
        seed: of the bootstrap.
    """
    captions = image_of_text.bincount()
    change = torch.zeros_like(captions)
    change.index_add_(0, image_of_text, found.long() - reference.long())
    pair = compare_answers(change.numpy(), captions.numpy(), seed)
    of_recall = change.double() / captions.double().mean()
    line = resolution_line(
        pair.n,
        pair.lost,
        pair.won,
        float(of_recall.square().mean()),
        "won or lost captions on balance",
    )
    return pair, line


def zero_shot_records(
    dataset: str, embedded: Embedded, head: Tensor, scale: float, seed: int
) -> list[Record]:
    assert embedded.labels is not None
    logits = {n: zero_shot_logits(f, head, scale) for n, f in embedded.features.items()}
    return classify(dataset, ZERO_SHOT, logits, embedded.labels, seed)


def fidelity_records(dataset: str, embedded: Embedded) -> list[Record]:
    """How near every runner's embeddings are to the first one's; needs no labels."""
    reference = next(iter(embedded.features))
    return [
        Record(
            dataset,
            FIDELITY,
            name,
            fidelity_metrics(features, embedded.features[reference]),
            len(features),
        )
        for name, features in embedded.features.items()
        if name != reference
    ]


def top_classes(
    logits: Tensor, labels: Sequence[str], keys: Sequence[str], on: str, count: int
) -> list[dict[str, Any]]:
    """`[{image, on, top: [{index, label, score}]}]`; the score is softmax over all classes."""
    scores, indices = logits.softmax(dim=1).topk(min(count, logits.shape[1]), dim=1)
    return [
        {
            "image": key,
            "on": on,
            "top": [
                {"index": i, "label": labels[i], "score": s}
                for i, s in zip(row.tolist(), values.tolist(), strict=True)
            ],
        }
        for key, row, values in zip(keys, indices, scores, strict=True)
    ]
