"""Two models on the same images: flips, McNemar's exact test, bootstrap interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BOOTSTRAP_SAMPLES = 2000


def within(loss: float, budget: float) -> bool:
    """Whether a loss in points keeps a budget; as floats, 100 * 7 / 500 is above 1.4."""
    return loss <= budget + 1e-9


@dataclass(frozen=True)
class PairedComparison:
    """How a model differs from a reference on the same `n` images, in points of accuracy.

    Attributes:
        n: images.
        difference: accuracy minus the reference's, in percentage points.
        low, high: 95 % bootstrap interval of the difference.
        lost: images that only the reference gets right. Of several answers per image: images that
            have fewer right ones than with the reference.
        won: images that only the model gets right, or that have more right answers.
        p_value: McNemar's exact two-sided p; of several answers per image, the sign test over
            images, which is the same with one.
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
    change = np.asarray(model, dtype=np.int64) - np.asarray(reference, dtype=np.int64)
    n = change.size
    lost, won, p_value = _sides(change)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(
        n, [lost / n, 1 - (lost + won) / n, won / n], size=BOOTSTRAP_SAMPLES
    )
    low, high = np.percentile((draws[:, 2] - draws[:, 0]) / n * 100, [2.5, 97.5])
    return PairedComparison(
        n, 100.0 * float(change.mean()), float(low), float(high), lost, won, p_value
    )


def compare_answers(
    change: npt.ArrayLike, answers: npt.ArrayLike, seed: int = 0
) -> PairedComparison:
    """Compare where an image has several answers, as it has captions: those are not independent.

    The bootstrap resamples images with all their answers.

    Args:
        change: right answers of each image minus the reference's, `[n]`.
        answers: number of answers of each image, `[n]`, at least 1.
        seed: of the bootstrap.
    """
    rows = np.stack([np.asarray(change, np.int64), np.asarray(answers, np.int64)], axis=1)
    n = len(rows)
    lost, won, p_value = _sides(rows[:, 0])
    # few kinds of images: drawing their counts is the same as drawing images
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=BOOTSTRAP_SAMPLES)
    changes, totals = (draws @ kinds).T
    low, high = np.percentile(100 * changes / totals, [2.5, 97.5])
    difference = 100.0 * float(rows[:, 0].sum() / rows[:, 1].sum())
    return PairedComparison(n, difference, float(low), float(high), lost, won, p_value)


def _sides(change: npt.NDArray[np.int64]) -> tuple[int, int, float]:
    """Images that lost and that won, and the exact two-sided p of so uneven a split."""
    lost, won = int((change < 0).sum()), int((change > 0).sum())
    return lost, won, _sign_test(min(lost, won), lost + won)


def _sign_test(fewer: int, n: int) -> float:
    """Two-sided p of `fewer` heads or less among `n` fair tosses, exact: in whole numbers."""
    ways, total = 1, 0
    for heads in range(fewer + 1):
        total += ways
        ways = ways * (n - heads) // (heads + 1)
    whole: int = 2**n
    return min(1.0, 2 * total / whole)
