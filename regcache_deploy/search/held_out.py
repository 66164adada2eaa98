"""The held-out images under any quantized encoder; finished embeddings are kept like trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCacheConfig
from ..evaluation import Objective, Score, compare_paired
from ..evaluation.corners import calibrate_corner, simulate
from ..evaluation.image_sets import ImageSets
from ..quantization import Calibration, Quantization
from ..quantization.baselines import Baseline
from ..work.cache import PartCache
from ..work.progress import Reporter
from .problem import register_hash
from .statistics import bootstrap_means


@dataclass
class HeldOut:
    """Embeds the evaluation images.

    Attributes:
        encoder: in floating point.
        sets: their evaluation images and calibration tokens.
        cache: keeps embeddings.
        batch_size: images per forward pass.
        reporter: shows progress.
        warnings: of the calibrations, by the name of what was embedded; also where the embedding
            was finished before.
    """

    encoder: Encoder
    sets: ImageSets
    cache: PartCache
    batch_size: int
    reporter: Reporter

    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)

    @property
    def float_features(self) -> Tensor:
        """Embeddings `[n, E]` of the float model."""
        return self._features("fp32", lambda: Calibration(self.encoder, Quantization()))

    def features(
        self, name: str, baseline: Baseline, config: RegCacheConfig, register: Mapping[int, Tensor]
    ) -> Tensor:
        """Embeddings `[n, E]` with the whole encoder calibrated for one choice."""
        key = {
            "quantizer": baseline.identity(),
            "config": config.to_json(),
            "register": register_hash(register if config.has_prefix else {}),
        }
        calibrate = partial(
            calibrate_corner,
            baseline,
            self.encoder,
            self.sets.calibration_tokens,
            config,
            dict(register),
        )
        return self._features(name, calibrate, **key)

    def judge(self) -> Objective:
        """The metric of the held-out images."""
        return self.sets.judge(self.float_features)

    def _features(self, name: str, calibrate: Any, **key: Any) -> Tensor:
        images = self.sets.evaluation

        def compute() -> dict[str, Tensor]:
            batches = -(-len(images) // self.batch_size)
            with self.reporter.stage(f"held-out images: {name}", batches) as advance:
                calibration = calibrate()
                found = simulate(calibration, images.batches(self.batch_size), advance)
            text = "\n".join(calibration.warnings).encode()
            return {"features": found, "warnings": torch.tensor(list(text), dtype=torch.uint8)}

        part = self.cache.part("held-out", compute, **key)
        self.warnings[name] = tuple(bytes(part["warnings"].tolist()).decode().splitlines())
        return part["features"]


@dataclass(frozen=True)
class Difference:
    """One set of outcomes against another on the same images.

    Attributes:
        difference: mean of the first less the second; in points for top-1.
        low, high: 95 % bootstrap interval.
        p_value: two-sided; McNemar's exact test for top-1, else a paired t-test.
        lost, won: images that changed, for top-1.
    """

    difference: float
    low: float
    high: float
    p_value: float
    lost: int | None = None
    won: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_scores(metric: str, reference: Score, score: Score, seed: int) -> Difference:
    """Paired statistics of `score` against `reference`."""
    from scipy.stats import ttest_1samp

    if metric == "top1":
        pair = compare_paired(reference.per_image.numpy(), score.per_image.numpy(), seed)
        return Difference(
            pair.difference, pair.low, pair.high, pair.p_value, lost=pair.lost, won=pair.won
        )
    change = (score.per_image - reference.per_image).numpy()
    low, high = np.percentile(bootstrap_means(change[:, None], seed), [2.5, 97.5])
    p = float(ttest_1samp(change, 0.0).pvalue) if len(change) > 1 and change.std() else 1.0
    return Difference(float(change.mean()), float(low), float(high), p)
