"""The images that a contract is judged on, and what an engine makes of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regcache_engines.bundle import Bundle
from regcache_engines.engine import Engine, zero_shot
from regcache_engines.engine_base import in_fixed_batches
from regcache_engines.preprocess import Preprocess, in_layout

from ..data.copies import altered
from ..errors import BundleError, ConfigError, DataError
from ..evaluation.instances import margins
from ..evaluation.paired import compare_paired
from ..search.statistics import bootstrap_means
from .decide import Drop

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

BATCH = 32
MIN_IMAGES = 8


@dataclass(frozen=True)
class JudgeData:
    """Two sets without a common image: one may choose, the other only judges.

    Attributes:
        select, judge: uint8 `[n, H, W, 3]`.
        select_labels, judge_labels: int64 `[n]`, or None.
        source: how many judge, and where they come from.
        place: the data set as it was named; None for images of the bundle's own.
        copied: judged by whether an image finds its own altered copy: there is no zero-shot head.
    """

    select: Array = field(repr=False)
    judge: Array = field(repr=False)
    select_labels: Tensor | None
    judge_labels: Tensor | None
    source: str
    copied: bool = False
    place: str | None = None

    def selecting(self, count: int) -> Array:
        """The first `count` images that may choose; with `copied`, their copies behind them."""
        return self._with_copies(self.select[:count])

    @cached_property
    def judging(self) -> Array:
        """All images that judge; with `copied`, their copies behind them."""
        return self._with_copies(self.judge)

    def _with_copies(self, pixels: Array) -> Array:
        if not self.copied:
            return pixels
        return np.concatenate([pixels, altered(torch.from_numpy(pixels)).numpy()])

    @classmethod
    def split(
        cls,
        pixels: Array,
        labels: Tensor | None,
        source: str,
        seed: int = 0,
        copied: bool = False,
    ) -> JudgeData:
        """Half of the images, drawn at random, judge; the others choose.

        Not every second one: classes take turns in the order of a folder's images.

        Raises:
            DataError: too few images.
        """
        if len(pixels) < 2 * MIN_IMAGES:
            raise DataError(
                f"{source}: {len(pixels)} images are too few to judge a file by; give at least "
                f"{2 * MIN_IMAGES} with --data"
            )
        order = np.random.default_rng(seed).permutation(len(pixels))
        judge, select = order[::2], order[1::2]
        first, second = (None, None) if labels is None else (labels[select], labels[judge])
        source = f"{len(judge)} of {len(pixels)} images ({source}), drawn at random"
        return cls(pixels[select], pixels[judge], first, second, source, copied)


def load_judge_data(bundle: Bundle, data: str | None, limit: int | None, seed: int) -> JudgeData:
    """Images for a bundle.

    Args:
        bundle: open.
        data: as in `regcache eval --data`; None takes the demo's held-out digits for the demo, and
            for any other bundle the calibration images in it.
        limit: largest number of images.
        seed: chooses them.

    Raises:
        DataError, ConfigError: as `open_data`; too few images, or none at hand.
    """
    provenance = bundle.manifest.get("provenance") or {}
    random = str(provenance.get("pretrained") or "").startswith("random")
    copied = not bundle.has_text_features and not random
    if data is None and str(provenance.get("model")).partition("-")[0] == "demo":
        data, limit = "demo", limit or 2000
    if data is None and limit is not None:
        raise ConfigError("--limit goes with --data: all images of the bundle judge")
    if data is None:
        from regcache_export.certificate_files import read_certificate

        try:
            pixels = read_certificate(bundle)[1]
        except BundleError as error:
            raise ConfigError(
                f"{bundle.path} carries no images to judge by; pass --data DIR"
            ) from error
        source = "calibration images in the bundle, which have no labels"
        return JudgeData.split(pixels, None, source, seed, copied)
    from ..data.seen import seen_line
    from ..data.sources import open_data

    known = bundle.labels if bundle.has_text_features else ()
    stream = open_data(data, Preprocess(bundle.preprocess), known, limit, seed)
    if line := seen_line(provenance, data):
        log.warning("%s", line)
    batches = list(stream.batches(BATCH))
    for told in stream.warnings():
        log.warning("%s", told)
    pixels = np.concatenate([batch.pixels for batch in batches])
    labels = None
    if stream.class_names == known and all(batch.labels is not None for batch in batches):
        parts = [batch.labels for batch in batches if batch.labels is not None]
        labels = torch.from_numpy(np.concatenate(parts))
    source = f"{stream.source}, where it was searched and calibrated" if line else stream.source
    return replace(JudgeData.split(pixels, labels, source, seed, copied), place=data)


def engine_features(engine: Engine, pixels: Array, preprocess: Any, size: int | None) -> Tensor:
    """Features `[n, E]` of uint8 images, in calls of exactly `size` images; None for any."""
    step, features = size or BATCH, []
    for start in range(0, len(pixels), step):
        part = in_layout(pixels[start : start + step], engine.pixels, preprocess)
        features.append(in_fixed_batches(part, size, engine.infer))
    return torch.from_numpy(np.concatenate(features))


def measure_drop(
    reference: Tensor,
    features: Tensor,
    head: Tensor | None,
    labels: Tensor | None,
    scale: float,
    seed: int,
    copied: bool = False,
) -> Drop:
    """What `features` `[n, E]` lose against `reference` on the same images.

    With `copied` they are `[2n, E]`, of n images and their altered copies.

    Args:
        head: zero-shot head `[C, E]`, or None.
        labels: int64 `[n]`, or None.
        scale: logit scale of the head.
        seed: of the bootstrap.
    """
    n = len(features)
    if copied:
        before, after = found_copies(reference), found_copies(features)
        return counted_drop(before, after, seed, "instances", exact=True)
    if head is None:
        cosine = torch.nn.functional.cosine_similarity(features.double(), reference.double())
        loss = 100 * (1 - cosine.numpy())
        low, high = np.percentile(bootstrap_means(loss[:, None], seed), [2.5, 97.5])
        return Drop(float(loss.mean()), float(low), float(high), n, "cosine")
    found, wanted = (
        torch.from_numpy(zero_shot(f.numpy(), head.numpy(), scale).argmax(axis=1))
        for f in (features, reference)
    )
    metric = "top1" if labels is not None else "changed"
    truth = labels if labels is not None else wanted
    return counted_drop(wanted == truth, found == truth, seed, metric, exact=labels is not None)


def found_copies(features: Tensor) -> Tensor:
    """Which of n images are nearest to their own copy, bool `[n]`, by features `[2n, E]`."""
    images, copies = features.chunk(2)
    return margins(images, copies, torch.arange(len(images))) > 0


def counted_drop(before: Tensor, after: Tensor, seed: int, metric: str, exact: bool) -> Drop:
    """Loss in points between two outcomes of the same images, bool `[n]`.

    Args:
        exact: an image may be won, too, so that the lower end has an exact bound as well.
    """
    n = len(after)
    pair = compare_paired(before.int().numpy(), after.int().numpy(), seed)
    # Images that were not seen may change where none did of those that were.
    low, high = -pair.high, -pair.low
    if exact:
        low = min(low, 100 * (pair.lost / n - share_bound(pair.won, n)))
    high = max(high, 100 * (share_bound(pair.lost, n) - pair.won / n))
    return Drop(-pair.difference, low, high, n, metric)


def share_bound(count: int, n: int) -> float:
    """Exact upper bound, 97.5 %, of a share seen `count` times in `n` (Clopper and Pearson)."""
    from scipy.stats import beta

    return float(beta.ppf(0.975, count + 1, n - count)) if count < n else 1.0


def head_of(bundle: Bundle) -> Tensor | None:
    return torch.from_numpy(bundle.text_features) if bundle.has_text_features else None
