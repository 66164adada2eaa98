"""Paired comparisons on the same images: who may still be best, and whether anything is gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..evaluation import Objective, Score, compare_paired
from ..work.format import COUNTED

DRAWS = 2000
DRAWS_AT_A_TIME = 50
MIN_GAIN = 0.001
MIN_RELATIVE_GAIN = 0.005
"""A gain below 0.1 point, or below this share of the feature error, is none."""

Array = npt.NDArray[np.float64]
Key = TypeVar("Key")


def survivors(
    outcomes: Mapping[Key, Array], total: int, error: float, seed: int
) -> dict[Key, float]:
    """Which of several choices may still be the best of them on all `total` images.

    Paired bootstrap against the leader: one choice is out if the chance that it overtakes the
    leader on all images is below `error / (choices - 1)`. So the best one is lost with probability
    at most `error`, as far as the bootstrap holds. The part of the images that has been seen does
    not vary any more (finite-population correction).

    Args:
        outcomes: choice -> outcome on the same images, each `[m]`; larger is better.
        total: images of the whole set.
        error: chance to lose the best choice.
        seed: of the bootstrap.

    Returns:
        choice -> its mean, largest first; the leader is always in.
    """
    means = {key: float(values.mean()) for key, values in outcomes.items()}
    ranked = sorted(means, key=lambda key: -means[key])  # stable: ties in the order of `outcomes`
    leader, rest = ranked[0], ranked[1:]
    seen = len(outcomes[leader])
    if not rest or seen >= total:
        # Nothing is left to chance.
        return {key: means[key] for key in ranked if means[key] >= means[leader]}
    gaps = np.stack([outcomes[leader] - outcomes[key] for key in rest], axis=1)
    drawn = gaps.mean(axis=0)
    drawn = drawn + (bootstrap_means(gaps, seed) - drawn) * np.sqrt(1 - seen / total)
    overtakes = (drawn <= 0).mean(axis=0)
    alive = {leader: means[leader]}
    for key, chance in zip(rest, overtakes, strict=True):
        if chance >= error / len(rest):
            alive[key] = means[key]
    return alive


def bootstrap_means(values: Array, seed: int) -> Array:
    """Means of `DRAWS` bootstrap samples of the rows of `values [m, A]`, `[DRAWS, A]`."""
    generator, count = np.random.default_rng(seed), len(values)
    drawn = []
    for _ in range(DRAWS // DRAWS_AT_A_TIME):
        times = generator.multinomial(count, np.full(count, 1 / count), size=DRAWS_AT_A_TIME)
        drawn.append(times @ values / count)
    return np.concatenate(drawn)


def gain_probability(objective: Objective, nothing: Score, choice: Score) -> float:
    """One-sided p-value of "the choice is no better than nothing", on the same images.

    McNemar's exact test for top-1; a choice of equal or higher top-1 may show its gain in the
    fidelity instead. `_mean_p` otherwise. 1 where the gain is too small to matter (`MIN_GAIN`,
    `MIN_RELATIVE_GAIN`).
    """
    if objective.smooth:
        return _mean_p(nothing.per_image, choice.per_image)
    if choice.value < nothing.value:
        return 1.0
    fidelity = _mean_p(nothing.cosine, choice.cosine)
    return min(fidelity, _mcnemar_p(nothing.per_image, choice.per_image))


def _mean_p(nothing: Tensor, choice: Tensor) -> float:
    """Paired t-test or Wilcoxon's signed ranks, the smaller p doubled; both `[n]`, 1 less an error.

    Either alone fails where it matters: one image that gains enormously inflates the variance of
    the t-test though every image gains, and ranks overlook a few images that gain a lot.
    """
    from scipy.stats import ttest_1samp, wilcoxon

    change = (choice - nothing).numpy()
    if change.mean() <= MIN_RELATIVE_GAIN * float(1 - nothing.mean()):
        return 1.0
    if len(change) < 2 or not change.std():
        return float(0.5 ** len(change))  # no spread to test by: the sign test
    means = float(ttest_1samp(change, 0.0, alternative="greater").pvalue)
    ranks = float(wilcoxon(change, alternative="greater").pvalue)
    return min(1.0, 2 * min(means, ranks))


def _mcnemar_p(nothing: Tensor, choice: Tensor) -> float:
    """Both `[n]`, 0 or 1."""
    from scipy.stats import binomtest

    change = choice - nothing
    won, lost = int((change > 0).sum()), int((change < 0).sum())
    if (won - lost) / len(change) < MIN_GAIN or won == lost:
        return 1.0
    return float(binomtest(won, won + lost, alternative="greater").pvalue)


@dataclass(frozen=True)
class Difference:
    """One set of outcomes against another on the same images.

    Attributes:
        difference: mean of the first less the second; in points for top-1.
        low, high: 95 % bootstrap interval.
        p_value: two-sided; McNemar's exact test for top-1, else a paired t-test.
        lost, won: images that changed, for top-1.
        n: images.
    """

    difference: float
    low: float
    high: float
    p_value: float
    lost: int | None = None
    won: int | None = None
    n: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_scores(metric: str, reference: Score, score: Score, seed: int) -> Difference:
    """Paired statistics of `score` against `reference`."""
    from scipy.stats import ttest_1samp

    if metric in COUNTED:
        pair = compare_paired(reference.per_image.numpy(), score.per_image.numpy(), seed)
        return Difference(
            pair.difference, pair.low, pair.high, pair.p_value, pair.lost, pair.won, pair.n
        )
    change = (score.per_image - reference.per_image).numpy()
    low, high = np.percentile(bootstrap_means(change[:, None], seed), [2.5, 97.5])
    p = float(ttest_1samp(change, 0.0).pvalue) if len(change) > 1 and change.std() else 1.0
    return Difference(float(change.mean()), float(low), float(high), p, n=len(change))
