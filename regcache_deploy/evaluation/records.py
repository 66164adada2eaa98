"""Evaluate a bundle beside the simulation and FP32 on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regcache_engines.engine import zero_shot
from regcache_engines.predictions import best_classes

from ..data.stream import Batch, ImageStream
from ..errors import DataError
from ..work.progress import Reporter
from .metrics import Array, classification_metrics, fidelity_metrics, resolution_line
from .paired import PairedComparison, compare_answers, compare_paired
from .rows import Rows
from .runner import Runner

if TYPE_CHECKING:
    from .crew import Crew, Names

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

    features: dict[str, Array] = field(repr=False)
    keys: tuple[str, ...]
    labels: npt.NDArray[np.int64] | None


def embed(
    stream: ImageStream,
    runners: Sequence[Runner],
    batch_size: int,
    reporter: Reporter,
    crew: Crew | None = None,
) -> Embedded:
    """One pass over the images; every runner sees every batch.

    Args:
        crew: workers that stand in for the runners in torch.

    Raises:
        DataError: no image, or too many unreadable ones.
    """
    features = {runner.name: Rows() for runner in runners}
    keys: list[str] = []
    labels: list[npt.NDArray[np.int64]] = []
    title = f"{stream.source} on {', '.join(features)}"
    with reporter.stage(title, stream.length) as advance:
        for (names, known), found in _answered(stream.batches(batch_size), runners, crew):
            for name, rows in found.items():
                features[name].append(rows)
            keys += names
            if known is not None:
                labels.append(known)
            advance(len(names))
    return Embedded(
        {name: rows.array() for name, rows in features.items()},
        tuple(keys),
        np.concatenate(labels) if labels else None,
    )


def _answered(
    batches: Iterable[Batch], runners: Sequence[Runner], crew: Crew | None
) -> Iterator[tuple[Names, dict[str, Array]]]:
    if crew is not None:
        yield from crew.answered(batches, [each for each in runners if each.calibration is None])
        return
    for batch in batches:
        yield (batch.keys, batch.labels), {runner.name: runner.run(batch) for runner in runners}


def classify(
    dataset: str, task: str, logits: dict[str, Array], labels: Array, seed: int
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
    correct = {name: value.argmax(axis=1) == labels for name, value in logits.items()}
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
    reference: npt.ArrayLike, found: npt.ArrayLike, image_of_text: npt.ArrayLike, seed: int
) -> tuple[PairedComparison, str]:
    """Paired comparison of image retrieval, and its resolution, both counted by image.

    Captions of one image are found or lost together more often than those of two.

    Args:
        reference, found: whether each caption finds its image, bool `[m]`.
        image_of_text: int64 `[m]`; every image has a caption.
        seed: of the bootstrap.
    """
    owner, after, before = (
        np.asarray(values, np.int64) for values in (image_of_text, found, reference)
    )
    captions = np.bincount(owner)
    change = np.zeros_like(captions)
    np.add.at(change, owner, after - before)
    pair = compare_answers(change, captions, seed)
    of_recall = change / captions.mean()
    line = resolution_line(
        pair.n,
        pair.lost,
        pair.won,
        float(np.square(of_recall).mean()),
        "won or lost captions on balance",
    )
    return pair, line


def zero_shot_records(
    dataset: str, embedded: Embedded, head: Array, scale: float, seed: int
) -> list[Record]:
    assert embedded.labels is not None
    logits = {n: zero_shot(f, head, scale) for n, f in embedded.features.items()}
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
    embedded: Embedded, head: Array, scale: float, labels: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """`[{image, on, top: [{index, label, score}]}]`; the score is softmax over all classes."""
    return [
        {
            "image": key,
            "on": on,
            "top": [asdict(found) for found in best_classes(row, head, scale, labels, count)],
        }
        for on, features in embedded.features.items()
        for key, row in zip(embedded.keys, features, strict=True)
    ]
