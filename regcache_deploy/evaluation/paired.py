"""Two models on the same images: flips, McNemar's exact test, bootstrap interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class PairedComparison:
    """How a model differs from a reference on the same `n` images, in points of accuracy.

    Attributes:
        n: images.
        difference: accuracy minus the reference's, in percentage points.
        low, high: 95 % bootstrap interval of the difference.
        lost: images that only the reference gets right.
        won: images that only the model gets right.
        p_value: McNemar's exact two-sided p.
    """

    n: int
    difference: float
    low: float
    high: float
    lost: int
    won: int
    p_value: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_paired(
    reference: npt.ArrayLike, model: npt.ArrayLike, seed: int = 0
) -> PairedComparison:
    """Compare per-image correctness `[n]` (0 or 1) of a model with a reference's.

    The bootstrap resamples the three outcomes (lost, equal, won), which is the same as resampling
    images, because the difference depends on nothing else.
    """
    from scipy.stats import binomtest

    change = np.asarray(model, dtype=np.int64) - np.asarray(reference, dtype=np.int64)
    n = change.size
    lost, won = int((change < 0).sum()), int((change > 0).sum())
    p_value = float(binomtest(min(lost, won), lost + won).pvalue) if lost + won else 1.0
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(
        n, [lost / n, 1 - (lost + won) / n, won / n], size=BOOTSTRAP_SAMPLES
    )
    low, high = np.percentile((draws[:, 2] - draws[:, 0]) / n * 100, [2.5, 97.5])
    return PairedComparison(
        n, 100.0 * float(change.mean()), float(low), float(high), lost, won, p_value
    )
